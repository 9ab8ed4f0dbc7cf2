"""Questions on a handwritten and a spoken digit, made without a download."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import soundfile
import torch
from PIL import Image
from pydantic import Field
from torchaudio.functional import resample

from mmkt.data import espeak
from mmkt.data.complete import complete
from mmkt.data.questions import QUESTIONS
from mmkt.types import Source

KINDS = ("written", "spoken", "larger", "smaller", "after-written", "after-spoken")
SPLITS = ("train", "validation", "test")
# An espeak accent and the variant that makes its timbre; no variant is in two splits. Variants with breath (f2, f3, f5,
# whisper …) are left out: espeak reads uninitialised memory for them, so their samples differ from run to run.
VOICES: dict[str, tuple[str, ...]] = {
    "train": ("en-us+m1", "en-us+m3", "en-us+f1", "en-us+Annie", "en+m1", "en+m4", "en+Andy", "en+belinda")
    + ("en-gb-scotland+m7", "en-gb-scotland+f1", "en-029+m3", "en-029+steph"),
    "validation": ("en-us+m2", "en+linda", "en-gb-scotland+linda", "en-029+m2"),
    "test": ("en-us+f4", "en-us+m6", "en+m8", "en+anika", "en-gb-scotland+m6", "en-029+f4"),
}
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
# Best accuracy of any predictor that sees these modalities; the derivation is in the docstring of ``Numerals``.
CEILINGS: dict[str, float] = {
    "": 0.10,
    "text": 0.13,
    "image": 2.3 / 6,
    "audio": 2.3 / 6,
    "image+text": 0.55,
    "audio+text": 0.55,
    "audio+image": 0.40,
    "audio+image+text": 1.0,
}


def answer(kind: str, written: int, spoken: int) -> int:
    """The answer, 0 to 9, to a question of a kind about two digits."""
    return {
        "written": written,
        "spoken": spoken,
        "larger": max(written, spoken),
        "smaller": min(written, spoken),
        "after-written": (written + 1) % 10,
        "after-spoken": (spoken + 1) % 10,
    }[kind]


class Numerals(Source):
    """A question (text), a handwritten digit (image), a spoken digit (audio): what is the answer, 0 to 9?

    The scans are scikit-learn's ``load_digits`` (Alpaydin & Kaynak, 1998; 8×8, real handwriting), the clips are
    espeak-ng's. Six kinds of question, uniform: the written digit, the spoken one, the larger, the smaller, the one after
    the written (after nine comes zero), the one after the spoken. Written w and spoken s are uniform and independent.
    Wordings, voices and scans are disjoint between train, validation and test, whatever the seed.

    The best accuracy of any predictor is known for every subset of modalities (``CEILINGS``), by averaging over kinds:

    * nothing: every answer has probability 0.10 (larger and smaller mirror each other).
    * text: 0.10 for four kinds; larger: say 9, right for 19 of 100 pairs; smaller: say 0, likewise. (4 · 0.10 + 2 · 0.19) / 6.
    * image (audio alike): say w. Written 1, spoken 0.1, larger (w + 1) / 10, smaller (10 − w) / 10, after written 0, after
      spoken 0.1: 2.3 / 6. Any other answer is right for at most 0.1 + 1 + 0.1 + max(…) · 0.1 …, less than that.
    * text and image (audio alike): written 1, spoken 0.1, after written 1, after spoken 0.1; larger: w where w + 1 > 1, so
      (w + 1) / 10, on average 0.55; smaller likewise 0.55: 3.3 / 6.
    * image and audio: the six answers are known, the kind is not; say the commonest. w = s (10 of 100 pairs): four of six.
      Neighbours in the circle (20 pairs): the higher is also what follows the lower, or the other way about for 9 and 0:
      three of six. Otherwise w is the answer for two kinds of six. (10 · 4 + 20 · 3 + 70 · 2) / 600 = 0.40.

    Why six: with the first four kinds alone, w and s together collect as many answers as there are questions, P(answer = w)
    + P(answer = s) ≥ 1, so one digit alone would always reach 0.5 and the second modality could add little.
    """

    def __init__(
        self,
        *,
        rows: Annotated[int, Field(ge=10)] = 6000,
        validation: Annotated[int, Field(ge=10)] = 1000,
        test: Annotated[int, Field(ge=10)] = 1500,
        seed: Annotated[int, Field(ge=0)] = 0,
        rate: Annotated[int, Field(ge=4000, le=48000)] = 8000,
        noise: tuple[float, float] = (10.0, 30.0),
        silence: Annotated[float, Field(ge=0, le=2)] = 0.15,
    ):
        """Set up.

        Args:
            rows: how many training rows.
            validation: how many validation rows.
            test: how many test rows.
            seed: another seed gives other rows out of the same scans, voices and wordings.
            rate: sampling rate of the clips, Hz.
            noise: lowest and highest signal-to-noise ratio of the clips' white noise, dB.
            silence: the longest silence before and after a word, seconds.
        """
        if noise[0] > noise[1]:
            raise ValueError(f"noise is the lowest and the highest ratio in dB, such as (10, 30), not {noise}")
        self.sizes = dict(zip(SPLITS, (rows, validation, test)))
        self.seed, self.rate, self.noise, self.silence = seed, rate, noise, silence

    def prepare(self, out: Path, source: Path | None) -> Path:
        """Write ``manifest.parquet`` with scans and clips inside; needs no ``source``.

        Columns: id, split, domain (the voice), group (the kind of question), question, scan (PNG, 8×8), clip (FLAC, mono,
        16 bit), answer, written, spoken.

        Raises:
            ValueError: the extra ``demo`` is not installed.
        """
        drawn = [row for split in SPLITS for row in self._draw(split)]
        # Espeak's words depend on those before: one process for all rows, in order.
        words = espeak.speak([row.pop("utterance") for row in drawn])
        for row, word in zip(drawn, words, strict=True):
            row["clip"] = self._clip(word, np.random.default_rng([self.seed, 1, *row["id"].encode()]))
        manifest = out / "manifest.parquet"
        with complete(manifest) as partial:
            pq.write_table(pa.Table.from_pylist(drawn, schema=_SCHEMA), partial)
        return manifest

    def _draw(self, split: str) -> list[dict[str, Any]]:
        """The rows of a split, all but their clips."""
        rng = np.random.default_rng([self.seed, 0, SPLITS.index(split)])
        scans = _scans()[split]
        rows = []
        for i in range(self.sizes[split]):
            kind, voice = str(rng.choice(KINDS)), str(rng.choice(VOICES[split]))
            written, spoken = (int(digit) for digit in rng.integers(10, size=2))
            row = {"id": f"{split}-{i:05d}", "split": split, "domain": voice, "group": kind}
            row |= {"question": str(rng.choice(QUESTIONS[kind][split])), "scan": scans[written][rng.integers(len(scans[written]))]}
            row |= {"answer": answer(kind, written, spoken), "written": written, "spoken": spoken}
            words_a_minute, pitch = int(rng.integers(120, 201)), int(rng.integers(30, 71))
            row["utterance"] = espeak.Utterance(WORDS[spoken], voice, words_a_minute, pitch)
            rows.append(row)
        return rows

    def _clip(self, word: np.ndarray, rng: np.random.Generator) -> bytes:
        """A word (T,) at espeak's rate as FLAC: resampled, between silences, under noise, at a random level."""
        speech = resample(torch.from_numpy(word), espeak.RATE, self.rate).numpy().astype(np.float64)
        before, after = rng.integers(int(self.silence * self.rate) + 1, size=2)
        wave = np.pad(speech, (before, after))
        ratio = 10 ** (rng.uniform(*self.noise) / 20)  # of amplitudes
        wave += rng.normal(size=len(wave)) * np.sqrt(np.mean(speech**2)) / ratio
        wave *= rng.uniform(0.3, 0.95) / np.abs(wave).max()
        flac = io.BytesIO()
        soundfile.write(flac, wave, self.rate, format="FLAC", subtype="PCM_16")
        return flac.getvalue()


_SCHEMA = pa.schema(
    [(name, pa.string()) for name in ("id", "split", "domain", "group", "question")]
    + [("scan", pa.binary()), ("clip", pa.binary())]
    + [(name, pa.int64()) for name in ("answer", "written", "spoken")]
)


def _scans() -> dict[str, list[list[bytes]]]:
    """PNG scans by split and digit: of each digit 70 % train, 10 % validation, 20 % test, the same for every seed."""
    from sklearn.datasets import load_digits

    data = load_digits()
    rng = np.random.default_rng(0)
    scans: dict[str, list[list[bytes]]] = {split: [] for split in SPLITS}
    for digit in range(10):
        of_digit = rng.permutation(np.flatnonzero(data.target == digit))
        cuts = (len(of_digit) * 7 // 10, len(of_digit) * 8 // 10)
        for split, chosen in zip(SPLITS, np.split(of_digit, cuts)):
            scans[split].append([_png(data.images[i]) for i in chosen])
    return scans


def _png(scan: np.ndarray) -> bytes:
    """A scan (8, 8) of values 0 to 16."""
    png = io.BytesIO()
    Image.fromarray((scan * 255 / 16).round().astype(np.uint8)).save(png, format="PNG")
    return png.getvalue()
