"""What encoders that rest make of rows: computed once, kept in files that are mapped into memory, read by every run.

A folder holds an encoder's features: ``KEY/ROWS/{index.safetensors, tokens.bin}`` and ``KEY/about.json``. KEY is a hash of
settings, weights, tokenizer, code and versions; ROWS one of the rows' contents. So nothing is stale: what has changed has
another key. A folder of rows is written whole or not at all, so processes that fill one cache leave it right.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from mmkt import checkpoint, distributed
from mmkt.data import media
from mmkt.data.columns import is_absent
from mmkt.data.rows import Rows, items_of
from mmkt.feature_maker import CHUNK, SMALL, Source, write
from mmkt.feature_store import Stored, stored_in
from mmkt.types import Encoded, Processor

MEDIA = ("image", "audio")
PACKAGES = (
    *("mmkt", "torch", "torchaudio", "torchvision", "transformers", "tokenizers", "timm", "peft"),
    *("safetensors", "numpy", "pillow", "soundfile", "scipy"),
)
ROOMS = ("encoders", "layers", "adapters", "data")  # whose code makes features
HEX = 20  # digits of a key, of the 64 of its hash


class Features(NamedTuple):
    """One modality's, of the rows of a manifest that were asked for."""

    place: Tensor  # (rows of the manifest,) long: where a row's features are; −1: it lacks the modality, or was not asked for
    pooled: Tensor  # (N, W)
    tokens: Tensor  # (T, W): of all N one after the other
    mask: Tensor  # (T,) bool
    start: Tensor  # (N,) long: a row's first token
    length: Tensor  # (N,) long: how many it has
    asked: Tensor  # (rows of the manifest,) bool

    def take(self, rows: Tensor, there: Tensor, whole: bool) -> Encoded:
        """Features of a batch of rows.

        Args:
            rows: (B,) long, of the manifest.
            there: (B,) bool, which of them keep the modality.
            whole: tokens too; otherwise the summary is the only one.
        """
        place = self.place[rows].clamp(min=0)
        pooled = self.pooled[place]
        if not whole:
            return Encoded.of(pooled, there)
        start, length = self.start[place], self.length[place] * there
        steps = torch.arange(int(length.max()))
        real = steps < length[:, None]  # (B, L)
        index = (start[:, None] + steps).where(real, start[:, None])
        mask = self.mask[index] & real
        return Encoded(self.tokens[index] * mask[..., None], mask, pooled, there)


def key_of(source: Source) -> tuple[str, dict[str, Any]]:
    """What features depend on beside the rows: its hash, and in words."""
    weights = {
        name: checkpoint.digest(state, state.__getitem__)
        for name, module in (("own", source.encoder), ("borrowed", source.lender))
        if module is not None
        for state in [module.state_dict()]
    }
    with tempfile.TemporaryDirectory() as folder:
        source.encoder.save_assets(Path(folder))
        assets = _files(Path(folder))
    about = {
        "encoder": dict(source.spec),
        "weights": weights,
        "assets": assets,
        "vocabulary": hashlib.sha256(json.dumps(getattr(source.encoder, "vocabulary", None)).encode()).hexdigest(),
        "code": _code(type(source.encoder), type(source.rows.processors[source.modality])),
        "versions": {name: metadata.version(name) for name in PACKAGES},
        "device": next((p.device.type for p in source.encoder.parameters()), "cpu"),
        "precision": source.precision,
        "chunk": [CHUNK, SMALL],
    }
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:HEX], about


def _files(folder: Path) -> dict[str, str]:
    return {
        str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }


def _code(*classes: type) -> str:
    """Of everything here that turns a cell into features, and of the package that a part from elsewhere lies in."""
    home = Path(__file__).parent
    files = {file for room in ROOMS for file in (home / room).rglob("*.py")}
    files |= {home / "space.py", home / "pretrained.py", home / "feature_maker.py"}
    for cls in classes:
        lies = Path(inspect.getfile(cls))
        if home not in lies.parents:  # PACKAGE/encoders/x.py
            files |= set(lies.parent.parent.rglob("*.py")) if lies.parent.name == "encoders" else {lies}
    found = hashlib.sha256()
    for file in sorted(files, key=lambda file: (file.name, str(file))):
        found.update(file.read_bytes())
    return found.hexdigest()


# ---------------------------------------------------------------- rows


def contents(rows: Rows, modality: str, which: np.ndarray) -> np.ndarray:
    """SHA-256 of what each row holds of a modality, (n, 32) uint8; zeros where it lacks it.

    Raises:
        ValueError: a cell's file cannot be had.
    """
    found, processor = np.zeros((len(which), 32), dtype=np.uint8), rows.processors[modality]
    column = rows.cells[modality]
    for k, row in enumerate(which.tolist()):
        cell = column[row].as_py()
        if not is_absent(cell):
            try:
                found[k] = np.frombuffer(_content(cell, processor, rows.root), dtype=np.uint8)
            except media.MediaError as error:
                where = (
                    f"row {rows.ids[row].as_py()!r}, column {rows.places[modality]!r}" if rows.ids is not None else f"row {row}"
                )
                raise media.MediaError(f"{where}: {error}") from None
    return found


def _content(cell: Any, processor: Processor, root: Path) -> bytes:
    digest = hashlib.sha256(processor.kind.encode())
    for item in items_of(cell, processor):
        if processor.kind in MEDIA:
            parts = item if isinstance(item, list) else [item]
            for part in parts:
                data = media.fetch(part, root)
                digest.update(f"{len(parts)} {len(data)} ".encode())
                digest.update(data)
        else:
            digest.update(json.dumps(item, sort_keys=True, default=str).encode() + b"\n")
    return digest.digest()


# ---------------------------------------------------------------- reading


def features(
    folder: Path,
    source: Source,
    key: tuple[str, dict[str, Any]],
    which: np.ndarray,
    autocast: Callable[[], AbstractContextManager] = nullcontext,
) -> Features:
    """Features of some rows: those that the folder has, the others computed and added to it.

    Args:
        folder: the cache.
        source: the encoder, at rest, on the device that computes, and the rows of its modality.
        key: of the source, by ``key_of``.
        which: row numbers.
        autocast: makes the context of mixed precision that ``source.precision`` names.

    Raises:
        ValueError: a row cannot be read or decoded.
    """
    name, about = key
    own = contents(source.rows, source.modality, which)
    present = own.any(1)
    numbers, own = which[present], own[present]
    distinct, first, inverse = np.unique(own, axis=0, return_index=True, return_inverse=True)
    home = folder / name
    found, order = None, np.empty(0, dtype=np.int64)
    if distributed.rank() == 0 and len(distinct) and (_covering(home, distinct) is None):
        if not (home / "about.json").is_file():
            home.mkdir(parents=True, exist_ok=True)
            checkpoint.write_json(home / "about.json", about | {"modality": source.modality})
        rows = hashlib.sha256(distinct.tobytes()).hexdigest()[:HEX]
        write(home / rows, source, distinct, numbers[first].tolist(), autocast)
    distributed.wait()
    if len(distinct):
        covering = _covering(home, distinct)
        assert covering is not None, "it was written"
        found, order = covering
    return _of(source, found, which, numbers, order[inverse.reshape(-1)] if len(distinct) else order)


def _of(source: Source, found: Stored | None, which: np.ndarray, numbers: np.ndarray, order: np.ndarray) -> Features:
    total, width = len(source.rows), source.encoder.width
    place, asked = torch.full((total,), -1), torch.zeros(total, dtype=torch.bool)
    asked[torch.from_numpy(which)] = True
    if found is None:
        nothing = torch.zeros(1, width)
        one = torch.ones(1, dtype=torch.long)
        return Features(place, nothing, nothing, torch.ones(1, dtype=torch.bool), one * 0, one, asked)
    place[torch.from_numpy(numbers)] = torch.from_numpy(order)
    return Features(place, found.pooled, found.tokens, found.mask, found.start, found.length, asked)


def _covering(home: Path, distinct: np.ndarray) -> tuple[Stored, np.ndarray] | None:
    """The folder that has all of these contents, and where in it each one is."""
    for file in stored_in(home):
        places = {content.tobytes(): k for k, content in enumerate(file.contents)}
        order = [places.get(content.tobytes(), -1) for content in distinct]
        if -1 not in order:
            return file, np.array(order, dtype=np.int64)
    return None
