"""The manifest: one table with a row an example, out of JSON Lines, CSV or Parquet."""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

RESERVED = ("id", "split", "domain", "group")


class ManifestError(ValueError):
    """The manifest cannot be used as it is; the message says where and what to do."""


class Manifest(NamedTuple):
    """A table that has the string columns ``id, split, domain, group`` (all but ``id`` may be null)."""

    table: pa.Table
    root: Path  # what relative paths in cells are relative to
    path: Path | None  # the file it was read from


def read(path: str | Path) -> Manifest:
    """Read a manifest; paths in its cells are relative to the folder it lies in.

    Args:
        path: a ``.jsonl``, ``.csv`` (UTF-8, comma, header) or ``.parquet`` file. In CSV an empty field is null and a
            column is numeric only where every number survives the round trip (``007`` stays a string).

    Raises:
        ManifestError: the file is missing, empty or malformed, or ids are missing or repeated.
    """
    path = Path(path)
    if path.suffix not in _READERS:
        raise ManifestError(f"{path}: a manifest ends in {', '.join(_READERS)}, not in {path.suffix or 'nothing'!r}")
    if not path.is_file():
        raise ManifestError(_missing(path))
    if path.stat().st_size == 0:
        raise ManifestError(f"{path}: the file is empty")
    table = _READERS[path.suffix](path)
    return Manifest(_finish(table, str(path)), path.parent, path)


def from_rows(rows: Sequence[Mapping[str, Any]], root: str | Path = ".") -> Manifest:
    """A manifest of rows in memory: strings, numbers, bytes, lists and dicts, whatever Arrow holds."""
    return Manifest(_finish(_tabulate(rows, "these rows"), "these rows"), Path(root), None)


def column_of(manifest: Manifest, column: str | Sequence[str]) -> pa.ChunkedArray:
    """A column by name; several as one column of structs, ``{column: value}`` a row.

    Raises:
        ManifestError: there is none; the message has the nearest spelling and all there are.
    """
    names = manifest.table.column_names
    if not isinstance(column, str):
        if not column or len(set(column)) < len(column):
            raise ManifestError(f"a list of columns names one or more, each once; found {list(column)}")
        parts = [column_of(manifest, name) for name in column]
        return pa.chunked_array(pa.table(parts, list(column)).to_struct_array())
    if column not in names:
        near = get_close_matches(column, names, 1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise ManifestError(f"the manifest has no column {column!r}{hint}: it has {', '.join(names)}")
    return manifest.table[column]


def fingerprint(manifest: Manifest) -> str:
    """SHA-256 (hex) of columns and cells, the same for one content in any of the three formats and any column order.

    Bytes in cells count, the contents of files that cells name do not; a column that is null everywhere is no column.
    """
    table = manifest.table
    names = sorted(name for name in table.column_names if table[name].null_count < len(table))
    digest = hashlib.sha256(json.dumps([names, len(table)]).encode())
    for batch in table.select(names).to_batches(max_chunksize=1024):
        for row in batch.to_pylist():
            digest.update(json.dumps([row[name] for name in names], sort_keys=True, default=_plain).encode() + b"\n")
    return digest.hexdigest()


def _plain(value: Any) -> str:
    """What JSON cannot hold, as a string."""
    return f"sha256:{hashlib.sha256(value).hexdigest()}" if isinstance(value, bytes) else str(value)


def _missing(path: Path) -> str:
    if not path.parent.is_dir():
        return f"{path}: there is no folder {path.parent}"
    names = sorted(p.name for p in path.parent.iterdir() if p.suffix in _READERS)
    near = get_close_matches(path.name, names, 1, 0.4) or names[:1]
    hint = f"did you mean {path.parent / near[0]}?" if near else f"{path.parent} has no {', '.join(_READERS)} file at all"
    return f"{path}: there is no such file; {hint}"


def _read_jsonl(path: Path) -> pa.Table:
    rows = []
    for number, line in enumerate(_text(path).split("\n"), 1):  # not splitlines: U+2028 may stand in a JSON string
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ManifestError(f"{path}, line {number}: not JSON ({error.msg}, column {error.colno})") from None
        if not isinstance(row, dict):
            raise ManifestError(f"{path}, line {number}: a line is an object like {{'id': …}}, not a {type(row).__name__}")
        rows.append(row)
    return _tabulate(rows, str(path))


def _read_csv(path: Path) -> pa.Table:
    csv.field_size_limit(1 << 30)  # Python's own limit is 128 KiB a field
    reader = csv.reader(io.StringIO(_text(path), newline=""), strict=True)
    rows = []
    try:
        header = next(reader, [])
        if twice := [name for name, n in Counter(header).items() if n > 1]:
            raise ManifestError(f"{path}, line 1: the column {twice[0]!r} stands there twice")
        for cells in reader:
            if cells and len(cells) != len(header):
                raise ManifestError(f"{path}, line {reader.line_num}: {len(cells)} fields where the header has {len(header)}")
            if cells:
                rows.append(cells)
    except csv.Error as error:
        raise ManifestError(f"{path}, line {reader.line_num}: {error}") from None
    columns = {name: _numbers([row[i] or None for row in rows], name) for i, name in enumerate(header)}
    return pa.table(columns)


def _numbers(cells: list[str | None], name: str) -> pa.Array:
    """Strings as int64 where each is exactly an integer, else as float64 where each is a number, else as strings."""
    if name not in RESERVED:
        for number, dtype in ((int, pa.int64()), (float, pa.float64())):
            try:
                values = [None if cell is None else number(cell) for cell in cells]
                if number is float and not any(_is_padded(cell) for cell in cells):
                    return pa.array(values, dtype)
                if number is int and all(cell is None or str(value) == cell for value, cell in zip(values, cells)):
                    return pa.array(values, dtype)
            except (ValueError, OverflowError):
                continue
    return pa.array(cells, pa.string())


def _is_padded(cell: str | None) -> bool:
    """A code such as 007 or 1_000, or an integer too long for a float: no number."""
    digits = (cell or "").strip().lstrip("+-")
    return "_" in digits or (digits.isdigit() and (digits != str(int(digits)) or len(digits) > 15))


def _read_parquet(path: Path) -> pa.Table:
    try:
        return pq.read_table(path)
    except (pa.ArrowException, OSError) as error:
        raise ManifestError(f"{path}: not a readable Parquet file ({error})") from None


_READERS = {".jsonl": _read_jsonl, ".csv": _read_csv, ".parquet": _read_parquet}


def _text(path: Path) -> str:
    data = path.read_bytes()
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ManifestError(f"{path}, line {line}: not UTF-8 (byte 0x{data[error.start]:02x}); save the file as UTF-8") from None


def _tabulate(rows: Sequence[Mapping[str, Any]], where: str) -> pa.Table:
    columns = {}
    for name in dict.fromkeys(name for row in rows for name in row):  # Table.from_pylist takes the first row's keys alone
        try:
            columns[name] = pa.array([row.get(name) for row in rows])
        except (pa.ArrowException, ValueError, OverflowError) as error:
            kinds = sorted({type(row[name]).__name__ for row in rows if row.get(name) is not None})
            raise ManifestError(
                f"{where}: the column {name!r} mixes or holds what a table cannot ({', '.join(kinds)}): {error}"
            ) from None
    return pa.table(columns)


def _finish(table: pa.Table, where: str) -> pa.Table:
    """The four columns as strings, ids complete and unique."""
    if not len(table):
        raise ManifestError(f"{where}: there are no rows")
    if len(set(table.column_names)) < len(table.column_names):
        raise ManifestError(f"{where}: two columns have one name, among {', '.join(table.column_names)}")
    if "id" not in table.column_names:
        table = table.add_column(0, "id", pa.array([str(i) for i in range(len(table))], pa.string()))
    for name in RESERVED:
        if name not in table.column_names:
            table = table.append_column(name, pa.nulls(len(table), pa.string()))
        column = pa.chunked_array([strings(table[name].to_pylist(), name, where)])
        table = table.set_column(table.column_names.index(name), name, column)
    ids = table["id"].to_pylist()
    if None in ids:
        places = [i for i, value in enumerate(ids) if value is None]
        raise ManifestError(
            f"{where}: {len(places)} rows lack an id (row numbers {some(places)}): give each one, or leave the column out"
        )
    if twice := [value for value, n in Counter(ids).items() if n > 1]:
        raise ManifestError(f"{where}: {len(twice)} ids stand for more than one row: {some(twice)}")
    return table


def strings(values: Iterable[Any], name: str, where: str) -> pa.Array:
    """Cells of a column as strings, null where they are empty.

    Raises:
        ManifestError: a cell is neither string nor number.
    """
    strings: list[str | None] = []
    for number, value in enumerate(values):
        if value is None or value == "" or value != value:  # NaN is how pandas writes a missing number
            strings.append(None)
        elif isinstance(value, str | int | float):
            # 3.0 is how a column of integers with gaps arrives
            strings.append(str(int(value)) if isinstance(value, float) and value.is_integer() else str(value))
        else:
            raise ManifestError(f"{where}: the column {name!r} holds strings or numbers, but row number {number} has {value!r}")
    return pa.array(strings, pa.string())


def some(values: Sequence[Any]) -> str:
    """The first few, for messages."""
    return ", ".join(map(str, values[:5])) + (" …" if len(values) > 5 else "")
