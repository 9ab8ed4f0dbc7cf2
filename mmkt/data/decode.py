"""From bytes (or things in memory) to what a processor takes: str, RGB picture, mono waveform, a table's record, vectors."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from decimal import Decimal
from typing import Any

import numpy as np
import soundfile
import torch
import torchaudio.functional
from PIL import Image, ImageFile, ImageOps
from torch import Tensor

from mmkt.data.limits import USUAL, DecodeError, Limits, text
from mmkt.data.vectors import array
from mmkt.parts import nearest

__all__ = ["USUAL", "DecodeError", "Limits", "audio", "image", "picture", "record", "text", "vectors", "waveform"]

LARGEST = torch.finfo(torch.float32).max
LOUDEST = 4.0  # lossy decoders overshoot 1 a little; far above it, a float file was not scaled to [−1, 1]


def record(cell: Any, columns: Mapping[str, str]) -> dict[str, float | str | bool | Decimal | None]:
    """One record of a table: a value for each of ``columns``, None where it is missing.

    Args:
        cell: a mapping from column to value; null, NaN, "" and a column that it lacks are missing.
        columns: "number" or "category", by column.

    Raises:
        DecodeError: no mapping, a column that is not known, or a value of another type.
    """
    if not isinstance(cell, Mapping):
        raise DecodeError(f"a table's cell is an object {{column: value}}, not {type(cell).__name__} {str(cell)[:40]!r}")
    for name in cell:
        if name not in columns:
            raise DecodeError(f"there is no column {name!r} in this table{nearest(name, columns)}; it has {', '.join(columns)}")
    return {name: _value(cell.get(name), name, kind) for name, kind in columns.items()}


def _value(value: Any, name: str, kind: str) -> float | str | bool | Decimal | None:
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or (isinstance(value, str) and not value) or (isinstance(value, float) and value != value):
        return None
    number = isinstance(value, int | float | Decimal) and not isinstance(value, bool)
    if number and not abs(value) <= LARGEST:
        raise DecodeError(f"{name!r} holds the number {value!r}, which is not finite or too large")
    if not (number or (kind == "category" and isinstance(value, str | bool))):
        allowed = "numbers" if kind == "number" else "strings, numbers, true and false"
        raise DecodeError(f"{name!r} holds {allowed}, not {type(value).__name__} {str(value)[:40]!r}")
    return value


def vectors(cell: Any, width: int) -> Tensor:
    """Vectors of numbers, (T, W) float32.

    Args:
        cell: W numbers, or T lists of W numbers: lists, an array or a tensor, (W,) or (T, W), or a list of such (W,).
        width: W.

    Raises:
        DecodeError: as ``vectors.array``.
    """
    if isinstance(cell, list):
        cell = [_in_numpy(part) for part in cell]
    return torch.from_numpy(array(_in_numpy(cell), width))


def _in_numpy(value: Any) -> Any:
    """A tensor as an array, all else as it is; numpy has no bfloat16."""
    if not isinstance(value, Tensor):
        return value
    return (value.float() if value.is_floating_point() else value).numpy(force=True)


def image(data: bytes, limits: Limits = USUAL) -> Image.Image:
    """Decode an image file to RGB, the right way up; of several frames the first.

    Raises:
        DecodeError: no image, truncated, too large, of no known range, or Pillow warns about it.
    """
    with _strict(limits):
        try:
            opened = Image.open(io.BytesIO(data))
        except Image.UnidentifiedImageError:
            raise DecodeError(f"no image format that Pillow reads ({len(data)} bytes, starting {data[:8]!r})") from None
        with opened:
            _measure(opened, limits)
            opened.load()
            return _rgb(opened)


def picture(value: Any, limits: Limits = USUAL) -> Image.Image:
    """An image in memory as RGB.

    Args:
        value: a PIL image; an array (H, W), (H, W, 1), (H, W, 3) or (H, W, 4); or a tensor (1, H, W), (3, H, W) or
            (4, H, W): uint8, uint16 (grey alone) or floating point in [0, 1].
        limits: how many pixels are accepted.

    Raises:
        DecodeError: another shape, type or range.
    """
    if not isinstance(value, Image.Image):
        if isinstance(value, Tensor):
            value = value.detach().cpu().movedim(0, -1).numpy() if value.ndim == 3 else value.detach().cpu().numpy()
        value = _from_array(np.asarray(value))
    with _strict(limits):
        _measure(value, limits)
        return _rgb(value)


def audio(data: bytes, rate: int | None, limits: Limits = USUAL) -> Tensor:
    """Decode a sound file to one channel, (T,) float32 in [−1, 1].

    Args:
        data: a file that libsndfile reads (WAV, FLAC, OGG, MP3 …).
        rate: samples a second to resample to; None keeps the file's own.
        limits: how many seconds are accepted.

    Raises:
        DecodeError: no sound file, empty, too long, or with samples that are not finite or far outside [−1, 1].
    """
    try:
        with soundfile.SoundFile(io.BytesIO(data)) as file:
            own = file.samplerate
            _time(file.frames, own, limits)
            samples = file.read(dtype="float32", always_2d=True)  # (T, channels)
    except (soundfile.SoundFileError, RuntimeError) as error:
        raise DecodeError(f"no sound file that libsndfile reads ({len(data)} bytes, starting {data[:8]!r}): {error}") from None
    return waveform(samples.T, own, rate or own, limits)


def waveform(value: Any, own: int, rate: int, limits: Limits = USUAL) -> Tensor:
    """A waveform in memory as one channel at ``rate``, (T,) float32 in [−1, 1].

    Args:
        value: array or tensor, (T,) or (channels, T); integers are scaled by their type's range.
        own: its samples a second.
        rate: samples a second to resample to.
        limits: how many seconds are accepted.

    Raises:
        DecodeError: another shape, empty, too long, or with samples that are not finite or far outside [−1, 1].
    """
    samples = torch.as_tensor(value).detach().cpu()
    if samples.ndim not in (1, 2) or (samples.ndim == 2 and 0 < samples.shape[1] < samples.shape[0]):
        raise DecodeError(f"a waveform has shape (samples,) or (channels, samples), not {tuple(samples.shape)}")
    _time(samples.shape[-1], own, limits)
    if not samples.is_floating_point():
        if samples.dtype not in (torch.int16, torch.int32):
            raise DecodeError(f"a waveform is floating point, int16 or int32, not {samples.dtype}")
        samples = samples.double() / -torch.iinfo(samples.dtype).min
    mono = samples.float().reshape(-1, samples.shape[-1]).mean(0)  # (T,)
    if not mono.isfinite().all():
        raise DecodeError(f"{int((~mono.isfinite()).sum())} of {len(mono)} samples are NaN or infinite")
    if (peak := float(mono.abs().max())) > LOUDEST:
        raise DecodeError(f"its samples reach {peak:g}: divide them so that they lie in [-1, 1]")
    if own != rate:
        mono = torchaudio.functional.resample(mono, own, rate)
    return mono.clamp(-1, 1)  # overshoot of lossy codecs and of the resampler's filter


def _time(frames: int, rate: int, limits: Limits) -> None:
    if frames < 1:
        raise DecodeError("the sound has no samples")
    if frames > limits.seconds * rate:
        raise DecodeError(
            f"the sound lasts {frames / rate:.1f} s, the limit is {limits.seconds:g} s: cut it, or raise data.max_seconds"
        )


@contextmanager
def _strict(limits: Limits) -> Iterator[None]:
    """Pillow with our pixel limit, its warnings as errors, never half a picture, and all that it raises as DecodeError."""
    before = Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            # Pillow has its own limit on opening, and formats with several pictures check it again
            Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES = limits.pixels, False
            yield
        except DecodeError:
            raise
        except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
            raise DecodeError(f"too many pixels, the limit is {limits.pixels:,}: raise data.max_pixels ({error})") from None
        except (OSError, SyntaxError, ValueError, EOFError, IndexError, Warning) as error:  # Pillow's plugins on damaged files
            raise DecodeError(f"the image is truncated or damaged: {error}") from None
        finally:
            Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES = before


def _measure(opened: Image.Image, limits: Limits) -> None:
    """Refuse by the header, before any pixel is decoded."""
    width, height = opened.size
    if width * height > limits.pixels:
        raise DecodeError(f"the image has {width} x {height} pixels, the limit is {limits.pixels:,}: raise data.max_pixels")
    if not width * height:
        raise DecodeError(f"the image has {width} x {height} pixels")


def _rgb(opened: Image.Image) -> Image.Image:
    """Upright, 8 bits a channel, and what is transparent on white."""
    upright = ImageOps.exif_transpose(opened)
    if upright.mode.startswith("I;16") or upright.mode in ("I", "F"):
        return _grey(np.asarray(upright)).convert("RGB")
    if upright.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in upright.info:
        # premultiplied La and PA reach RGBA by way of LA and RGBA alone
        layer = upright.convert("LA" if upright.mode == "La" else "RGBA").convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
    return upright.convert("RGB")


def _grey(values: np.ndarray) -> Image.Image:
    """Grey levels (H, W) beyond 8 bits as 8 bits: 16-bit integers by 65535, floating point in [0, 1] by 1."""
    low, high = float(values.min()), float(values.max())
    most = 1.0 if values.dtype.kind == "f" else 65535.0
    if not (low >= 0 and high <= most):  # a NaN fails too
        raise DecodeError(
            f"its grey levels run from {low:g} to {high:g}, known ranges are 0 to 65535 (integers) and 0 to 1 (floating point)"
        )
    return Image.fromarray(np.round(values / most * 255).astype(np.uint8))


def _from_array(array: np.ndarray) -> Image.Image:
    if array.ndim == 3 and array.shape[-1] == 1:
        array = array[..., 0]
    if not array.size or not (array.ndim == 2 or (array.ndim == 3 and array.shape[-1] in (3, 4))):
        raise DecodeError(
            f"an image array has shape (H, W), (H, W, 3) or (H, W, 4) and a tensor (channels, H, W); this one has {array.shape}"
        )
    if array.dtype.kind == "f":
        if not (array.min() >= 0 and array.max() <= 1):
            raise DecodeError(f"a floating-point image lies in [0, 1], not in [{array.min():g}, {array.max():g}]")
        array = np.round(array * 255).astype(np.uint8)
    if array.dtype == np.uint16 and array.ndim == 2:
        return _grey(array)
    if array.dtype != np.uint8:
        raise DecodeError(
            f"an image array is uint8, uint16 (grey) or floating point, not {array.dtype} with {array.ndim} dimensions"
        )
    return Image.fromarray(np.ascontiguousarray(array))
