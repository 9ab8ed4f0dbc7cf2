"""What a table's encoder keeps of a column of the training split."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc


def learned(column: pa.ChunkedArray, chosen: bool, most: int) -> dict[str, Any]:
    """What is kept of one column; what is missing, or too large for float32 (reading refuses it), does not count.

    Args:
        column: of the training split.
        chosen: whether numbers are read as categories.
        most: different categories that are accepted.

    Returns:
        ``mean``, ``std`` (0 of a constant column) and ``count``; or ``values``, the most frequent first, and ``counts``.

    Raises:
        ValueError: it can't be used; the message goes on after the column's name.
    """
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    kind = column.type
    number = pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)
    string = pa.types.is_string(kind) or pa.types.is_large_string(kind)
    if not (number or string or pa.types.is_boolean(kind) or pa.types.is_null(kind)):
        raise ValueError(f"holds {kind}; a table's columns hold numbers, strings, true and false")
    column = column.drop_null()
    if number and (not chosen or not pa.types.is_integer(kind)):
        column = column.cast(pa.float64(), safe=False)
        column = column.filter(pc.is_finite(column.cast(pa.float32(), safe=False)))
    elif string:
        column = column.filter(pc.not_equal(column, ""))
    if not len(column):
        raise ValueError("has no value in the whole training split: leave it out")
    return _counted(column, most) if chosen or not number else _standardised(column)


def _standardised(column: pa.ChunkedArray) -> dict[str, Any]:
    mean, ends = pc.mean(column).as_py(), pc.min_max(column).as_py()
    std = 0.0 if ends["min"] == ends["max"] else pc.stddev(column).as_py()
    if std and not max(abs(mean) * 1e-5, 1e-30) < std < 1e30:  # inputs are float32
        raise ValueError(
            f"has the mean {mean:g} and the standard deviation {std:g}, which float32 cannot hold well: subtract or divide by "
            f"a constant, or leave it out"
        )
    return {"mean": mean, "std": std, "count": len(column)}


def _counted(column: pa.ChunkedArray, most: int) -> dict[str, Any]:
    different = column.value_counts()
    if len(different) > most:
        raise ValueError(
            f"has {len(different):,} different values, such as {name_of(different[0]['values'].as_py())!r}: more than "
            f"max_categories: {most}. Leave it out, give it to a text encoder, raise max_categories; or mend the cells that are "
            f"not numbers, if it should hold numbers"
        )
    counts: Counter[str] = Counter()
    for pair in different.to_pylist():
        counts[name_of(pair["values"])] += pair["counts"]
    values = sorted(counts, key=lambda value: (-counts[value], value))
    return {"values": values, "counts": [counts[value] for value in values]}


def name_of(value: Any) -> str:
    """A category as its vocabulary spells it: true, 3 (also for 3.0), 0.5, red."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return value
    return str(int(value)) if value == int(value) else f"{float(value):.6g}"
