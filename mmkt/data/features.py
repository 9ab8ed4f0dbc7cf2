"""Tables of the datasets library as a manifest has them: files as bytes, classes by name, a column a field."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mmkt.data.manifest import ManifestError

Read = Callable[[str], bytes]  # the bytes of a file that a cell names


def flat(table: pa.Table, features: Mapping[str, Any], read: Read) -> dict[str, pa.Array]:
    """Plain columns.

    Pictures, sounds and other files are dicts of ``bytes`` and ``path``, the path being no more than the file's name;
    nothing is decoded. Classes are strings. The fields of a dict (of a translation, say) are columns of their own:
    ``translation.en``. Lists stay lists, arrays become lists of lists, JSON is text.

    Args:
        table: n rows, as they are stored.
        features: the table's features by column, of the datasets library.
        read: called for cells that have a path and no bytes.

    Raises:
        ManifestError: a class number has no name.
    """
    found: dict[str, pa.Array] = {}
    for name, feature in features.items():
        found |= _column(name, table[name].combine_chunks(), feature, read)
    return found


def _column(name: str, array: pa.Array, feature: Any, read: Read) -> dict[str, pa.Array]:
    if not _is_dict(array.type):
        return {name: _plain(name, array, feature, read)}
    found: dict[str, pa.Array] = {}
    for field in array.type.names:
        inside = feature if isinstance(feature, dict) else {}
        found |= _column(f"{name}.{field}", pc.struct_field(array, field), inside.get(field), read)
    return found


def _plain(name: str, array: pa.Array, feature: Any, read: Read) -> pa.Array:
    """One column (or what is inside its lists) without the library's types; ``feature`` is None where it says no more."""
    kind = array.type
    if isinstance(kind, pa.BaseExtensionType):
        return array.storage
    if _is_file(kind):
        return _files(array, read)
    if _is_dict(kind):
        inside = feature if isinstance(feature, dict) else {}
        parts = [_plain(name, pc.struct_field(array, field), inside.get(field), read) for field in kind.names]
        return pa.StructArray.from_arrays(parts, kind.names, mask=array.is_null())
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        inner = feature[0] if isinstance(feature, list) else getattr(feature, "feature", None)
        items = _plain(name, array.flatten(), inner, read)  # those of null lists are left out
        lengths = np.asarray(pc.fill_null(pc.list_value_length(array), 0), dtype=np.int64)
        offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]), pa.int32())
        return pa.ListArray.from_arrays(offsets, items, mask=array.is_null())
    if hasattr(feature, "int2str"):  # a ClassLabel
        return _named(name, array, feature.names)
    return array


def _named(name: str, array: pa.Array, names: list[str]) -> pa.Array:
    """Class numbers as names; −1 is how the library marks rows without a label."""
    most = pc.max(array).as_py()
    if most is not None and most >= len(names):
        raise ManifestError(f"the column {name!r} has the class {most}, and names for 0 to {len(names) - 1} alone")
    numbers = pc.if_else(pc.less(array, 0), None, array)
    return pa.array(names, pa.string()).take(numbers)


def _files(array: pa.Array, read: Read) -> pa.Array:
    data, paths = pc.struct_field(array, "bytes"), pc.struct_field(array, "path").to_pylist()
    absent = data.is_null().to_pylist()
    if any(missing and path for missing, path in zip(absent, paths)):
        cells = zip(data.to_pylist(), paths)
        data = pa.array([read(path) if cell is None and path else cell for cell, path in cells], pa.binary())
    names = pa.array([path and path.split("::")[0].replace("\\", "/").rsplit("/", 1)[-1] for path in paths], pa.string())
    return pa.StructArray.from_arrays([data, names], ["bytes", "path"], mask=data.is_null())


def _is_file(kind: pa.DataType) -> bool:
    return pa.types.is_struct(kind) and set(kind.names) == {"bytes", "path"}


def _is_dict(kind: pa.DataType) -> bool:
    return pa.types.is_struct(kind) and not _is_file(kind)
