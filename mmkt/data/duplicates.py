"""Cells that hold the same, found by what their contents hash to: 16 bytes a cell."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

# a digest's first half is 0 for no content (absent) and for these alone
UNKNOWN = bytes(8) + b"\1" + bytes(7)  # there is a content, which was not read
ROWS = 100  # that are named of one content


def digest(*items: bytes | None) -> bytes:
    """16 bytes for a cell of one item or several; one that is None makes it unknown."""
    found = hashlib.blake2b(digest_size=16)
    for item in items:
        if item is None:
            return UNKNOWN
        found.update(item if len(items) == 1 else hashlib.blake2b(item).digest())
    return found.digest()


def whole(columns: Sequence[np.ndarray]) -> np.ndarray:
    """Digests of rows out of those of their cells, each (n, 2).

    A row with an unknown cell is unknown: it compares with nothing. One that lacks all cells has no content.
    """
    cells = np.hstack(columns)  # (n, 2 · columns)
    found = np.frombuffer(b"".join(map(digest, map(bytes, cells))), dtype=np.uint64).reshape(-1, 2).copy()
    found[(cells == 0).all(1)] = 0
    unknown = np.frombuffer(UNKNOWN, dtype=np.uint64)
    found[np.any([(column == unknown).all(1) for column in columns], axis=0)] = unknown
    return found


def across(digests: np.ndarray, splits: np.ndarray, most: int) -> tuple[int, list[np.ndarray]]:
    """Contents that stand in more than one split.

    Args:
        digests: (n, 2) uint64.
        splits: (n,) the split's number.
        most: contents that are named.

    Returns:
        How many there are, and the rows (up to ``ROWS``, ascending) of the first ones, in the order of their first rows.
    """
    known = np.flatnonzero(digests[:, 0])
    if not len(known):
        return 0, []
    order = known[np.lexsort(digests[known].T)]  # equal ones side by side, ascending
    same = digests[order]
    starts = np.flatnonzero(np.concatenate([[True], (same[1:] != same[:-1]).any(1)]))
    ends = np.append(starts[1:], len(order))
    place = splits[order]
    several = np.flatnonzero(np.minimum.reduceat(place, starts) != np.maximum.reduceat(place, starts))
    first = several[np.argsort(order[starts[several]])][:most]
    return len(several), [order[starts[k] : min(ends[k], starts[k] + ROWS)] for k in first]
