"""A picture out of focus."""

from __future__ import annotations

import math

from PIL import Image
from torchvision.transforms.v2 import functional as vision

from mmkt.types import Corruption


class GaussianBlur(Corruption):
    """A Gaussian blur whose deviation is a share of the shorter side, so that pictures of any size lose as much."""

    kind = "image"
    levels = (0.01, 0.02, 0.03, 0.045, 0.06)

    def __call__(self, item: Image.Image, level: float, rate: int | None) -> Image.Image:
        """A blurred picture of the same size."""
        sigma = level * min(item.size)
        reach = min(math.ceil(3 * sigma), (min(item.size) - 1) // 2)
        if not reach:  # of a pixel or two
            return item
        return vision.gaussian_blur(item, [2 * reach + 1] * 2, [sigma, sigma])
