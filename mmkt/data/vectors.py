"""Cells of numbers: one vector, or a list of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mmkt.data.limits import DecodeError


def array(cell: Any, width: int) -> np.ndarray:
    """The vectors of a cell, (T, W) float32, a copy.

    Args:
        cell: W numbers, or T lists of W numbers; lists or an array.
        width: W.

    Raises:
        DecodeError: no numbers, of another width or of several, none at all, or NaN, infinite or too large for float32.
    """
    # of most: those of the training split, or in a check of all rows
    allowed = f"features are a list of {width} numbers (as most are), or a list of such lists"
    if isinstance(cell, str | bytes | Mapping):
        raise DecodeError(f"{allowed}, not {type(cell).__name__} {str(cell)[:40]!r}")
    try:
        given = np.asarray(cell)
    except ValueError:
        lengths = sorted({f"{len(x)} numbers" if isinstance(x, list | np.ndarray) else f"{x!r:.40}" for x in cell})
        raise DecodeError(f"{allowed}; in this one are {', '.join(lengths[:5])}") from None
    if given.dtype.kind not in "iuf" and given.size:
        every = np.asarray(cell, dtype=object).reshape(-1)  # as they were before numpy made one type of them
        odd = next((x for x in every if not isinstance(x, int | float) or isinstance(x, bool)), given.dtype)
        raise DecodeError(f"{allowed}; in this one is {odd!r:.40}")
    if given.ndim not in (1, 2) or given.shape[-1] != width or not given.size:
        raise DecodeError(f"{allowed}; the shape of this one is {given.shape}")
    with np.errstate(over="ignore"):
        found = np.array(given, dtype=np.float32).reshape(-1, width)
    if wrong := int((~np.isfinite(found)).sum()):
        raise DecodeError(f"{wrong} of {found.size} numbers are NaN, infinite or too large for float32")
    return found


def is_vectors(kind: pa.DataType) -> bool:
    """Whether a column of this type holds vectors: lists of floating-point numbers, or lists of lists of numbers."""
    levels = 0
    while _is_list(kind):
        kind, levels = kind.value_type, levels + 1
    return levels in (1, 2) and (pa.types.is_floating(kind) or (levels == 2 and pa.types.is_integer(kind)))


def _is_list(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


def usual_width(column: pa.ChunkedArray) -> int:
    """How many numbers most vectors of a column have."""
    while _is_list(column.type.value_type):
        column = pc.list_flatten(column)
    lengths = pc.value_counts(pc.list_value_length(column).drop_null())
    return max(lengths.to_pylist(), key=lambda pair: pair["counts"], default={"values": 0})["values"]
