"""Pictures as pixels in [0, 1]: resize, crop and augment, without the normalisation, which models do themselves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import timm
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2

from mmkt.types import Processor


class Pixels(Processor):
    """A picture as ``pixels`` (C, side, side), in a batch (N, C, side, side) float in [0, 1].

    Args:
        side: in pixels.
        channels: 1 takes pictures as grey.
        augment: in training, turn by up to 10°, shift by up to 10 %, scale by 0.9 to 1.1.
        preprocessing: of ``timm.data.create_transform`` (``interpolation``, ``crop_pct``, ``crop_mode``).
    """

    kind = "image"

    def __init__(self, side: int, channels: int, augment: bool, preprocessing: Mapping[str, Any]):
        self.mode = "L" if channels == 1 else "RGB"
        # normalize=False: the raw space is pixels in [0, 1] for every model
        self.transform = timm.data.create_transform((channels, side, side), normalize=False, **preprocessing)
        self.random = v2.RandomAffine(
            degrees=10, translate=(0.1, 0.1), scale=(0.9, 1.1), interpolation=v2.InterpolationMode.BILINEAR
        )
        self.draws = self.augment = augment

    def __call__(self, item: Image.Image, view: str | None = None) -> dict[str, Tensor]:
        """Bytes (C, side, side) of one picture."""
        pixels = self.transform(item.convert(self.mode))
        if view and self.augment:
            pixels = self.random(pixels)
        return {"pixels": pixels}

    def pad(self, items: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
        """N pictures, as floats."""
        return {"pixels": torch.stack([item["pixels"] for item in items]).float() / 255}
