"""A picture in fog."""

from __future__ import annotations

from PIL import Image
from torchvision.transforms.v2 import functional as vision

from mmkt.types import Corruption


class Contrast(Corruption):
    """Less contrast: the share that is left of every pixel's difference to the mean grey (as ImageNet-C)."""

    kind = "image"
    levels = (0.4, 0.3, 0.2, 0.1, 0.05)

    def __call__(self, item: Image.Image, level: float, rate: int | None) -> Image.Image:
        """A paler picture of the same size."""
        return vision.adjust_contrast(item, level)
