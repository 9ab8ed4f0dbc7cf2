"""The manifest: one table with a row an example, out of JSON Lines, CSV, Parquet or Arrow."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mmkt.data.columns import slices, some, strings
from mmkt.data.formats import RESERVED, read_arrow, read_csv, read_jsonl, read_parquet, tabulate
from mmkt.data.mapped import ManifestError, release

_READERS = {".jsonl": read_jsonl, ".csv": read_csv, ".parquet": read_parquet, ".arrow": read_arrow}


class Manifest(NamedTuple):
    """A table that has the string columns ``id, split, domain, group`` (all but ``id`` may be null)."""

    table: pa.Table
    root: Path  # what relative paths in cells are relative to
    path: Path | None  # the file it was read from


def read(path: str | Path) -> Manifest:
    """Read a manifest; paths in its cells are relative to the folder it lies in.

    Its rows lie in a file that is mapped into memory: an ``.arrow`` file itself, of the other formats a temporary one.

    Args:
        path: a ``.jsonl``, ``.csv`` (UTF-8, comma, header), ``.parquet`` or ``.arrow`` (Arrow IPC) file. In CSV an empty
            field is null and a column is numeric only where every number survives the round trip (``007`` stays a string).

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
    return Manifest(_finish(tabulate(rows, "these rows"), "these rows"), Path(root), None)


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
        own = [n for n in names if n not in RESERVED or manifest.table[n].null_count < len(manifest.table)]
        near = get_close_matches(column, own, 1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise ManifestError(f"the manifest has no column {column!r}{hint}: it has {', '.join(own)}")
    return manifest.table[column]


def fingerprint(manifest: Manifest) -> str:
    """SHA-256 (hex) of columns and cells, the same for one content in any format and any column order.

    Bytes in cells count, the contents of files that cells name do not; a column that is null everywhere is no column.
    """
    table = manifest.table
    names = sorted(name for name in table.column_names if table[name].null_count < len(table))
    digest = hashlib.sha256(json.dumps([names, len(table)]).encode())
    for part in slices(table.select(names)):
        for column in part.columns:
            for data in _canonical(column.combine_chunks()):
                digest.update(data)
    return digest.hexdigest()


def _canonical(cells: pa.Array) -> Iterator[Any]:
    """Buffers that are equal where cells are: which are null, and the values at the greatest width of their kind."""
    kind = cells.type
    yield np.packbits(cells.is_valid().to_numpy(zero_copy_only=False))
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        words = cells.fill_null("")
        yield b"string"
        yield pc.binary_length(words).cast(pa.int64()).to_numpy()
        yield "".join(words.to_pylist()).encode()
    elif pa.types.is_integer(kind) and not (kind == pa.uint64() and (pc.max(cells).as_py() or 0) >= 1 << 63):
        yield b"integer"
        yield cells.cast(pa.int64()).fill_null(0).to_numpy()
    elif pa.types.is_floating(kind):
        yield b"floating"
        yield cells.cast(pa.float64()).fill_null(0).to_numpy()
    else:
        yield json.dumps(cells.to_pylist(), sort_keys=True, default=_plain).encode()


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


def _finish(table: pa.Table, where: str) -> pa.Table:
    """The four columns as strings, ids complete and unique."""
    if not len(table):
        raise ManifestError(f"{where}: there are no rows")
    if len(set(table.column_names)) < len(table.column_names):
        raise ManifestError(f"{where}: two columns have one name, among {', '.join(table.column_names)}")
    if "id" not in table.column_names:
        table = table.add_column(0, "id", pa.array(np.arange(len(table))).cast(pa.string()))
    for name in RESERVED:
        if name not in table.column_names:
            table = table.append_column(name, pa.nulls(len(table), pa.string()))
        table = table.set_column(table.column_names.index(name), name, strings(table[name], name, where))
    ids = table["id"]
    if ids.null_count:
        places = np.flatnonzero(ids.is_null()).tolist()
        raise ManifestError(
            f"{where}: {len(places)} rows lack an id (row numbers {some(places)}): give each one, or leave the column out"
        )
    if pc.count_distinct(ids).as_py() < len(ids):
        counts = pc.value_counts(ids)
        twice = counts.field("values").filter(pc.greater(counts.field("counts"), 1))
        raise ManifestError(f"{where}: {len(twice)} ids stand for more than one row: {some(twice.to_pylist())}")
    release()
    return table
