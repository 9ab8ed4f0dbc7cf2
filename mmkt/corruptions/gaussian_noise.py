"""Noise on every pixel."""

from __future__ import annotations

from PIL import Image
from torchvision.transforms.v2 import functional as vision

from mmkt.types import Corruption


class GaussianNoise(Corruption):
    """Gaussian noise on every channel, of a deviation in shares of white (as ImageNet-C, Hendrycks and Dietterich, 2019)."""

    kind = "image"
    levels = (0.08, 0.12, 0.18, 0.26, 0.38)

    def __call__(self, item: Image.Image, level: float, rate: int | None) -> Image.Image:
        """A noisy picture of the same size."""
        pixels = vision.to_dtype(vision.pil_to_tensor(item), scale=True)  # (3, H, W) in [0, 1]
        return vision.to_pil_image(vision.gaussian_noise(pixels, 0.0, level))
