"""The formats of a manifest: JSON Lines, CSV and Parquet, read a few thousand rows at a time into a mapped file, and Arrow."""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from mmkt.data.columns import ROWS, slices
from mmkt.data.mapped import ManifestError, spill, table_of

RESERVED = ("id", "split", "domain", "group")
BATCH = 32_000_000  # bytes of a Parquet file that are decoded at one time


def read_jsonl(path: Path) -> pa.Table:
    """One object a line."""
    try:
        tables = spill(_typed(_chunks(_objects(path))))
        if len(tables) > 1:  # later rows had more columns or wider types
            schema = tables[-1].schema
            parts = (part for table in tables for part in slices(table))
            tables = spill(batch for part in parts for batch in _as(part, schema).to_batches())
    except _Mixed as error:
        kinds = sorted({type(row[error.name]).__name__ for row in _objects(path) if row.get(error.name) is not None})
        raise ManifestError(_mixed(str(path), error, kinds)) from None
    except UnicodeDecodeError:
        raise _not_utf8(path) from None
    return tables[0] if tables else pa.table({})


def _objects(path: Path) -> Iterator[dict[str, Any]]:
    # newline="\n": U+2028 and carriage returns may stand in a JSON string
    with path.open(encoding="utf-8-sig", newline="\n") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise ManifestError(f"{path}, line {number}: not JSON ({error.msg}, column {error.colno})") from None
            if not isinstance(row, dict):
                raise ManifestError(f"{path}, line {number}: a line is an object like {{'id': …}}, not a {type(row).__name__}")
            yield row


class _Mixed(ValueError):
    """A column's cells have no type in common."""

    def __init__(self, name: str, why: Exception):
        super().__init__(str(why))
        self.name = name


def _mixed(where: str, error: _Mixed, kinds: Sequence[str]) -> str:
    return f"{where}: the column {error.name!r} mixes or holds what a table cannot ({', '.join(kinds)}): {error}"


def _typed(chunks: Iterable[Sequence[Mapping[str, Any]]]) -> Iterator[pa.RecordBatch]:
    """Chunks of rows with the columns and types of all rows so far."""
    schema = pa.schema([])
    for rows in chunks:
        table = _table(rows)
        schema = _unified(schema, table.schema)
        yield from (table if table.schema == schema else _table(rows, schema)).to_batches()


def _table(rows: Sequence[Mapping[str, Any]], schema: pa.Schema | None = None) -> pa.Table:
    columns = {}
    # Table.from_pylist takes the first row's keys alone; rows without any key are rows all the same
    names = schema.names if schema else dict.fromkeys(name for row in rows for name in row) or ["split"]
    for name in names:
        try:
            columns[name] = pa.array([row.get(name) for row in rows], schema.field(name).type if schema else None)
        except (pa.ArrowException, ValueError, OverflowError) as error:
            raise _Mixed(name, error) from None
    return pa.table(columns)


def _unified(one: pa.Schema, two: pa.Schema) -> pa.Schema:
    """The columns of both, integers and floating point as floating point."""
    for name in set(one.names) & set(two.names):
        try:
            pa.unify_schemas([pa.schema([x.field(name)]) for x in (one, two)], promote_options="permissive")
        except pa.ArrowException as error:
            raise _Mixed(name, error) from None
    return pa.unify_schemas([one, two], promote_options="permissive")


def _as(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """A few rows with more columns or wider types."""
    columns = {}
    for field in schema:
        known = table[field.name] if field.name in table.column_names else pa.nulls(len(table))
        try:
            columns[field.name] = known if known.type == field.type else pa.array(known.to_pylist(), field.type)
        except (pa.ArrowException, ValueError, OverflowError) as error:
            raise _Mixed(field.name, error) from None
    return pa.table(columns)


def tabulate(rows: Sequence[Mapping[str, Any]], where: str) -> pa.Table:
    """Rows in memory.

    Raises:
        ManifestError: a column mixes types, or holds what a table cannot.
    """
    try:
        return _table(rows) if rows else pa.table({})
    except _Mixed as error:
        kinds = sorted({type(row[error.name]).__name__ for row in rows if row.get(error.name) is not None})
        raise ManifestError(_mixed(where, error, kinds)) from None


def read_csv(path: Path) -> pa.Table:
    """UTF-8, comma, header; first all as strings, then as numbers what is numbers in every row."""
    numbers: dict[str, list[Callable]] = {}
    try:
        tables = spill(_strings(path, numbers))
    except UnicodeDecodeError:
        raise _not_utf8(path) from None
    if not tables:
        return pa.table({})
    kinds = {name: left[0] for name, left in numbers.items() if left}
    return spill(batch for part in slices(tables[0]) for batch in _numbered(part, kinds))[0] if kinds else tables[0]


def _strings(path: Path, numbers: dict[str, list[Callable]]) -> Iterator[pa.RecordBatch]:
    """Rows as strings, null where empty; ``numbers`` is told of each column whether int, then float, hold all its cells."""
    csv.field_size_limit(1 << 30)  # Python's own limit is 128 KiB a field
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, strict=True)
        try:
            header = next(reader, [])
            if twice := [name for name, n in Counter(header).items() if n > 1]:
                raise ManifestError(f"{path}, line 1: the column {twice[0]!r} stands there twice")
            numbers |= {name: [] if name in RESERVED else [int, float] for name in header}
            for rows in _chunks(_full(reader, len(header), path)):
                columns = {name: [row[i] or None for row in rows] for i, name in enumerate(header)}
                for name, cells in columns.items():
                    numbers[name] = [number for number in numbers[name] if _holds(number, cells)]
                yield from pa.table({name: pa.array(cells, pa.string()) for name, cells in columns.items()}).to_batches()
        except csv.Error as error:
            raise ManifestError(f"{path}, line {reader.line_num}: {error}") from None


def _full(reader: Any, width: int, path: Path) -> Iterator[list[str]]:
    for cells in reader:
        if cells and len(cells) != width:
            raise ManifestError(f"{path}, line {reader.line_num}: {len(cells)} fields where the header has {width}")
        if cells:
            yield cells


def _holds(number: Callable, cells: Sequence[str | None]) -> bool:
    """Whether each cell is exactly an int64, or each a floating-point number."""
    try:
        if number is int:
            pa.array([None if cell is None else int(cell) for cell in cells], pa.int64())
            return all(cell is None or str(int(cell)) == cell for cell in cells)
        return not any(cell is not None and (float(cell) is None or _is_padded(cell)) for cell in cells)
    except (ValueError, OverflowError):
        return False


def _is_padded(cell: str) -> bool:
    """A code such as 007 or 1_000, or an integer too long for a float: no number."""
    digits = cell.strip().lstrip("+-")
    return "_" in digits or (digits.isdigit() and (digits != str(int(digits)) or len(digits) > 15))


def _numbered(table: pa.Table, kinds: Mapping[str, Callable]) -> list[pa.RecordBatch]:
    for name, number in kinds.items():
        values = [None if cell is None else number(cell) for cell in table[name].to_pylist()]
        column = pa.array(values, pa.int64() if number is int else pa.float64())
        table = table.set_column(table.column_names.index(name), name, column)
    return table.combine_chunks().to_batches()


def read_parquet(path: Path) -> pa.Table:
    """Batch by batch; columns of dictionaries (pandas' categories) as their values."""
    try:
        file = pq.ParquetFile(path, memory_map=True)
        size = sum(file.metadata.row_group(k).total_byte_size for k in range(file.num_row_groups))
        rows = max(1, min(ROWS, BATCH * file.metadata.num_rows // max(1, size)))
        tables = spill(_plain(batch) for batch in file.iter_batches(rows))
    except (pa.ArrowException, OSError) as error:
        raise ManifestError(f"{path}: not a readable Parquet file ({error})") from None
    return tables[0] if tables else pa.table({})


def _plain(batch: pa.RecordBatch) -> pa.RecordBatch:
    columns = [x.dictionary_decode() if pa.types.is_dictionary(x.type) else x for x in batch.columns]
    return pa.RecordBatch.from_arrays(columns, batch.schema.names)


def read_arrow(path: Path) -> pa.Table:
    """Mapped where it lies, if it has no dictionaries."""
    try:
        with path.open("rb") as file:
            table = table_of(file)
        if not any(pa.types.is_dictionary(kind) for kind in table.schema.types):
            return table
        return spill(_plain(batch) for batch in table.to_batches())[0]
    except (pa.ArrowException, OSError, ValueError) as error:
        raise ManifestError(f"{path}: not a readable Arrow IPC file ({error})") from None


def _chunks(rows: Iterator[Any]) -> Iterator[list[Any]]:
    while part := list(islice(rows, ROWS)):
        yield part


def _not_utf8(path: Path) -> ManifestError:
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                line.decode()
            except UnicodeDecodeError as error:
                what = f"not UTF-8 (byte 0x{line[error.start]:02x}); save the file as UTF-8"
                return ManifestError(f"{path}, line {number}: {what}")
    raise AssertionError("it is UTF-8")
