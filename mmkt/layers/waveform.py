"""Sound as a waveform: cut, and augmented in training."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from mmkt.types import Processor


class Waveform(Processor):
    """A clip as ``waveform`` (T,), in a batch (N, T) in [−1, 1] padded with zeros, and ``lengths`` (N,) in samples.

    Args:
        rate: Hz.
        samples: longer clips are cut to it.
        augment: in training, shift by up to 5 % of the clip, scale the volume by −6 to 6 dB, add noise at 10 to 40 dB.
    """

    kind = "audio"

    def __init__(self, rate: int, samples: int, augment: bool):
        self.rate, self.samples = rate, samples
        self.draws = self.augment = augment

    def __call__(self, item: Tensor, view: str | None = None) -> dict[str, Tensor]:
        """One clip, cut and augmented."""
        x = item[: self.samples]
        if view and self.augment:
            shift, volume, snr = torch.rand(3).tolist()
            x = torch.roll(x, round((2 * shift - 1) * 0.05 * len(x)))
            noise = torch.randn_like(x) * x.pow(2).mean().sqrt() * 10 ** (-(10 + 30 * snr) / 20)
            x = ((x + noise) * 10 ** ((2 * volume - 1) * 6 / 20)).clamp(-1, 1)
        return {"waveform": x, "cut": torch.tensor(len(item) > self.samples)}

    def pad(self, items: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
        """N clips, with zeros past each one's end."""
        waveforms = [item["waveform"] for item in items]
        lengths, cut = torch.tensor([len(w) for w in waveforms]), torch.stack([item["cut"] for item in items])
        return {"waveform": pad_sequence(waveforms, batch_first=True), "lengths": lengths, "cut": cut}
