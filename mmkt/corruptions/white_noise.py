"""Sound with hiss."""

from __future__ import annotations

import torch
import torchaudio.functional
from torch import Tensor

from mmkt.types import Corruption


class WhiteNoise(Corruption):
    """White noise at a ratio of signal to noise, in dB over the clip. Silence stays silent."""

    kind = "audio"
    levels = (20, 15, 10, 5, 0)

    def __call__(self, item: Tensor, level: float, rate: int | None) -> Tensor:
        """As long as before, cut off at ±1."""
        if not item.any():
            return item
        return torchaudio.functional.add_noise(item, torch.randn_like(item), torch.tensor(float(level))).clamp(-1, 1)
