"""Where a cell's bytes come from: the cell itself, a file, or a member of a zip file."""

from __future__ import annotations

import lzma
import os
import zipfile
import zlib
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any


class MediaError(ValueError):
    """A cell's file cannot be had; the message names it."""


def fetch(cell: Any, root: str | Path) -> bytes:
    """The bytes that a cell stands for.

    Args:
        cell: bytes; a dict with ``bytes`` or ``path``, as the datasets library stores media; or a path, absolute or
            relative to ``root``, where ``pack.zip::name`` is a member of a zip file.
        root: the manifest's folder.

    Raises:
        MediaError: no such file or member, an unsafe member name, or a cell of another type.
    """
    cell = _source(cell)
    if isinstance(cell, bytes):
        return cell
    try:
        if "::" not in cell:
            return Path(root, cell).read_bytes()
        archive, member = _open(cell, root)
        return archive.read(member)
    except OSError as error:
        hint = " (in a manifest folders are parted by /, not by \\)" if "\\" in cell else ""
        raise MediaError(f"cannot read the file {Path(root, cell)}: {error.strerror or error}{hint}") from None
    except (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, RuntimeError) as error:  # RuntimeError: encrypted
        raise MediaError(f"cannot read {cell} in {root}: {error}") from None


def size(cell: Any, root: str | Path) -> int:
    """Bytes of a cell without reading it, for grouping by length: a list's sum, and 0 for null.

    Raises:
        MediaError: as ``fetch``.
    """
    if cell is None:
        return 0
    if isinstance(cell, list):
        return sum(size(item, root) for item in cell)
    cell = _source(cell)
    if isinstance(cell, bytes):
        return len(cell)
    try:
        if "::" not in cell:
            return Path(root, cell).stat().st_size
        archive, member = _open(cell, root)
        return archive.getinfo(member).file_size
    except OSError as error:
        raise MediaError(f"cannot read the file {Path(root, cell)}: {error.strerror or error}") from None
    except zipfile.BadZipFile as error:
        raise MediaError(f"cannot read {cell} in {root}: {error}") from None


def _source(cell: Any) -> bytes | str:
    """The cell's bytes, or its path."""
    if isinstance(cell, Mapping):
        if not {"bytes", "path"} & cell.keys():
            raise MediaError(f"a cell that is a dict has 'bytes' or 'path', not {sorted(cell)}")
        # beside bytes, a path is only the name that the file once had
        cell = cell["bytes"] if cell.get("bytes") is not None else cell.get("path")
    if isinstance(cell, bytes | bytearray | memoryview):
        return bytes(cell)
    if isinstance(cell, str | os.PathLike) and os.fspath(cell):
        return os.fspath(cell)
    raise MediaError(f"a media cell holds bytes, a path or a dict of them, not {type(cell).__name__} {str(cell)[:40]!r}")


def _open(cell: str, root: str | Path) -> tuple[zipfile.ZipFile, str]:
    """The open zip file and the member's name, which is in it."""
    pack, member = cell.split("::", 1)
    name = PurePosixPath(member.replace("\\", "/"))
    if name.is_absolute() or ".." in name.parts or ":" in (name.parts or ("",))[0]:
        raise MediaError(f"{cell}: a member's name must stay inside its zip file (no '..', no absolute path)")
    path = Path(root, pack)
    archive = _archive(str(path), path.stat().st_mtime_ns, os.getpid())
    if member not in archive.NameToInfo:
        raise MediaError(f"{path} has no member {member!r}")
    return archive, member


@lru_cache(maxsize=8)
def _archive(path: str, _mtime: int, _pid: int) -> zipfile.ZipFile:
    """Open zip files, each process its own: a forked worker that shared a handle would share its file position."""
    return zipfile.ZipFile(path)
