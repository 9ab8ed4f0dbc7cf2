"""Sound in a large room."""

from __future__ import annotations

import math

import torch
import torchaudio.functional
from torch import Tensor

from mmkt.types import Corruption


class Reverberation(Corruption):
    """The room of Polack (1988): after the direct sound, noise that decays by 60 dB within a time in seconds, as loud as it.

    What comes back after the clip's end is cut; the loudest sample stays as loud as it was.
    """

    kind = "audio"
    levels = (0.2, 0.4, 0.7, 1.0, 1.5)

    def __call__(self, item: Tensor, level: float, rate: int | None) -> Tensor:
        """As long as before."""
        assert rate is not None, "a sound has a rate"
        time = torch.arange(1, max(2, round(level * rate))) / rate
        tail = torch.randn(len(time)) * torch.exp(-math.log(1000) * time / level)
        room = torch.cat([torch.ones(1), tail / tail.norm()])
        wet = torchaudio.functional.fftconvolve(item, room)[: len(item)]
        peak = wet.abs().max()
        return wet * (item.abs().max() / peak) if peak > 0 else item
