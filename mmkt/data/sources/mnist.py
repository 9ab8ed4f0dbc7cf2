"""Handwritten digits alone: MNIST or USPS."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from mmkt.data.sources import _files
from mmkt.types import Source


class Mnist(Source):
    """MNIST (LeCun et al., 1998) or USPS (Hull, 1994): scans of digits, the official test split, validation held back."""

    def __init__(
        self,
        *,
        images: Literal["mnist", "usps"] = "mnist",
        rows: Annotated[int, Field(ge=10)] | None = 10_000,
        validation: Annotated[int, Field(ge=10)] = 1000,
    ):
        """Remember the settings.

        Args:
            images: whose scans.
            rows: the first scans of the training split that train; None for all but those held back.
            validation: the last scans of the training split, held back.
        """
        self.images, self.rows, self.validation = images, rows, validation

    def prepare(self, out: Path, source: Path | None) -> Path:
        """One Parquet file, scans inside: id, split, domain (whose scans), image, digit.

        Raises:
            ValueError: the folder or a file of it is missing, or the training split has fewer scans.
        """
        data = np.load(_files.find(source, "mnist", (f"{self.images}.npz",), "digits") / f"{self.images}.npz")
        most = len(data["x_train"]) - self.validation
        if (self.rows or 1) > most:
            raise ValueError(f"rows: {self.rows} and validation: {self.validation} are more than {len(data['x_train'])} scans")
        held = slice(len(data["x_train"]) - self.validation, None)
        parts = {"train": ("train", slice(self.rows or most)), "validation": ("train", held), "test": ("test", slice(None))}
        rows = [
            {
                "id": f"{split}-{k}",
                "split": split,
                "domain": self.images,
                "image": _files.png(levels),
                "digit": int(digit),
            }
            for split, (name, which) in parts.items()
            for k, (levels, digit) in enumerate(zip(data[f"x_{name}"][which], data[f"y_{name}"][which]))
        ]
        return _files.write(rows, out)
