"""A manifest's rows for the eye and the ear: texts, small pictures, sounds, inside a page."""

from __future__ import annotations

import io
from collections.abc import Collection, Sequence
from typing import Any

import soundfile
import torch
from PIL import Image
from torch import Tensor

from mmkt import page
from mmkt.data.columns import is_absent
from mmkt.data.manifest import column_of
from mmkt.data.rows import items_of, load
from mmkt.feed import Feed
from mmkt.types import Processor

SIDE = 160  # pixels, of a picture at the most
SHARP = 64  # pixels, up to which a picture stays as it is
LETTERS = 200  # of a text
SECONDS = 10  # of a sound
MP3 = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000)  # Hz that MP3 knows


def row(feed: Feed, number: int, modalities: Collection[str]) -> list[str]:
    """What a row holds of some modalities, a piece each; of several items of a cell the first."""
    found = []
    for m in modalities:
        cell = column_of(feed.manifest, feed.columns[m])[number].as_py()
        if is_absent(cell):
            found.append(page.paragraph(f"no {m}", "note"))
            continue
        processor = feed.processors[m]
        item = load(items_of(cell, processor)[0], processor, feed.manifest.root, feed.limits)
        found.append(_piece(m, item, processor))
    return found


def numbers(m: str, x: Tensor, processor: Processor) -> str:
    """An item's raw numbers: pixels (C, H, W) in [0, 1], a waveform (T,); of embeddings how many there are."""
    if processor.kind == "image":
        levels = (x.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
        return _piece(m, Image.fromarray(levels[..., 0] if levels.shape[2] == 1 else levels), processor)
    if processor.kind == "audio":
        return _piece(m, x.flatten(), processor)
    return _piece(m, x, processor)


def _piece(m: str, item: Any, processor: Processor) -> str:
    if processor.kind == "image":
        return page.picture(*_small(item), alt=m)
    if processor.kind == "audio":
        most = SECONDS * processor.rate
        cut = [page.paragraph(f"the first {SECONDS} s of {len(item) / processor.rate:.0f}", "note")] * (len(item) > most)
        return "".join([page.sound(*_recording(item[:most], processor.rate)), *cut])
    if processor.kind == "table":
        return page.paragraph(", ".join(f"{name}: {value}" for name, value in item.items() if value is not None)[:LETTERS])
    if isinstance(item, Tensor):
        return page.paragraph(f"{m}: {' × '.join(map(str, item.shape))} numbers", "note")
    words = " | ".join(item) if isinstance(item, Sequence) and not isinstance(item, str) else str(item)
    return page.paragraph(words if len(words) <= LETTERS else words[:LETTERS] + " …")


def _small(item: Image.Image) -> tuple[bytes, str]:
    """A picture's file, and its type."""
    stream = io.BytesIO()
    if max(item.size) <= SHARP:
        item.save(stream, "PNG")
        return stream.getvalue(), "image/png"
    item = item.copy()
    item.thumbnail((SIDE, SIDE))
    item.save(stream, "JPEG", quality=80)
    return stream.getvalue(), "image/jpeg"


def _recording(item: Tensor, rate: int) -> tuple[bytes, str]:
    """A sound's file, and its type."""
    stream = io.BytesIO()
    if rate in MP3:
        soundfile.write(stream, item.numpy(), rate, format="MP3")
        return stream.getvalue(), "audio/mpeg"
    soundfile.write(stream, item.numpy(), rate, format="WAV", subtype="PCM_16")
    return stream.getvalue(), "audio/wav"
