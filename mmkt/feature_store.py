"""Features on disk: rows' files mapped into memory, and what a cache holds (see ``feature_cache``)."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from mmkt import checkpoint, distributed, report
from mmkt.report import Sheet
from mmkt.types import Encoded


class Stored(NamedTuple):
    """A folder of rows, mapped."""

    contents: np.ndarray  # (N, 32)
    pooled: Tensor
    tokens: Tensor
    mask: Tensor
    length: Tensor
    start: Tensor

    def row(self, k: int) -> Encoded:
        """The k-th, as a batch of one."""
        span = slice(int(self.start[k]), int(self.start[k] + self.length[k]))
        return Encoded(self.tokens[None, span], self.mask[None, span], self.pooled[k : k + 1], torch.ones(1, dtype=torch.bool))


def opened(folder: Path) -> Stored | None:
    """A folder of rows; None where it is damaged, which is said."""
    try:
        with safe_open(folder / "index.safetensors", "pt") as tensors:
            found = {name: tensors.get_tensor(name) for name in ("contents", "pooled", "mask", "length")}
        pooled, size = found["pooled"], (folder / "tokens.bin").stat().st_size
        shape = int(found["length"].sum()), pooled.shape[1]
        if size != shape[0] * shape[1] * pooled.element_size():
            raise ValueError(f"tokens.bin has {size} bytes, not {shape[0] * shape[1] * pooled.element_size()}")
        tokens = torch.from_file(str(folder / "tokens.bin"), False, shape[0] * shape[1], dtype=pooled.dtype).view(shape)
    except (SafetensorError, OSError, ValueError) as error:
        if folder.exists():
            distributed.say(f"{folder} is damaged ({error}), and is made again")
        return None
    start = found["length"].cumsum(0) - found["length"]
    return Stored(found["contents"].numpy(), pooled, tokens, found["mask"], found["length"], start)


def stored_in(home: Path) -> Iterator[Stored]:
    """Those that are whole."""
    for folder in _folders(home):
        if (file := opened(folder)) is not None:
            yield file


def _folders(home: Path) -> list[Path]:
    """Those that are whole; one that begins with a dot is being written, or was when its process was killed."""
    return sorted(folder for folder in home.glob("[!.]*/"))


class Entry(NamedTuple):
    """Features of one encoder in a cache."""

    key: str
    modality: str
    encoder: str
    rows: int
    bytes: int


def entries(folder: Path) -> list[Entry]:
    """What a cache holds, the largest first.

    Raises:
        ValueError: there is no such folder.
    """
    if not folder.is_dir():
        raise ValueError(f"there is no cache {folder}: name the folder that data.features names")
    found = []
    for home in folder.iterdir():
        if (home / "about.json").is_file():
            about = checkpoint.read_json(home / "about.json")
            rows = sum(len(file.contents) for file in stored_in(home))
            size = sum(file.stat().st_size for file in home.rglob("*") if file.is_file())
            spec = about["encoder"]
            found.append(Entry(home.name, about["modality"], f"{spec['name']} {spec.get('model') or ''}".strip(), rows, size))
    return sorted(found, key=lambda entry: -entry.bytes)


def sheet(found: Sequence[Entry], title: str) -> Sheet:
    """As a table."""
    columns = {"key": [e.key for e in found], "modality": [e.modality for e in found], "encoder": [e.encoder for e in found]}
    numbers = {"rows": [f"{e.rows:,}" for e in found], "MB": [f"{e.bytes / 1e6:.1f}" for e in found]}
    return report.sheet(f"{title}: {sum(e.bytes for e in found) / 1e6:.1f} MB", columns, numbers)


def clear(folder: Path, keys: Sequence[str] = ()) -> list[Entry]:
    """Remove features: of some encoders, or all. Returns what was removed.

    Raises:
        ValueError: there is no such folder, or no such key in it.
    """
    every = entries(folder)
    for key in keys:
        if not any(entry.key.startswith(key) for entry in every):
            raise ValueError(f"{folder} has no features {key!r}; it has {', '.join(e.key for e in every) or 'none'}")
    gone = [entry for entry in every if not keys or any(entry.key.startswith(key) for key in keys)]
    for entry in gone:
        shutil.rmtree(folder / entry.key)
    return gone
