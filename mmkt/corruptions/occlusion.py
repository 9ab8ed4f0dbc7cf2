"""Something in front of the picture."""

from __future__ import annotations

import torch
from PIL import Image
from torchvision.transforms.v2 import functional as vision

from mmkt.types import Corruption


class Occlusion(Corruption):
    """A grey rectangle of the picture's proportions at a random place, a share of its area (Zeiler and Fergus, 2014)."""

    kind = "image"
    levels = (0.05, 0.1, 0.2, 0.3, 0.45)

    def __call__(self, item: Image.Image, level: float, rate: int | None) -> Image.Image:
        """A picture of the same size."""
        pixels = vision.pil_to_tensor(item)  # (3, H, W) uint8
        height, width = (max(1, round(side * level**0.5)) for side in pixels.shape[1:])
        top, left = (int(torch.randint(side - cut + 1, ())) for side, cut in zip(pixels.shape[1:], (height, width)))
        return vision.to_pil_image(vision.erase(pixels, top, left, height, width, torch.tensor(127, dtype=torch.uint8)))
