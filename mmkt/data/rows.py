"""Rows of a manifest as tensors: decoded, augmented by a seed of their own, modalities dropped in training."""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from mmkt.data import decode, media
from mmkt.data.cache import Cache
from mmkt.data.columns import cells as cells_of
from mmkt.data.columns import is_absent
from mmkt.data.decode import USUAL, DecodeError, Limits
from mmkt.data.manifest import Manifest, ManifestError, column_of
from mmkt.data.sampling import Draw
from mmkt.generators import seed_of
from mmkt.types import Processor

Items = list[Any]  # what a cell holds
Change = Callable[[Any, int | None], Any]  # of a raw item, told a sound's rate (Hz)
Inputs = dict[str, list[dict[str, Tensor]]]  # by modality, one dict an item of the cell


class Item(NamedTuple):
    """One drawn row. A modality that it lacks is left out."""

    key: Draw
    inputs: Inputs
    views: dict[str, Inputs]


class Rows(Dataset[Item]):
    """The rows of a manifest, asked for by ``Draw``.

    In training each present modality is dropped with its probability, by a generator seeded by (seed, draw, row); if
    all n present ones would go, one of them, drawn uniformly, stays. So modality m is dropped with probability
    p_m − (Π p) / n, the product over the modalities that the row has. A dropped modality is not decoded, and it is
    dropped from every view.
    """

    def __init__(
        self,
        manifest: Manifest | None,
        columns: Mapping[str, str | Sequence[str]],
        processors: Mapping[str, Processor],
        *,
        seed: int,
        train: bool,
        views: Sequence[str] = (),
        dropout: Mapping[str, float] | None = None,
        one_of: Sequence[str] = (),
        limits: Limits = USUAL,
        cache: Cache | None = None,
        changes: Mapping[str, Mapping[str, Change]] = MappingProxyType({}),
        held: Collection[str] = (),
    ):
        """Check columns and remember them.

        Args:
            manifest: None where only ``item`` is used; paths are then relative to the current folder.
            columns: the column of each modality, or the columns of a table.
            processors: the processor of each modality.
            seed: of augmentation and dropout.
            train: makes the view "train", ``views`` and ``dropout``; otherwise there are only plain inputs, and no
                random generator is touched.
            views: further views of the same rows, in training.
            dropout: probability by modality, in training.
            one_of: modalities whose lists are alternatives (captions of one picture): one item is drawn in training, the
                same for every view, by (seed, draw, row, modality); otherwise it is the first. In other modalities all
                items of a list enter.
            limits: what one item may hold.
            cache: of items of this manifest through these processors; None keeps nothing.
            changes: where nothing trains, further views by name, each of the modalities alone that it changes; what is random
                in them is drawn by (seed, row, view, modality).
            held: modalities whose features are elsewhere: of a row that has one the item says so, with no inputs.

        Raises:
            ManifestError: a column is missing, or null in every row.
            ValueError: dropout or one_of names no modality.
        """
        self.modalities, self.columns, self.processors = list(columns), dict(columns), dict(processors)
        # what a message calls a modality's cell: several columns go by the modality's name
        self.places = {m: column if isinstance(column, str) else m for m, column in columns.items()}
        self.seed, self.train, self.views, self.limits = seed, train, tuple(views), limits
        self.dropout, self.one_of, self.cache = dict(dropout or {}), tuple(one_of), cache or Cache(0)
        assert not (train and changes), "changes are of evaluation"
        self.changes, self.held = dict(changes), frozenset(held)  # a dict goes to data workers that are not forks, too
        for where, names in (("dropout", self.dropout), ("one_of", self.one_of)):
            for name in names:
                self._known(name, where)
        self.root = manifest.root if manifest else Path()
        self.ids = manifest.table["id"] if manifest else None
        self.cells = {m: column_of(manifest, c) for m, c in columns.items()} if manifest else {}
        # whether a row has a modality: −1 until it is asked for, so that a cell whose item is cached is not read again
        self.there = {m: np.full(len(cells), -1, dtype=np.int8) for m, cells in self.cells.items()}
        for modality, cells in self.cells.items():
            if all(map(is_absent, cells_of(cells))):
                raise ManifestError(
                    f"modality {modality!r} (column {columns[modality]!r}) is absent from every row of the manifest: "
                    f"name another column in data.columns, or leave the modality out"
                )

    def __len__(self) -> int:
        return len(self.ids) if self.ids is not None else 0

    def __getitem__(self, key: Draw) -> Item:
        """The item of a draw.

        Raises:
            ValueError: DecodeError or MediaError, with the row's id and the column.
        """
        cells = {m: cell for m in self.cells if (cell := self._cell(m, key.row))}
        return self._make(key, cells, f"row {self.ids[key.row].as_py()!r}" if self.ids is not None else f"row {key.row}")

    def _cell(self, modality: str, row: int) -> Callable[[], Any] | None:
        """What gives a row's cell, None where the row lacks the modality; a cell is read at the most once."""
        there, column = self.there[modality], self.cells[modality]
        if there[row] < 0:
            cell = column[row].as_py()
            there[row] = not is_absent(cell)
            return (lambda: cell) if there[row] else None
        return (lambda: column[row].as_py()) if there[row] else None

    def unreadable(self, row: int) -> dict[str, str]:
        """By column, why the row's cell cannot be decoded: just what ``__getitem__`` would refuse."""
        found = {}
        for modality, column in self.cells.items():
            try:
                if not is_absent(cell := column[row].as_py()):
                    self._raw(partial(items_of, cell, self.processors[modality]), self.processors[modality])
            except (DecodeError, media.MediaError) as error:
                found[self.places[modality]] = str(error)
        return found

    def item(self, cells: Mapping[str, Any], row: int = 0) -> Item:
        """The item of things in memory, by modality: as in a manifest, or what ``load`` takes besides.

        Raises:
            ValueError: a modality is unknown or an item cannot be decoded.
        """
        for name in cells:
            self._known(name, "this row")
        present = {m: partial(cells.__getitem__, m) for m in self.modalities if m in cells and not is_absent(cells[m])}
        return self._make(Draw(row, 0, 0), present, f"row {row}")

    def _make(self, key: Draw, cells: Mapping[str, Callable[[], Any]], where: str) -> Item:
        inputs: Inputs = {}
        views: dict[str, Inputs] = {view: {} for view in (self.views if self.train else self.changes)}
        for modality in self._kept(key, list(cells)):
            if modality in self.held:
                inputs[modality] = []
                continue
            processor = self.processors[modality]
            items, kept = self._chosen(key, modality, cells[modality])
            changes = {name: change[modality] for name, change in self.changes.items() if modality in change}
            draws = self.train and processor.draws
            try:
                if not draws:
                    # every view of training is the plain item
                    made = self.cache.get((*kept, "made"), partial(self._plain, items, processor))
                    for view in (inputs, *(views.values() if self.train else ())):
                        view[modality] = made
                raw = self.cache.get((*kept, "raw"), partial(self._raw, items, processor)) if draws or changes else []
            except (DecodeError, media.MediaError) as error:
                raise type(error)(f"{where}, column {self.places[modality]!r}: {error}") from None
            for name, view in ({"train": inputs, **views} if draws else {}).items():
                with _seeded(seed_of(self.seed, key.draw, key.row, name, modality)):
                    view[modality] = [processor(item, name) for item in raw]
            for name, change in changes.items():
                with _seeded(seed_of(self.seed, key.row, name, modality)):
                    views[name][modality] = [processor(_changed(item, change, processor)) for item in raw]
        return Item(key, inputs, views)

    def _chosen(self, key: Draw, modality: str, cell: Callable[[], Any]) -> tuple[Callable[[], Items], tuple[str | int, ...]]:
        """The items of a cell that enter, read when asked for, and what the cache knows them by."""
        if modality not in self.one_of:
            return lambda: items_of(cell(), self.processors[modality]), (modality, key.row)
        items = items_of(cell(), self.processors[modality])
        place = seed_of(self.seed, key.draw, key.row, "one_of", modality) % len(items) if self.train else 0
        return lambda: [items[place]], (modality, key.row, place)

    def _raw(self, items: Callable[[], Items], processor: Processor) -> list[Any]:
        return [load(item, processor, self.root, self.limits) for item in items()]

    def _plain(self, items: Callable[[], Items], processor: Processor) -> list[dict[str, Tensor]]:
        return [processor(item) for item in self._raw(items, processor)]

    def _kept(self, key: Draw, present: list[str]) -> list[str]:
        if not self.train or not self.dropout or not present:
            return present
        generator = np.random.default_rng(seed_of(self.seed, key.draw, key.row, "dropout"))
        chance = dict(zip(self.modalities, generator.random(len(self.modalities))))
        kept = [m for m in present if chance[m] >= self.dropout.get(m, 0.0)]
        return kept or [present[generator.integers(len(present))]]

    def _known(self, name: str, where: str) -> None:
        if name not in self.columns:
            near = get_close_matches(name, self.columns, 1)
            hint = f" (did you mean {near[0]!r}?)" if near else ""
            raise ValueError(f"{where} names the modality {name!r}{hint}: there are {', '.join(self.columns)}")


def load(cell: Any, processor: Processor, root: str | Path, limits: Limits = USUAL) -> Any:
    """One raw item, as a processor of its kind takes it.

    Args:
        cell: what a manifest holds (a text; bytes, a path or a dict for media; a table's dict by column), or in memory
            a PIL image, an array or tensor (pictures as ``decode.picture`` takes them; waveforms at the processor's
            rate; vectors), or (waveform, rate).
        processor: its ``kind`` says how to decode, its ``rate`` (Hz) what to resample sound to, its ``columns``
            what a table may hold, its ``width`` how many numbers a vector has.
        root: the folder that paths are relative to.
        limits: what one item may hold.

    Raises:
        DecodeError: it cannot be decoded.
        MediaError: its file cannot be had.
    """
    kind = processor.kind
    if kind == "table":
        return decode.record(cell, processor.columns)
    if kind == "features":
        return decode.vectors(cell, processor.width)
    if isinstance(cell, list):  # one item made of several: a pair of sentences
        return [load(part, processor, root, limits) for part in cell]
    if kind == "text":
        return decode.text(cell, limits)
    if kind == "image":
        if isinstance(cell, Image.Image | np.ndarray | Tensor):
            return decode.picture(cell, limits)
        return decode.image(media.fetch(cell, root), limits)
    if kind == "audio":
        rate = processor.rate
        if isinstance(cell, np.ndarray | Tensor):
            return decode.waveform(cell, rate, rate, limits)
        if isinstance(cell, tuple):
            return decode.waveform(cell[0], cell[1], rate, limits)
        return decode.audio(media.fetch(cell, root), rate, limits)
    raise AssertionError(f"no decoder for the kind {kind!r}")


def _changed(item: Any, change: Change, processor: Processor) -> Any:
    """A raw item after a change; of one that is made of several (a pair of sentences) each."""
    if isinstance(item, list):
        return [_changed(part, change, processor) for part in item]
    return change(item, processor.rate if processor.kind == "audio" else None)


def items_of(cell: Any, processor: Processor) -> list[Any]:
    """What a cell holds: a list's items, where the list is not one item itself (a pair, a vector)."""
    if isinstance(cell, list) and not processor.whole(cell):
        return [item for item in cell if not is_absent(item)]
    return [cell]


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Python's, numpy's and torch's CPU generators seeded, then as they were."""
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.default_generator.manual_seed(seed)  # not torch.manual_seed, which also seeds the GPUs
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
        torch.set_rng_state(before[2])
