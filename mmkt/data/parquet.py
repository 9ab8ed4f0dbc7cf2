"""A Parquet manifest written piece by piece: it may be larger than memory."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

GROUP = 64_000_000  # bytes of a row group: about what is in memory at once


def write(pieces: Iterable[tuple[str, pa.Table]], path: Path) -> None:
    """Write rows as they come; at the end the file is there whole, or as it was before.

    Args:
        pieces: some rows, and the name that their ids start with where ids are made (``train-0``): if there is no column
            ``id``, or it turns out to have nulls or the same twice; it is then kept as ``source_id``.
        path: of the Parquet file.

    Raises:
        ValueError: there are no rows, or their columns change on the way.
    """
    counts: Counter[str] = Counter()
    given, seen = 0, set()  # rows that come with an id, and their different ones

    def identified() -> Iterator[pa.Table]:
        nonlocal given
        for name, table in pieces:
            if "id" in table.column_names:
                given += len(table)
                seen.update(table["id"].drop_null().to_pylist())
            else:
                made = [f"{name}-{counts[name] + k}" for k in range(len(table))]
                table = table.add_column(0, "id", pa.array(made, pa.string()))
            counts[name] += len(table)
            yield table

    first, second = (path.with_name(f"{path.name}.{os.getpid()}{more}") for more in ("", ".ids"))
    try:
        _store(identified(), first)
        if not counts.total():
            raise ValueError("there are no rows")
        if len(seen) < given:
            _store(_identified_anew(first, [f"{name}-{k}" for name, n in counts.items() for k in range(n)]), second)
            second.replace(first)
        first.replace(path)
    finally:
        first.unlink(missing_ok=True)
        second.unlink(missing_ok=True)


def _identified_anew(path: Path, ids: list[str]) -> Iterator[pa.Table]:
    first = 0
    with pq.ParquetFile(path) as file:
        if "source_id" in file.schema_arrow.names:
            raise ValueError("its ids are not unique, and it has a column source_id already: leave one of them out")
        for k in range(file.num_row_groups):
            table = file.read_row_group(k)
            table = table.rename_columns(["source_id" if name == "id" else name for name in table.column_names])
            yield table.add_column(0, "id", pa.array(ids[first : first + len(table)], pa.string()))
            first += len(table)


def _store(tables: Iterable[pa.Table], path: Path) -> None:
    """Row group by row group, all with the first table's schema."""
    writer: pq.ParquetWriter | None = None
    held: list[pa.Table] = []
    try:
        for table in tables:
            writer = writer or pq.ParquetWriter(path, table.schema)
            held.append(_fit(table, writer.schema))
            if sum(part.nbytes for part in held) >= GROUP:
                writer.write_table(pa.concat_tables(held))
                held = []
        if writer and held:
            writer.write_table(pa.concat_tables(held))
    finally:
        if writer:
            writer.close()


def _fit(table: pa.Table, schema: pa.Schema) -> pa.Table:
    if other := sorted(set(schema.names) ^ set(table.column_names)):
        raise ValueError(f"some rows have the columns {', '.join(other)}, and others do not")
    try:
        return table.select(schema.names).cast(schema)
    except pa.ArrowException as error:
        raise ValueError(f"some rows are unlike those before them: {error}") from None
