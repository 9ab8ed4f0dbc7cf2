"""Batches of so many padded units instead of so many rows."""

from __future__ import annotations

from collections.abc import Sequence
from math import lcm

import numpy as np

from mmkt.data.sampling import Draw, Sampler, Stream, inspect
from mmkt.generators import seed_of

EIGHT = 8  # rows: a batch holds a multiple of it where so many fit, so that 1, 2 and 4 processes share the same batches


class Packing:
    """An epoch of a stream cut into batches of like length, whatever the order of its rows: as many batches every epoch.

    Rows are sorted by length, the longest first, and each batch is filled with as many as fit. Lengths within a sixteenth of
    one another count as alike: which of such rows share a batch is drawn anew every epoch (``epoch``), while the cuts stay, so
    that the batches of a step are found without those of the epochs before.

    A batch holds a multiple of ``unit`` rows (8, or the least that ``world`` shares evenly), or where fewer fit, half of it, a
    quarter …, at the least ``world``; the last, of the shortest rows, holds what is left. A batch is so never larger than
    ``tokens``, unless it is one of a row a process, each longer than its share (for the last: of less than two).

    Args:
        stream: its rows; ``quota`` is the most that a batch may hold, over all processes.
        lengths: (rows of the manifest,), of those that the stream has.
        tokens: a batch's rows times the longest of them, at the most.
        world: among how many processes a batch is shared.

    Raises:
        ValueError: there are fewer rows, or fewer in a batch, than processes.
    """

    def __init__(self, stream: Stream, lengths: np.ndarray, *, tokens: int, world: int = 1):
        inspect(stream)
        rows = len(stream.rows)
        for name, number in (("of the epoch", rows), ("of a batch at the most", stream.quota)):
            if number < world:
                raise ValueError(f"{number} rows {name} do not go round {world} processes")
        self.stream, self.world = stream, world
        own = lengths[stream.rows]
        # by row, which lengths it is alike: the five leading bits
        shift = np.maximum(np.frexp(own.astype(np.float64))[1] - 5, 0)
        kinds, self.alike = np.unique(-(own >> shift << shift), return_inverse=True)
        longest = np.zeros(len(kinds), dtype=np.int64)
        np.maximum.at(longest, self.alike, own)
        self.edges = _edges(longest.repeat(np.bincount(self.alike)), tokens, stream.quota, world)
        self.alike = self.alike.astype(np.uint16)  # numpy sorts these by counting

    def __len__(self) -> int:
        """Batches an epoch."""
        return len(self.edges) - 1

    @property
    def least(self) -> int:
        """Rows of the smallest batch."""
        return int(np.diff(self.edges).min())

    def epoch(self, seed: int, number: int) -> list[np.ndarray]:
        """An epoch's batches of rows, in the order in which they come: every row once."""
        generator = np.random.default_rng(seed_of(seed, self.stream.name, number))
        order = generator.permutation(len(self.stream.rows))
        order = order[np.argsort(self.alike[order], kind="stable")]
        parts = np.split(self.stream.rows[order], self.edges[1:-1])
        return [parts[k] for k in generator.permutation(len(parts))]


def _edges(longest: np.ndarray, tokens: int, most: int, world: int) -> np.ndarray:
    """Where batches begin and end.

    Args:
        longest: (n,) descending, what a row is at the most as long as.
        tokens: of a batch at the most.
        most: rows of one.
        world: processes.
    """
    unit = lcm(EIGHT, 2 * world)
    edges = [0]
    while edges[-1] < len(longest):
        edges.append(edges[-1] + _fitting(min(most, tokens // max(1, int(longest[edges[-1]]))), unit, world))
    if len(edges) > 2:  # the last batch has what is left
        size, left = edges[-2] - edges[-3], len(longest) - edges[-2]
        give = min(size, unit) // 2
        if size > world and left < give:  # too few for every process: rows of the one before
            edges[-2] -= give
        elif left < world:  # … which has no more than one for each itself
            del edges[-2]
    return np.array([*edges[:-1], len(longest)])


def _fitting(fit: int, unit: int, world: int) -> int:
    """Rows of a batch into which ``fit`` would go."""
    if fit >= unit:
        return fit // unit * unit
    while unit > max(fit, world):
        unit //= 2  # its halves are multiples of ``world`` down to ``world`` itself
    return max(unit, world)


class PackedSampler(Sampler):
    """The batches of a packing, epoch after epoch; none reaches from one into the next. A rank takes every ``world``-th draw.

    Args:
        packing: of an epoch.
        seed: of every permutation.
        rank: whose share iterating yields.
        start: first step that iterating yields.
        stop: first step that it does not yield; None goes on for ever.
    """

    def __init__(self, packing: Packing, *, seed: int, rank: int = 0, start: int = 0, stop: int | None = None):
        super().__init__(rank, packing.world, start, stop)
        self.packing, self.seed = packing, seed
        self._epoch: tuple[int, Sequence[np.ndarray]] = (-1, ())

    @property
    def rows(self) -> np.ndarray:
        """Every row of the stream."""
        return self.packing.stream.rows

    def batch(self, step: int) -> list[Draw]:
        """The global batch of a step; its draws are numbered by epochs."""
        epoch, place = divmod(step, len(self.packing))
        if self._epoch[0] != epoch:
            self._epoch = epoch, self.packing.epoch(self.seed, epoch)
        return [Draw(row, epoch, 0) for row in self._epoch[1][place].tolist()]
