"""Which rows a step trains on: a pure function of the step, so that resume, workers and world size change nothing."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import count
from math import ceil
from typing import Any, NamedTuple

import numpy as np

from mmkt.generators import seed_of


class Draw(NamedTuple):
    """One use of a row: what a dataset is asked for and what its augmentation is seeded by."""

    row: int  # place in the manifest
    draw: int  # the epoch, or the place in the stream where draws are with replacement
    stream: int  # place among the streams


class Stream(NamedTuple):
    """Rows that fill ``quota`` places of every batch."""

    name: str
    rows: np.ndarray  # (n,) int64, places in the manifest
    quota: int
    weights: np.ndarray | None = None  # (n,) non-negative: draw with replacement in proportion to them


class Sampler(ABC):
    """Batches for a DataLoader's ``batch_sampler``: iterating yields a rank's share of those from ``start`` to ``stop``."""

    def __init__(self, rank: int, world: int, start: int, stop: int | None):
        self.rank, self.world, self.start, self.stop = rank, world, start, stop

    @property
    @abstractmethod
    def rows(self) -> np.ndarray:
        """Every row that it may draw."""

    @abstractmethod
    def batch(self, step: int) -> list[Draw]:
        """The global batch of a step, which depends on its number alone."""

    def __iter__(self) -> Iterator[list[Draw]]:
        steps = count(self.start) if self.stop is None else range(self.start, self.stop)
        for step in steps:
            yield self.batch(step)[self.rank :: self.world]

    def __len__(self) -> int:
        if self.stop is None:
            raise TypeError("an endless sampler has no length")
        return max(0, self.stop - self.start)


class TrainSampler(Sampler):
    """Batches of draws for a DataLoader's ``batch_sampler``; ``batch(step)`` is the global batch of a step.

    Each stream is an endless row of epochs, every one a seeded permutation of its rows: nothing is dropped, and a batch
    may reach from one epoch into the next. With weights it is drawn with replacement. A batch holds the streams' quotas
    one after another, and a rank takes every ``world``-th draw of it.
    """

    def __init__(
        self,
        streams: Sequence[Stream],
        *,
        seed: int,
        rank: int = 0,
        world: int = 1,
        lengths: np.ndarray | None = None,
        window: int = 50,
        start: int = 0,
        stop: int | None = None,
    ):
        """Check the streams and remember them.

        Args:
            streams: what a batch is made of.
            seed: of every permutation and draw.
            rank: whose share iterating yields.
            world: among how many ranks a batch is shared.
            lengths: (rows of the manifest,); within ``window`` batches the draws of a stream are sorted by it, so that
                a batch holds rows of like length, and the batches are shuffled.
            window: batches that are sorted together.
            start: first step that iterating yields.
            stop: first step that it does not yield; None goes on for ever.

        Raises:
            ValueError: a stream is unusable or the batch does not divide by ``world``.
        """
        total = sum(stream.quota for stream in streams)
        if total < 1 or total % world:
            near = [n for n in (total // world * world, (total // world + 1) * world) if n]
            raise ValueError(f"a batch of {total} rows does not divide over {world} processes: use {' or '.join(map(str, near))}")
        for stream in streams:
            inspect(stream)
        super().__init__(rank, world, start, stop)
        self.streams, self.seed = list(streams), seed
        # a window longer than an epoch would sort a row beside itself
        epoch = min(len(stream.rows) // stream.quota for stream in streams if stream.quota)
        self.lengths, self.window = lengths, max(1, min(window, epoch))
        self._epochs: dict[int, tuple[int, np.ndarray]] = {}  # by stream, the epoch at hand and its rows
        self._windows: dict[int, tuple[int, list[Draw]]] = {}

    @property
    def rows(self) -> np.ndarray:
        """Rows of all streams."""
        return np.concatenate([stream.rows for stream in self.streams])

    def batch(self, step: int) -> list[Draw]:
        """The global batch of a step: ``quota`` draws of each stream, in the streams' order."""
        draws: list[Draw] = []
        for index, stream in enumerate(self.streams):
            if self.lengths is None:
                draws += self._span(index, step * stream.quota, (step + 1) * stream.quota)
            else:
                place = step % self.window * stream.quota
                draws += self._window(index, step // self.window)[place : place + stream.quota]
        return draws

    def _span(self, index: int, start: int, stop: int) -> list[Draw]:
        """Draws of a stream at places start … stop of its endless row of epochs."""
        stream, draws = self.streams[index], []
        while start < stop:
            epoch, place = divmod(start, len(stream.rows))
            rows = self._epoch(index, epoch)[place : place + stop - start].tolist()
            draws += [Draw(row, epoch if stream.weights is None else start + i, index) for i, row in enumerate(rows)]
            start += len(rows)
        return draws

    def _epoch(self, index: int, epoch: int) -> np.ndarray:
        if self._epochs.get(index, (None,))[0] != epoch:
            stream = self.streams[index]
            generator = np.random.default_rng(seed_of(self.seed, stream.name, epoch))
            if stream.weights is None:
                rows = generator.permutation(stream.rows)
            else:
                weights = np.asarray(stream.weights, dtype=np.float64)
                rows = generator.choice(stream.rows, len(stream.rows), p=weights / weights.sum())
            self._epochs[index] = epoch, rows
        return self._epochs[index][1]

    def _window(self, index: int, window: int) -> list[Draw]:
        """A window's draws of a stream, sorted by length, batch by batch in shuffled order."""
        if self._windows.get(index, (None,))[0] != window:
            assert self.lengths is not None
            quota = self.streams[index].quota
            first = window * self.window * quota
            draws = self._span(index, first, first + self.window * quota)
            by_length = np.argsort(self.lengths[np.array([draw.row for draw in draws], dtype=np.int64)], kind="stable")
            # one order for all streams: their long rows meet in one batch
            batches = np.random.default_rng(seed_of(self.seed, "window", window)).permutation(self.window)
            order = [by_length[place] for b in batches for place in range(b * quota, (b + 1) * quota)]
            self._windows[index] = window, [draws[place] for place in order]
        return self._windows[index][1]


def evaluation(rows: Sequence[int] | np.ndarray, batch_size: int, rank: int = 0, world: int = 1) -> Sequence[list[Draw]]:
    """This rank's batches of at most ``batch_size``: over all ranks every row comes once, none twice.

    All ranks get equally many batches (a sharded model hangs otherwise) wherever that can be without repeating a row:
    always if ``batch_size`` is at least 2 and there are rows for every rank.
    """
    mine = np.asarray(rows, dtype=np.int64)[rank::world]
    batches = ceil(ceil(len(rows) / world) / batch_size)  # what rank 0, which has the most rows, needs
    return _Batches([part for part in np.array_split(mine, max(1, batches)) if len(part)])


class _Batches(Sequence[list[Draw]]):
    """Draws made when they are asked for."""

    def __init__(self, parts: list[np.ndarray]):
        self.parts = parts

    def __len__(self) -> int:
        return len(self.parts)

    def __getitem__(self, number: Any) -> Any:
        return [Draw(row, 0, 0) for row in self.parts[number].tolist()]


def balanced(labels_of_rows: Sequence[Any], which: np.ndarray | None = None) -> np.ndarray:
    """Weights (n,) that draw every class equally often: 1 / count of the row's class.

    A list-valued label takes the mean over its classes; rows without a label (None, NaN, empty list) take the mean
    weight of those that have one.

    Args:
        labels_of_rows: a label a row; with ``which``, the different labels.
        which: (n,) each row's place among them, −1 for none.
    """
    classes = [
        label if isinstance(label, list) else [] if label is None or label != label else [label] for label in labels_of_rows
    ]
    which = np.arange(len(classes)) if which is None else which
    counts: Counter[Any] = Counter()
    for row, n in zip(classes, np.bincount(which[which >= 0], minlength=len(classes)).tolist()):
        for c in row:
            counts[c] += n
    used = [[counts[c] for c in row if counts[c]] for row in classes]
    weights = np.array([*(np.mean([1 / n for n in row]) if row else np.nan for row in used), np.nan])[which]
    labelled = ~np.isnan(weights)
    return np.where(labelled, weights, weights[labelled].mean() if labelled.any() else 1.0)


def inspect(stream: Stream) -> None:
    """Refuse a stream that no batch can be drawn from.

    Raises:
        ValueError: it has no rows for its quota, or no weights for its rows.
    """
    name, n = stream.name, len(stream.rows)
    if stream.quota < 0 or (stream.quota and not n):
        raise ValueError(f"the stream {name!r} has {n} rows for a quota of {stream.quota}: give it rows, or quota 0")
    if stream.weights is not None:
        weights = np.asarray(stream.weights, dtype=np.float64)
        if weights.shape != (n,) or not np.isfinite(weights).all() or (weights < 0).any() or not weights.sum() > 0:
            raise ValueError(f"the stream {name!r}: {n} rows take {n} finite weights of 0 or more, not all 0")
