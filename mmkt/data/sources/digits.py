"""Real digits: handwriting from MNIST or USPS, speech from the Free Spoken Digit Dataset, number words."""

from __future__ import annotations

import csv
import zipfile
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from mmkt.data.sources import _files
from mmkt.generators import seed_of
from mmkt.types import Source

FILES = ("mnist.npz", "usps.npz", "fsdd_meta.csv", "fsdd_audio.zip", "digit_words.csv")
HELD_BACK = {"mnist": 5000, "usps": 1000}  # of the training scans, the last ones, for validation


class Digits(Source):
    """Digits: pairs of a scan and a recording of the same digit, and its number word.

    Official splits: FSDD's takes 0 to 4 are test; of the others, takes 5 to 9 are validation and the rest train. Scans
    come from the set's own test split, the last of its training split (validation) and the rest. Pairs are by label
    alone (as in AV-MNIST), drawn with a seed a split: nothing but the digit connects the two. With ``leave_out`` all
    clips of one speaker are the test split.
    """

    def __init__(
        self,
        *,
        images: Literal["mnist", "usps"] = "mnist",
        leave_out: str | None = None,
        language: Literal["en", "zh", "de", "fr"] = "en",
        text: Literal["word", "distractor"] = "word",
        copies: Annotated[int, Field(ge=1)] = 4,
        seed: int = 0,
    ):
        """Remember the settings.

        Args:
            images: whose scans.
            leave_out: a speaker, for leave-one-speaker-out.
            language: of the number words.
            text: the digit's number word; or, as a ``distractor``, that of a digit drawn at random, which says nothing.
            copies: training pairs a clip; validation and test have one.
            seed: of the pairs.
        """
        self.images, self.leave_out, self.language, self.copies, self.seed = images, leave_out, language, copies, seed
        self.text = text

    def prepare(self, out: Path, source: Path | None) -> Path:
        """One Parquet file, media inside: id, split, domain (the images), group (the speaker), image, audio, text, digit.

        Raises:
            ValueError: the folder or a file of it is missing, or there is no such speaker.
        """
        folder = _files.find(source, "digits", FILES)
        scans = self._scans(folder)
        with (folder / "digit_words.csv").open(encoding="utf-8") as file:
            words = {int(row["digit"]): row[self.language] for row in csv.DictReader(file)}
        rows = [row for split in ("train", "validation", "test") for row in self._pairs(folder, split, scans[split], words)]
        return _files.write(rows, out)

    def _scans(self, folder: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """By split, scans (n, H, W) and labels (n,)."""
        data, held = np.load(folder / f"{self.images}.npz"), HELD_BACK[self.images]
        x, y = data["x_train"], data["y_train"]
        return {"train": (x[:-held], y[:-held]), "validation": (x[-held:], y[-held:]), "test": (data["x_test"], data["y_test"])}

    def _split(self, speaker: str, take: int) -> str:
        if self.leave_out is not None:
            return "test" if speaker == self.leave_out else "validation" if 5 <= take <= 9 else "train"
        return "test" if take <= 4 else "validation" if take <= 9 else "train"

    def _pairs(
        self, folder: Path, split: str, scans: tuple[np.ndarray, np.ndarray], words: dict[int, str]
    ) -> list[dict[str, Any]]:
        with (folder / "fsdd_meta.csv").open(encoding="utf-8") as file:
            clips = list(csv.DictReader(file))
        speakers = sorted({clip["speaker"] for clip in clips})
        if self.leave_out is not None and self.leave_out not in speakers:
            raise ValueError(f"there is no speaker {self.leave_out!r}; leave_out is one of {', '.join(speakers)}")
        random, (pictures, labels) = np.random.default_rng(seed_of(self.seed, split)), scans
        other = np.random.default_rng(seed_of(self.seed, split, "distractor"))  # its own: the pairs stay as they are
        places = {digit: np.flatnonzero(labels == digit) for digit in range(10)}
        rows = []
        with zipfile.ZipFile(folder / "fsdd_audio.zip") as archive:
            for clip in clips:
                digit, take = int(clip["label"]), int(clip["take"])
                if self._split(clip["speaker"], take) != split:
                    continue
                sound = archive.read(clip["file"])
                for copy in range(self.copies if split == "train" else 1):
                    place = int(random.choice(places[digit]))
                    rows.append(
                        {
                            "id": f"{digit}-{clip['speaker']}-{take}-{copy}",
                            "split": split,
                            "domain": self.images,
                            "group": clip["speaker"],
                            "image": _files.png(pictures[place]),
                            "audio": sound,
                            "text": words[digit if self.text == "word" else int(other.integers(10))],
                            "digit": digit,
                            "scan": place,
                        }
                    )
        return rows
