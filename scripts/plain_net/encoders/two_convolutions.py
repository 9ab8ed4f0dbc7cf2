"""The plain network that attacks and adversarial training are usually shown on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from mmkt.layers.pixels import Pixels
from mmkt.types import Encoded, Encoder, Processor


class TwoConvolutions(Encoder):
    """Two convolutions and a layer, on grey pictures of 28 × 28.

    ``pooled``: 5 × 5 with max-pooling, the usual one. ``strided``: 4 × 4 in steps of two, the one that Wong et al. (2020) showed
    training on single steps on, a tenth of the work.
    """

    kind = "image"
    bounds = (0.0, 1.0)
    backbone = "body"

    def __init__(self, house: Mapping[str, Encoder], assets: Path | None, *, form: Literal["pooled", "strided"] = "pooled"):
        """Build it."""
        super().__init__()
        pooled = form == "pooled"
        self.width = 128 if pooled else 100
        first, second, flat = (32, 64, 3136) if pooled else (16, 32, 1568)
        self.body = nn.Sequential(
            nn.Conv2d(1, first, 5, padding=2) if pooled else nn.Conv2d(1, first, 4, stride=2, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2) if pooled else nn.Identity(),
            nn.Conv2d(first, second, 5, padding=2) if pooled else nn.Conv2d(first, second, 4, stride=2, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2) if pooled else nn.Identity(),
            nn.Flatten(),
            nn.Linear(flat, self.width),
            nn.ReLU(),
        )

    def forward(self, inputs: Mapping[str, Tensor]) -> Encoded:
        """Encode N pictures."""
        found = self.body(inputs["pixels"])
        return Encoded.of(found)

    def stages(self) -> list[list[str]]:
        """Each layer with weights."""
        return [[f"body.{k}.{kind}" for kind in ("weight", "bias")] for k in (0, 3, 7)]

    def processor(self) -> Processor:
        """Resize to 28 × 28."""
        return Pixels(28, 1, False, {"interpolation": "bilinear", "crop_pct": 1.0})

    def blank(self) -> dict[str, Tensor]:
        """A black picture."""
        return {"pixels": torch.zeros(1, 1, 28, 28)}
