"""From a manifest to a model's batches: labels, streams, loaders."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property, partial
from types import MappingProxyType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor
from torch.utils.data import DataLoader

from mmkt import distributed
from mmkt.data import lengths, sampling, splits
from mmkt.data import manifest as manifests
from mmkt.data.cache import Cache
from mmkt.data.check import Unreadable
from mmkt.data.collate import Collate, Cuts
from mmkt.data.columns import codes
from mmkt.data.kinds import media_kind
from mmkt.data.labels import labels
from mmkt.data.limits import Limits
from mmkt.data.manifest import Manifest
from mmkt.data.mapped import release
from mmkt.data.packing import PackedSampler, Packing
from mmkt.data.rows import Change, Rows
from mmkt.data.sampling import Draw, Sampler, TrainSampler
from mmkt.experiment import Data
from mmkt.feature_cache import Features
from mmkt.model import Model
from mmkt.parts import ConfigError
from mmkt.types import Batch

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # tokenizers' threads and forked workers do not mix


class Feed:
    """A manifest's rows as batches for one model.

    Args:
        manifest: with every row in a split.
        model: whose processors make its inputs and whose heads read the labels.
        data: the settings.
        seed: of order, augmentation and modality dropout.
        labelled: rows whose labels are read; those of the others may be anything. None for all rows.
    """

    def __init__(self, manifest: Manifest, model: Model, data: Data, seed: int, *, labelled: np.ndarray | None = None):
        self.manifest, self.data, self.seed, self.batch_size = manifest, data, seed, data.rows
        self.modalities = model.modalities
        self.columns = {m: data.columns.get(m, m) for m in self.modalities}
        self.processors = {m: encoder.processor() for m, encoder in model.encoders.items()}
        for m in self.modalities:
            self._look_at(m)
        self.limits = Limits(data.max_pixels, data.max_seconds, data.max_characters)
        self.cuts = Cuts()
        self.cache = Cache(data.cache * 1e9 / max(1, data.workers))
        table = manifest.table
        domains, self.domain = _codes(table["domain"])
        self.domains = domains.to_pylist()
        _, self.group = _codes(table["group"])
        self.labels: dict[str, tuple[Tensor, Tensor]] = {}
        for task, head in model.heads.items():
            column, read = self.label_column(task), partial(head.label, vocabulary=head.vocabulary)
            if column in table.column_names:
                self.labels[task] = labels(manifest, column, read, labelled)
            else:
                filler = read(None)
                self.labels[task] = filler.expand(len(table), *filler.shape), torch.zeros(len(table), dtype=torch.bool)
        self.features: dict[str, Features] = {}  # of modalities whose encoders need not run
        self.whole = model.whole
        padding = {m: encoder.processor() for m, encoder in model.encoders.items()}  # features are made without (``resting``)
        for m in padding.keys() & data.pad_to.keys():
            if not padding[m].pads:
                raise ConfigError([(f"data.pad_to.{m}", "its items have one length already: leave it out")])
            padding[m].multiple = data.pad_to[m]
        self.collate = Collate(self.modalities, padding, self.labels, self.domain, self.group)
        unknown = [m for m in (*data.columns, *data.dropout, *data.one_of, *data.pad_to) if m not in self.modalities]
        if unknown:
            raise ConfigError([("data", f"there is no modality {unknown[0]!r}; the model has {', '.join(self.modalities)}")])
        lengths.refuse_apart(data)

    def _look_at(self, m: str) -> None:
        """Refuse a column that is not of the encoder's kind, and say so of one that does not look like it."""
        column, kind = self.columns[m], self.processors[m].kind
        if not isinstance(column, str):
            if kind != "table":
                problem = f"names a list of columns, which a table takes; the encoder is one of {kind}: name one column"
                raise ConfigError([(f"data.columns.{m}", problem)])
        elif kind == "text" and column in self.manifest.table.column_names:
            looks = media_kind(self.manifest.table[column])
            if looks:
                distributed.say(f"{m}: the column {column!r} looks like {looks} files, and is read as text")

    def label_column(self, task: str) -> str:
        """The manifest's column of a task's labels."""
        return self.data.labels.get(task, task)

    def rows(self, split: str) -> np.ndarray:
        """Row numbers of a split."""
        return splits.rows_of(self.manifest, split)

    def unreadable(self, rows: np.ndarray) -> list[Unreadable]:
        """Cells of some rows that cannot be decoded; rank 0 looks, and every process has its answer."""
        found = []
        if distributed.rank() == 0:
            source, ids = self._rows(False), self.manifest.table["id"]
            for row in track(rows.tolist(), "checking media", console=Console(stderr=True), transient=True):
                found += [Unreadable(ids[row].as_py(), column, why) for column, why in source.unreadable(row).items()]
        found = distributed.from_first(found)
        if found:
            bad = len({cell.row for cell in found})
            distributed.say(f"{bad} of {len(rows)} rows cannot be decoded and are left out (data.bad_rows: drop)")
        return found

    def streams(self, quotas: Mapping[str, int] | None = None) -> list[sampling.Stream]:
        """What a training batch is mixed from: ``data.streams``, or the training split.

        Args:
            quotas: a phase's own, by stream.
        """
        if not self.data.streams:
            rows = self.rows(self.data.train)
            return [sampling.Stream("train", rows, self.batch_size, self._weights(rows))]
        unknown = [name for name in quotas or {} if name not in self.data.streams]
        if unknown:
            raise ConfigError([("transfer", f"there is no stream {unknown[0]!r}; allowed: {', '.join(self.data.streams)}")])
        found = []
        for name, stream in self.data.streams.items():
            rows = self.rows(stream.split)
            if stream.domain is not None:
                if stream.domain not in self.domains:
                    allowed = ", ".join(self.domains) or "none"
                    raise ConfigError([(f"data.streams.{name}.domain", f"no row has {stream.domain!r}; there are {allowed}")])
                rows = rows[self.domain.numpy()[rows] == self.domains.index(stream.domain)]
            quota = (quotas or {}).get(name, stream.quota)
            found.append(sampling.Stream(name, rows, quota, self._weights(rows)))
        return found

    def _weights(self, rows: np.ndarray) -> np.ndarray | None:
        if self.data.balance is None:
            return None
        if self.data.balance not in self.labels:
            raise ConfigError([("data.balance", f"there is no task {self.data.balance!r}; allowed: {', '.join(self.labels)}")])
        column = manifests.column_of(self.manifest, self.label_column(self.data.balance))
        distinct, place = codes(column)
        return sampling.balanced(distinct.to_pylist(), place[rows])

    def _grouped_by(self) -> str | None:
        """The modality of ``data.group_by_length``, which the model has."""
        m = self.data.group_by_length
        if m is not None and m not in self.modalities:
            raise ConfigError([("data.group_by_length", f"there is no modality {m!r}; allowed: {', '.join(self.modalities)}")])
        if m is not None and self.processors[m].kind == "table":
            raise ConfigError([("data.group_by_length", f"{m!r} is a table: its rows have one length; name another, or null")])
        return m

    def sizes(self, m: str) -> np.ndarray:
        """How long each row of the manifest is in a modality that is no table, (rows,): characters, vectors, or bytes."""
        return lengths.sizes(manifests.column_of(self.manifest, self.columns[m]), self.processors[m], self.manifest.root)

    @cached_property
    def packing(self) -> Packing | None:
        """An epoch's batches with ``data.tokens``; None without.

        Raises:
            ConfigError: fewer rows than processes.
        """
        if self.data.tokens is None:
            return None
        m, [stream] = self._grouped_by(), self.streams()
        assert m is not None, "refused as the feed was made"
        if self.processors[m].kind in ("text", "features"):
            column = manifests.column_of(self.manifest, self.columns[m])
            own = lengths.tokens(column, self.processors[m], stream.rows, alternatives=m in self.data.one_of)
        else:
            own = self.sizes(m)
        try:
            return Packing(stream, own, tokens=self.data.tokens, world=distributed.world_size())
        except ValueError as error:
            raise ConfigError([("data", str(error))]) from error

    def epoch(self) -> float:
        """How many batches have every training row once (of the stream that takes the most)."""
        if self.packing is not None:
            return len(self.packing)
        return max(len(stream.rows) / stream.quota for stream in self.streams() if stream.quota)

    def training(
        self, start: int, stop: int, views: Sequence[str] = (), quotas: Mapping[str, int] | None = None, pin: bool = False
    ) -> Iterator[Batch]:
        """This rank's share of the training batches ``start`` … ``stop``; which rows they hold depends on the number alone."""
        sampler = self._sampler(start, stop, quotas)
        self._asked_for(sampler.rows)
        found: Iterator[Batch]
        if self._all_held() and not self.data.dropout:
            found = map(self._looked_up, sampler)
        else:
            found = self._noted(self._loader(self._rows(True, views), sampler, pin))
        return map(Batch.pinned, found) if pin and self.features else found  # features come in after the loader has pinned

    def _sampler(self, start: int, stop: int, quotas: Mapping[str, int] | None) -> Sampler:
        rank, world = distributed.rank(), distributed.world_size()
        if self.packing is not None:
            return PackedSampler(self.packing, seed=self.seed, rank=rank, start=start, stop=stop)
        m = self._grouped_by()
        own = None if m is None else self.sizes(m)
        return TrainSampler(self.streams(quotas), seed=self.seed, rank=rank, world=world, lengths=own, start=start, stop=stop)

    def batch_of(self, rows: np.ndarray, views: Sequence[str] = ()) -> Batch:
        """Some rows as one training batch, with all modalities that they have; it is not counted among what was cut."""
        self._asked_for(rows)
        draws = [Draw(row, 0, 0) for row in rows.tolist()]
        if self._all_held():
            return self._looked_up(draws)
        source = self._rows(True, views, dropout={})
        return self._with_features(self.collate([source[draw] for draw in draws]))

    def evaluation(self, rows: np.ndarray, changes: Mapping[str, Mapping[str, Change]] = MappingProxyType({})) -> Iterator[Batch]:
        """This rank's share of some rows, each once over all ranks, in equally many batches if there are rows for every rank.

        Args:
            rows: row numbers.
            changes: as ``Rows`` takes them: further views of the same rows.
        """
        rank, world = distributed.rank(), distributed.world_size()
        smallest = 1 if world == 1 else 2  # of two rows or more: batches of one can't be equally many
        batches = sampling.evaluation(rows, max(smallest, self.batch_size // world), rank, world)
        self._asked_for(rows)
        if self._all_held() and not changes:
            return map(self._looked_up, batches)
        return self._noted(self._loader(self._rows(False, changes=changes), batches, pin=False))

    def _asked_for(self, rows: np.ndarray) -> None:
        for features in self.features.values():
            assert features.asked[torch.from_numpy(rows)].all(), "rows whose features were not asked for"

    def _all_held(self) -> bool:
        return len(self.features) == len(self.modalities)

    def _looked_up(self, draws: Sequence[Draw]) -> Batch:
        """A batch whose modalities all come from features: nothing is read, decoded or padded."""
        rows = torch.tensor([draw.row for draw in draws])
        there = {m: self.features[m].place[rows] >= 0 for m in self.modalities}
        return self._with_features(self.collate.of(draws, {}, there, {}))

    def _with_features(self, batch: Batch) -> Batch:
        for m, features in self.features.items():
            if batch.present[m].any():
                batch.inputs[m] = features.take(batch.row, batch.present[m], self.whole)
        return batch

    def _noted(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        release()
        if self.data.workers:
            gc.freeze()  # a garbage collection writes to every object: forked workers would each have a copy of all of them
        try:
            for batch in batches:
                self.cuts.note(batch)
                yield self._with_features(batch)
        finally:
            if self.data.workers:
                gc.unfreeze()

    def _rows(
        self,
        train: bool,
        views: Sequence[str] = (),
        changes: Mapping[str, Mapping[str, Change]] = MappingProxyType({}),
        dropout: Mapping[str, float] | None = None,
    ) -> Rows:
        return Rows(
            self.manifest,
            self.columns,
            self.processors,
            seed=self.seed,
            train=train,
            views=views,
            dropout=self.data.dropout if dropout is None else dropout,
            one_of=self.data.one_of,
            limits=self.limits,
            cache=self.cache,
            changes=changes,
            held=[m for m in self.features if not any(m in change for change in changes.values())],
        )

    def _loader(self, rows: Rows, batches: Any, pin: bool) -> DataLoader:
        return DataLoader(
            rows,
            batch_sampler=batches,
            num_workers=self.data.workers,
            collate_fn=self.collate,
            pin_memory=pin,
            generator=torch.Generator(),  # its own: a loader would draw from the global one, which dropout uses
        )


def _codes(names: pa.ChunkedArray) -> tuple[pa.Array, Tensor]:
    """Sorted distinct names, and each row's place among them (−1: unnamed)."""
    known, place = codes(names)
    order = pc.array_sort_indices(known)
    rank = np.append(np.argsort(order), -1)  # the last is for −1
    return known.take(order), torch.from_numpy(rank[place])
