"""Sound too fast or too slow."""

from __future__ import annotations

import torch
import torchaudio.functional
from torch import Tensor

from mmkt.types import Corruption


class Speed(Corruption):
    """Faster or slower by a share, as a coin says; pitch changes with it.

    As torchaudio's ``speed``, whose filter takes gigabytes at rates such as 22,050 Hz.
    """

    kind = "audio"
    levels = (0.1, 0.2, 0.3, 0.4, 0.5)

    def __call__(self, item: Tensor, level: float, rate: int | None) -> Tensor:
        """Shorter or longer."""
        factor = 1 + level if torch.rand(()) < 0.5 else 1 - level
        return torchaudio.functional.resample(item, round(100 * factor), 100).clamp(-1, 1)
