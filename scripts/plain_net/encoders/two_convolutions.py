"""The plain network that attacks and adversarial training are usually shown on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from mmkt.layers.pixels import Pixels
from mmkt.types import Encoded, Encoder, Processor


class TwoConvolutions(Encoder):
    """Two 5 × 5 convolutions with pooling and a layer of 128, on grey pictures of 28 × 28."""

    kind = "image"
    bounds = (0.0, 1.0)
    backbone = "body"
    width = 128

    def __init__(self, house: Mapping[str, Encoder], assets: Path | None):
        """Build it."""
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 32, 5, padding=2),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(32, 64, 5, padding=2),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(3136, 128),
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
