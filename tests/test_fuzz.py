"""Seeded damage to files of strangers: each is accepted or refused in words; none crashes, hangs or eats memory."""

from __future__ import annotations

import io
import json
import resource
import signal
import time
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
from PIL import Image

from mmkt.data import decode, media
from mmkt.data.decode import DecodeError
from mmkt.data.manifest import ManifestError, read
from mmkt.data.media import MediaError

EACH = 250  # of nine formats
SECONDS = 5  # a file
GROWTH = 400_000  # kB over all files


def picture(format: str) -> Callable[[np.random.Generator], bytes]:
    def make(random: np.random.Generator) -> bytes:
        stream = io.BytesIO()
        shape = (24, 20) if random.random() < 0.5 else (24, 20, 3)
        Image.fromarray(random.integers(0, 255, shape, dtype=np.uint8)).save(stream, format)
        return stream.getvalue()

    return make


def sound(format: str) -> Callable[[np.random.Generator], bytes]:
    def make(random: np.random.Generator) -> bytes:
        stream = io.BytesIO()
        soundfile.write(stream, random.uniform(-0.5, 0.5, (600, int(random.integers(1, 3)))), 8000, format=format)
        return stream.getvalue()

    return make


def rows(random: np.random.Generator) -> list[dict]:
    words = random.choice(["a", "dog", "7", "é", "x,y"], (6, 3))
    return [{"id": f"r{k}", "text": " ".join(w), "image": f"{k}.png", "size": k / 7, "kind": k % 3} for k, w in enumerate(words)]


def table(random: np.random.Generator) -> pa.Table:
    return pa.Table.from_pylist(rows(random))


def as_csv(random: np.random.Generator) -> bytes:
    lines = [",".join(f'"{value}"' if isinstance(value, str) else str(value) for value in row.values()) for row in rows(random)]
    return "\n".join(["id,text,image,size,kind", *lines]).encode()


def as_jsonl(random: np.random.Generator) -> bytes:
    return "\n".join(json.dumps(row) for row in rows(random)).encode()


def as_parquet(random: np.random.Generator) -> bytes:
    stream = io.BytesIO()
    pq.write_table(table(random), stream)
    return stream.getvalue()


def as_arrow(random: np.random.Generator) -> bytes:
    stream = io.BytesIO()
    with pa.ipc.new_file(stream, table(random).schema) as writer:
        writer.write_table(table(random))
    return stream.getvalue()


def as_zip(random: np.random.Generator) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as pack:
        pack.writestr("a.txt", random.bytes(200) + b"a" * 200)
    return stream.getvalue()


MAKERS = {
    "png": picture("PNG"),
    "jpeg": picture("JPEG"),
    "wav": sound("WAV"),
    "flac": sound("FLAC"),
    "csv": as_csv,
    "jsonl": as_jsonl,
    "parquet": as_parquet,
    "arrow": as_arrow,
    "zip": as_zip,
}


def mutate(data: bytes, random: np.random.Generator) -> bytes:
    """One to four of: flipped bytes, a cut end, inserted bytes, a repeated stretch, an edited header or footer."""
    found = bytearray(data)
    for _ in range(random.integers(1, 5)):
        n, kind = max(1, len(found)), random.integers(6)
        place = int(random.integers(n))
        if kind == 0:
            for k in random.integers(n, size=random.integers(1, 9)):
                found[k : k + 1] = random.bytes(1)
        elif kind == 1:
            del found[place:]
        elif kind == 2:
            found[place:place] = random.bytes(int(random.integers(1, 40)))
        elif kind == 3:
            found[place:place] = found[place : place + int(random.integers(1, 60))]
        elif kind == 4:  # a number in the header: nothing, the greatest, the greatest with a sign
            at = int(random.integers(min(n, 64)))
            found[at : at + 4] = [b"\0" * 4, b"\xff" * 4, b"\xff\xff\xff\x7f", b"\x7f\xff\xff\xff"][random.integers(4)]
        else:
            at = max(0, n - int(random.integers(1, 64)))
            found[at : at + 4] = random.bytes(4)
    return bytes(found)


def take(kind: str, data: bytes, folder) -> None:
    """What mmkt does with such a file."""
    if kind in ("png", "jpeg"):
        assert decode.image(data).mode == "RGB"
    elif kind in ("wav", "flac"):
        assert decode.audio(data, 16_000).abs().max() <= 1
    elif kind == "zip":
        (folder / "pack.zip").write_bytes(data)
        for member in ("a.txt", "../a.txt"):
            media.fetch(f"pack.zip::{member}", folder)
            media.size(f"pack.zip::{member}", folder)
    else:
        (folder / f"m.{kind}").write_bytes(data)
        assert len(read(folder / f"m.{kind}").table)


@pytest.fixture
def alarm():
    """A file that takes too long fails by name."""

    def late(*_):
        raise TimeoutError(f"more than {SECONDS} s")

    before = signal.signal(signal.SIGALRM, late)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("kind", MAKERS)
def test_damage_is_refused_in_words(kind, tmp_path, alarm):
    random, found = np.random.default_rng(sum(kind.encode())), Counter()
    take_whole = MAKERS[kind](random)
    if kind != "zip":  # whose second member is refused
        take(kind, take_whole, tmp_path)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for number in range(EACH):
        data = mutate(MAKERS[kind](random), random)
        start = time.perf_counter()
        signal.alarm(SECONDS)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                take(kind, data, tmp_path)
            found["accepted"] += 1
        except (DecodeError, MediaError, ManifestError) as error:
            found["refused" if str(error).strip() else "refused without a word"] += 1
        except Exception as error:
            raise AssertionError(f"{kind} {number}: {type(error).__name__}: {error}") from error
        finally:
            signal.alarm(0)
        assert time.perf_counter() - start < SECONDS
    assert found["refused"] > EACH / 10, found
    assert not found["refused without a word"], found
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < GROWTH, f"{grown} kB more at the peak"
