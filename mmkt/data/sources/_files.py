"""Finding a set's files, holding rows back for validation, and writing a manifest: what sources share."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image
from sklearn.model_selection import train_test_split

from mmkt.data import parquet


def find(source: Path | None, name: str, files: Sequence[str], below: str | None = None) -> Path:
    """The folder that holds a set's files: the one given, the set's own below it, or the set's below MMKT_DATA.

    Args:
        source: the folder that ``--from`` names, or None.
        name: of the source.
        files: that have to be in it.
        below: what the set's own folder is called; by default as the source.

    Raises:
        ValueError: no folder was named, or a file is missing.
    """
    given = source or (Path(os.environ["MMKT_DATA"]) if os.environ.get("MMKT_DATA") else None)
    if given is None:
        raise ValueError(
            f"{name} reads a folder: mmkt data prepare {name} --from DIR (or data.origin=DIR, or the variable MMKT_DATA)"
        )
    own = given / (below or name)
    folder = own if own.is_dir() else given
    for file in files:
        if not (folder / file).is_file():
            raise ValueError(f"{folder} has no file {file}: give the folder that holds the {name} set")
    return folder


def hold_back(labels: Sequence[Any], share: float, seed: int) -> np.ndarray:
    """(n,) bool: a share of the rows, drawn by seed, in which every class has its share."""
    held = np.zeros(len(labels), dtype=bool)
    held[train_test_split(np.arange(len(labels)), test_size=share, random_state=seed, stratify=labels)[1]] = True
    return held


def png(levels: np.ndarray) -> bytes:
    """A grey picture (H, W) of uint8 as a file's bytes."""
    stream = io.BytesIO()
    Image.fromarray(levels).save(stream, "PNG")
    return stream.getvalue()


def write(rows: Iterator[Mapping[str, Any]] | Sequence[Mapping[str, Any]], out: Path) -> Path:
    """``manifest.parquet`` in a folder, replaced in one step; returns its path."""
    out.mkdir(parents=True, exist_ok=True)
    parquet.write([("row", pa.Table.from_pylist(list(rows)))], out / "manifest.parquet")
    return out / "manifest.parquet"
