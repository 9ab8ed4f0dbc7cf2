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

    ``pooled``: 5 × 5 with max-pooling, the usual one. ``strided``: 4 × 4 in steps of two, which Wong et al. (2020) train on
    single steps; 0.6 million multiplications a picture in place of 11.
    """

    kind = "image"
    bounds = (0.0, 1.0)
    backbone = "body"

    def __init__(self, house: Mapping[str, Encoder], assets: Path | None, *, form: Literal["pooled", "strided"] = "pooled"):
        """Build it."""
        super().__init__()
        self.width = 128 if form == "pooled" else 100
        layers: list[nn.Module]
        if form == "pooled":
            layers = [nn.Conv2d(1, 32, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)]
            layers += [nn.Conv2d(32, 64, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)]
        else:
            layers = [nn.Conv2d(1, 16, 4, stride=2, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 4, stride=2, padding=1), nn.ReLU()]
        flat = 3136 if form == "pooled" else 1568
        self.body = nn.Sequential(*layers, nn.Flatten(), nn.Linear(flat, self.width), nn.ReLU())

    def forward(self, inputs: Mapping[str, Tensor]) -> Encoded:
        """Encode N pictures."""
        found = self.body(inputs["pixels"])
        return Encoded.of(found)

    def stages(self) -> list[list[str]]:
        """Each layer with weights."""
        named = {k: [f"body.{k}.{name}" for name, _ in layer.named_parameters()] for k, layer in enumerate(self.body)}
        return [names for names in named.values() if names]

    def processor(self) -> Processor:
        """Resize to 28 × 28."""
        return Pixels(28, 1, False, {"interpolation": "bilinear", "crop_pct": 1.0})

    def blank(self) -> dict[str, Tensor]:
        """A black picture."""
        return {"pixels": torch.zeros(1, 1, 28, 28)}
