"""From a manifest to a model's batches: vocabularies, streams, loaders."""

from __future__ import annotations

import gc
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
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
from mmkt.checkpoint import read_json, write_json
from mmkt.data import manifest as manifests
from mmkt.data import media, sampling, splits
from mmkt.data.cache import Cache
from mmkt.data.check import Unreadable
from mmkt.data.collate import Collate, Cuts
from mmkt.data.columns import cells, codes
from mmkt.data.limits import Limits
from mmkt.data.manifest import Manifest
from mmkt.data.mapped import release
from mmkt.data.rows import Rows, labels
from mmkt.experiment import Data, Experiment
from mmkt.model import Model, learners
from mmkt.parts import ConfigError, Parts
from mmkt.types import Batch

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # tokenizers' threads and forked workers do not mix


def prepare(spec: Mapping[str, Any], out: Path, origin: Path | None, parts: Parts) -> Path:
    """Make a source's manifest in ``out``, and note beside it what it was made from. Returns its path."""
    path = parts.build("data/sources", spec).prepare(out, origin)
    write_json(out / "source.json", dict(spec))
    return path


def open_manifest(data: Data, seed: int, parts: Parts) -> Manifest:
    """The manifest of a config, made from its source where it does not exist yet, with every row in a split.

    Raises:
        ManifestError: it can't be used, or was made from the source with other settings than the config's.
    """
    path = Path(data.manifest)
    if data.source is not None:
        if not path.exists() and distributed.rank() == 0:
            distributed.say(f"making {path} ({data.source['name']})")
            made = prepare(data.source, path.parent, Path(data.origin) if data.origin else None, parts)
            if made != path:
                raise ConfigError([("data.manifest", f"the source {data.source['name']} makes {made}, found {path}")])
        distributed.wait()
        note = path.parent / "source.json"
        now = json.loads(json.dumps(data.source))  # as it was noted: a tuple is a list there
        before = read_json(note) if note.is_file() else now
        if before != now:
            other = [f"{key}={before.get(key)!r}" for key in now if before.get(key) != now[key]]
            raise ConfigError(
                [("data.source", f"{path} was made with {', '.join(other)}: delete {path.parent}, or name another data.manifest")]
            )
    manifest = manifests.read(path)
    if data.fold is not None:
        names = data.train, data.validation, data.test
        folds = splits.folds_of(manifest, data.fold.by, data.fold.k, seed)
        manifest = splits.assign_fold(manifest, folds, data.fold.test, names, data.fold.validation, seed)
    elif manifest.table["split"].null_count == len(manifest.table):
        manifest = splits.assign_splits(manifest, data.fractions, seed)
    return manifest


def learn_vocabularies(config: Experiment, manifest: Manifest, parts: Parts) -> dict[str, Any]:
    """What heads learn from the training split's labels, by task, and encoders from its cells, by ``encoders.MODALITY``."""
    rows = splits.rows_of(manifest, config.data.train)
    found = {}
    for m, encoder in learners(config, parts).items():
        column = manifests.column_of(manifest, config.data.columns.get(m, m))
        try:
            found[f"encoders.{m}"] = encoder.learn(column.take(rows), config.model.encoders[m])
        except ValueError as error:
            raise ConfigError([(f"model.encoders.{m}", str(error))]) from error
    for task, spec in config.model.heads.items():
        column = config.data.labels.get(task, task)
        distinct, place = codes(manifests.column_of(manifest, column))
        known = distinct.to_pylist()
        values = [known[k] for k in place[rows] if k >= 0]  # an object a value, not a row
        try:
            if not values:
                raise ValueError(f"no row of the training split has a label in the column {column!r}")
            found[task] = parts.find("heads", spec["name"]).learn(values)  # type: ignore[attr-defined]
        except ValueError as error:
            raise ConfigError([(f"model.heads.{task}", str(error))]) from error
    return found


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
        self.manifest, self.data, self.seed = manifest, data, seed
        self.modalities = model.modalities
        self.columns = {m: data.columns.get(m, m) for m in self.modalities}
        self.processors = {m: encoder.processor() for m, encoder in model.encoders.items()}
        for m, column in self.columns.items():
            if not isinstance(column, str) and (kind := self.processors[m].kind) != "table":
                problem = f"names a list of columns, which a table takes; the encoder is one of {kind}: name one column"
                raise ConfigError([(f"data.columns.{m}", problem)])
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
        self.collate = Collate(self.modalities, self.processors, self.labels, self.domain, self.group)
        unknown = [m for m in (*data.columns, *data.dropout, *data.one_of) if m not in self.modalities]
        if unknown:
            raise ConfigError([("data", f"there is no modality {unknown[0]!r}; the model has {', '.join(self.modalities)}")])

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
            return [sampling.Stream("train", rows, self.data.batch_size, self._weights(rows))]
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

    def _lengths(self) -> np.ndarray | None:
        m = self.data.group_by_length
        if m is None:
            return None
        if m not in self.modalities:
            raise ConfigError([("data.group_by_length", f"there is no modality {m!r}; allowed: {', '.join(self.modalities)}")])
        if self.processors[m].kind == "table":
            raise ConfigError([("data.group_by_length", f"{m!r} is a table: its rows have one length; name another, or null")])
        column = manifests.column_of(self.manifest, self.columns[m])
        if self.processors[m].kind == "text":
            sizes = (len(str(cell or "")) for cell in cells(column))
        else:
            sizes = (media.size(cell, self.manifest.root) for cell in cells(column))
        return np.fromiter(sizes, dtype=np.int64, count=len(column))

    def training(
        self, start: int, stop: int, views: Sequence[str] = (), quotas: Mapping[str, int] | None = None, pin: bool = False
    ) -> Iterator[Batch]:
        """This rank's share of the training batches ``start`` … ``stop``; which rows they hold depends on the number alone."""
        sampler = sampling.TrainSampler(
            self.streams(quotas),
            seed=self.seed,
            rank=distributed.rank(),
            world=distributed.world_size(),
            lengths=self._lengths(),
            start=start,
            stop=stop,
        )
        return self._noted(self._loader(self._rows(True, views), sampler, pin))

    def evaluation(self, rows: np.ndarray, pin: bool = False) -> Iterator[Batch]:
        """This rank's share of some rows, each once over all ranks, in equally many batches if there are rows for every rank."""
        rank, world = distributed.rank(), distributed.world_size()
        smallest = 1 if world == 1 else 2  # of two rows or more: batches of one can't be equally many
        batches = sampling.evaluation(rows, max(smallest, self.data.batch_size // world), rank, world)
        return self._noted(self._loader(self._rows(False), batches, pin))

    def _noted(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        release()
        if self.data.workers:
            gc.freeze()  # a garbage collection writes to every object: forked workers would each have a copy of all of them
        try:
            for batch in batches:
                self.cuts.note(batch)
                yield batch
        finally:
            gc.unfreeze()

    def _rows(self, train: bool, views: Sequence[str] = ()) -> Rows:
        return Rows(
            self.manifest,
            self.columns,
            self.processors,
            seed=self.seed,
            train=train,
            views=views,
            dropout=self.data.dropout,
            one_of=self.data.one_of,
            limits=self.limits,
            cache=self.cache,
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
