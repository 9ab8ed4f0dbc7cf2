"""Questions about a handwritten and a spoken digit, made offline in seconds."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import soundfile
import torch
import torchaudio
from PIL import Image
from pydantic import Field

from mmkt.data.espeak import RATE, Utterance, speak
from mmkt.data.questions import QUESTIONS
from mmkt.data.sources import _files
from mmkt.generators import seed_of
from mmkt.types import Source

KINDS = tuple(QUESTIONS)
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
# No variant of espeak's is in two splits; the accents are.
VOICES = {
    "train": (
        *("en-us+m1", "en-us+f1", "en-us+m3", "en+m2", "en+f2", "en-gb-scotland+m4", "en-gb-scotland+f1"),
        *("en-gb-x-rp+m3", "en-gb-x-rp+f2", "en-029+m1", "en-029+f1", "en-us-nyc+m4"),
    ),
    "validation": ("en-us+m6", "en-gb-x-rp+f5", "en-029+m6", "en+f5"),
    "test": ("en-us+m7", "en-us+f4", "en-gb-scotland+m5", "en-gb-x-rp+f3", "en-029+m5", "en+f4"),
}
# Best accuracy of any predictor that sees these modalities of a row (names sorted); derived in Numerals' docstring.
CEILINGS = {
    "": 0.1,
    "text": 0.78 / 6,
    "image": 2.3 / 6,
    "audio": 2.3 / 6,
    "image+text": 3.3 / 6,
    "audio+text": 3.3 / 6,
    "audio+image": 2.4 / 6,
    "audio+image+text": 1.0,
}


def answer(kind: str, written: int, spoken: int) -> int:
    """What a question of this kind asks for, a digit."""
    return {
        "written": written,
        "spoken": spoken,
        "larger": max(written, spoken),
        "smaller": min(written, spoken),
        "after-written": (written + 1) % 10,
        "after-spoken": (spoken + 1) % 10,
    }[kind]


class Numerals(Source):
    """Numerals: an English question, a handwritten digit w, a spoken digit s; the answer takes all three.

    The question is of one of six kinds, uniformly: it asks for w, for s, for the larger, the smaller, for the digit after
    w or after s (after nine comes zero). w and s are independent and uniform. Wordings, voices and scans of validation and
    test are never heard or seen in training. Scans are scikit-learn's 1,797 of people's handwriting (8 × 8), speech is
    espeak-ng's, at random rates, pitches and levels of noise.

    The best that a predictor can do that sees only some of the modalities, by the sixth:

    - none: every digit answers with 0.1 (max and min together are uniform over two kinds): 6 · 0.1 = 0.6, so 0.10;
    - text: 0.1 for four kinds, 0.19 for the larger (guess 9) and the smaller (guess 0): 0.78 / 6 = 0.13;
    - image: guess w: 1 for its own kind, 0.1 for s, (w + 1)/10 + (10 − w)/10 = 1.1 for larger and smaller together, 0
      and 0.1 for the two successors: 2.3 / 6 ≈ 0.383; the sound alone is the same by symmetry;
    - text and image: 1 and 1 where w is asked, 0.1 and 0.1 where s is, 0.55 and 0.55 (guess w): 3.3 / 6 = 0.55;
    - image and audio: w or s answers two kinds of six; three of them if one of the digits follows the other (one pair in
      five), four if they are equal (one in ten): (0.7 · 2 + 0.2 · 3 + 0.1 · 4) / 6 = 0.40;
    - all: 1.

    Why six kinds: with the first four alone the answer is w or s, so that P(answer = w) + P(answer = s) ≥ 1 and one
    modality by itself always reaches one half.
    """

    def __init__(
        self,
        *,
        rows: Annotated[int, Field(ge=10)] = 6000,
        validation: Annotated[int, Field(ge=1)] = 1000,
        test: Annotated[int, Field(ge=1)] = 1500,
        rate: Annotated[int, Field(ge=8000)] = 8000,
        noise: tuple[float, float] = (10.0, 30.0),
        seed: int = 0,
    ):
        """Remember the settings.

        Args:
            rows: of the training split.
            validation: rows.
            test: rows.
            rate: of the clips, Hz.
            noise: least and greatest signal-to-noise ratio, dB.
            seed: the same seed makes the same bytes.
        """
        self.sizes = {"train": rows, "validation": validation, "test": test}
        self.rate, self.noise, self.seed = rate, noise, seed
        self.resample = torchaudio.transforms.Resample(RATE, rate)  # keeps its filter, as the function does not

    def prepare(self, out: Path, source: Path | None) -> Path:
        """One Parquet file, media inside; ``source`` is not read.

        Columns: id, split, domain (the kind of question), group (the voice), question, scan (PNG), clip (FLAC), answer,
        written, spoken.
        """
        scans = _scans()
        rows = [row for split in self.sizes for row in self._rows(split, scans)]
        said = speak([row.pop("utterance") for row in rows])
        for row, waveform in zip(rows, said, strict=True):
            row["clip"] = self._clip(waveform, np.random.default_rng(seed_of(self.seed, "clip", row["id"])))
        return _files.write(rows, out)

    def _rows(self, split: str, scans: dict[str, dict[int, list[bytes]]]) -> Iterator[dict[str, Any]]:
        random = np.random.default_rng(seed_of(self.seed, split))
        for k in range(self.sizes[split]):
            kind, voice = KINDS[random.integers(len(KINDS))], VOICES[split][random.integers(len(VOICES[split]))]
            written, spoken = random.integers(10, size=2).tolist()
            yield {
                "id": f"{split}-{k}",
                "split": split,
                "domain": kind,
                "group": voice,
                "question": QUESTIONS[kind][split][random.integers(len(QUESTIONS[kind][split]))],
                "scan": scans[split][written][random.integers(len(scans[split][written]))],
                "answer": answer(kind, written, spoken),
                "written": written,
                "spoken": spoken,
                "utterance": Utterance(WORDS[spoken], voice, int(random.integers(130, 200)), int(random.integers(30, 70))),
            }

    def _clip(self, waveform: np.ndarray, random: np.random.Generator) -> bytes:
        """Up to a tenth of a second of silence on both sides, noise, 16-bit FLAC."""
        sound = self.resample(torch.from_numpy(waveform)).numpy()
        loud = np.flatnonzero(np.abs(sound) > 0.02 * np.abs(sound).max())
        before, after = (random.uniform(0, 0.1, 2) * self.rate).astype(int)
        sound = np.pad(sound[loud[0] : loud[-1] + 1], (before, after))
        power = np.mean(sound**2) * 10 ** (-random.uniform(*self.noise) / 10)
        stream = io.BytesIO()
        sound = np.clip(sound + random.normal(0, np.sqrt(power), len(sound)), -1, 1)
        soundfile.write(stream, sound, self.rate, format="FLAC", subtype="PCM_16")
        return stream.getvalue()


def _scans() -> dict[str, dict[int, list[bytes]]]:
    """By split and digit, PNGs: of each digit's scans, seven tenths train, one validates, two test."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    found: dict[str, dict[int, list[bytes]]] = {split: {} for split in VOICES}
    for digit in range(10):
        pictures = [_png(x) for x in digits.images[digits.target == digit]]
        cuts = [round(0.7 * len(pictures)), round(0.8 * len(pictures))]
        parts = pictures[: cuts[0]], pictures[cuts[0] : cuts[1]], pictures[cuts[1] :]
        for split, part in zip(VOICES, parts):
            found[split][digit] = part
    return found


def _png(levels: np.ndarray) -> bytes:
    """Levels 0 to 16, (8, 8), as a grey PNG."""
    stream = io.BytesIO()
    Image.fromarray(np.round(levels / 16 * 255).astype(np.uint8)).save(stream, "PNG")
    return stream.getvalue()
