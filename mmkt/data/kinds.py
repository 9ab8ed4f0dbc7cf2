"""Which columns of a manifest hold media, and of what kind."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa

from mmkt.data.columns import cells
from mmkt.data.manifest import RESERVED, Manifest
from mmkt.data.vectors import is_vectors

TEXTS = ("text", "question", "sentence", "caption")
_SUFFIXES = {
    "image": {".jpg", ".jpeg", ".png", ".gif", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm"},
    "audio": {".wav", ".flac", ".ogg", ".opus", ".mp3", ".aiff", ".aif", ".au"},
}
_MAGIC = {
    "image": (b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"BM", b"II*\0", b"MM\0*"),
    "audio": (b"fLaC", b"OggS", b"ID3", b"\xff\xfb", b"\xff\xf3", b"FORM"),
}


def kinds(manifest: Manifest, texts: Iterable[str] = ()) -> dict[str, str]:
    """Guess the media columns and their kinds, from path endings and the first bytes of what is in cells.

    Text columns cannot be told from labels: only those named text, question, sentence or caption (perhaps with a
    number) or in ``texts`` are taken. Lists of floating-point numbers, and lists of lists of numbers, are features; a list
    of whole numbers or strings may be a label.
    """
    found = {}
    for name in manifest.table.column_names:
        if name in RESERVED:
            continue
        if name in texts or name.rstrip("_0123456789") in TEXTS:
            found[name] = "text"
            continue
        if kind := media_kind(manifest.table[name]):
            found[name] = kind
        elif is_vectors(manifest.table[name].type):
            found[name] = "features"
    return found


def media_kind(column: pa.ChunkedArray) -> str | None:
    """The kind, image or audio, of files that one of the first twenty cells of a column looks like."""
    first = islice((cell for cell in cells(column) if cell is not None), 20)
    return next((kind for cell in first if (kind := _kind(cell))), None)


def _kind(cell: Any) -> str | None:
    if isinstance(cell, list):
        return _kind(cell[0]) if cell else None
    if isinstance(cell, dict):
        return _kind(cell.get("bytes") or cell.get("path"))
    if isinstance(cell, str):
        return next((kind for kind, suffixes in _SUFFIXES.items() if Path(cell).suffix.lower() in suffixes), None)
    if isinstance(cell, bytes):
        if cell[:4] == b"RIFF":
            return {b"WAVE": "audio", b"WEBP": "image"}.get(cell[8:12])
        return next((kind for kind, starts in _MAGIC.items() if cell.startswith(starts)), None)
    return None
