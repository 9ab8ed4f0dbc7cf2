"""A picture compressed too much."""

from __future__ import annotations

import io

from PIL import Image

from mmkt.types import Corruption


class Jpeg(Corruption):
    """JPEG at a low quality (as ImageNet-C), by Pillow: torchvision's encoder is being taken out."""

    kind = "image"
    levels = (25, 18, 15, 10, 7)

    def __call__(self, item: Image.Image, level: float, rate: int | None) -> Image.Image:
        """The picture as it comes back from a file."""
        stream = io.BytesIO()
        item.save(stream, "JPEG", quality=int(level))
        return Image.open(stream).convert("RGB")
