"""Columns of a million cells: looked through a few thousand at a time, or as a code a row."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mmkt.data.mapped import ManifestError, release

ROWS = 8192  # that are Python objects at one time
BYTES = 32_000_000  # of cells that are: numbers in lists take eight times their room
Columnar = TypeVar("Columnar", pa.Table, pa.ChunkedArray)


def slices(whole: Columnar, rows: int | None = None) -> Iterator[Columnar]:
    """Successive rows, so many (``ROWS``) at a time; what was read of a mapped file does not stay in memory."""
    rows = rows or ROWS
    for number, start in enumerate(range(0, len(whole), rows), 1):
        yield whole.slice(start, rows)
        if number % 16 == 0:
            release()
    release()


def cells(column: pa.ChunkedArray) -> Iterator[Any]:
    """All cells as Python objects."""
    for part in slices(column, max(1, min(ROWS, BYTES * len(column) // max(1, column.nbytes)))):
        yield from part.to_pylist()


def codes(column: pa.ChunkedArray) -> tuple[pa.Array, np.ndarray]:
    """Distinct values in the order of their first rows, and each row's place among them, (n,) int32; −1 for null and NaN."""
    if pa.types.is_nested(column.type):
        return _nested_codes(column)
    if pa.types.is_floating(column.type):
        column = pc.if_else(pc.is_nan(column), pa.scalar(None, column.type), column)
    encoded = column.dictionary_encode().unify_dictionaries()
    values = encoded.chunk(0).dictionary if encoded.num_chunks else pa.array([], column.type)
    found = np.empty(len(column), dtype=np.int32)
    start = 0
    for chunk in encoded.chunks:
        found[start : start + len(chunk)] = chunk.indices.fill_null(-1)
        start += len(chunk)
    release()
    return values, found


def _nested_codes(column: pa.ChunkedArray) -> tuple[pa.Array, np.ndarray]:
    places: dict[str, int] = {}
    firsts: list[int] = []
    found = np.full(len(column), -1, dtype=np.int32)
    for row, value in enumerate(cells(column)):
        if value is not None:
            found[row] = places.setdefault(repr(value), len(places))
            if found[row] == len(firsts):
                firsts.append(row)
    return column.take(pa.array(firsts, pa.int64())).combine_chunks(), found


def strings(column: pa.ChunkedArray, name: str, where: str) -> pa.ChunkedArray:
    """Cells of a column as strings, null where they are empty; the column itself if that is what it is.

    Raises:
        ManifestError: a cell is neither string nor number.
    """
    if pa.types.is_integer(column.type) or pa.types.is_large_string(column.type) or pa.types.is_string_view(column.type):
        column = column.cast(pa.string())
    elif not pa.types.is_string(column.type):
        column = pa.chunked_array(_spelled(column, name, where), pa.string())
    empty = pc.equal(column, "")
    return pc.if_else(empty, pa.scalar(None, pa.string()), column) if pc.any(empty).as_py() else column


def spelled(value: str | float) -> str:
    """A name or a number as text; 3.0, as a column of integers with gaps arrives, is 3."""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _spelled(column: pa.ChunkedArray, name: str, where: str) -> Iterator[pa.Array]:
    number = 0
    for part in slices(column):
        found: list[str | None] = []
        for value in part.to_pylist():
            if value is None or value != value:  # NaN is how pandas writes a missing number
                found.append(None)
            elif isinstance(value, str | int | float):
                found.append(spelled(value))
            else:
                raise ManifestError(
                    f"{where}: the column {name!r} holds strings or numbers, but row number {number} has {value!r}"
                )
            number += 1
        yield pa.array(found, pa.string())


def is_absent(cell: Any) -> bool:
    """Null, an empty string or list, NaN, and lists and dicts of nothing else."""
    if isinstance(cell, list | dict):
        return all(map(is_absent, cell.values() if isinstance(cell, dict) else cell))
    return cell is None or (isinstance(cell, str) and not cell) or (isinstance(cell, float) and cell != cell)


def some(values: Sequence[Any]) -> str:
    """The first few, for messages."""
    return ", ".join(map(str, values[:5])) + (" …" if len(values) > 5 else "")
