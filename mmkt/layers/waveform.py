"""Sound as a waveform: cut, and augmented in training."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from mmkt.types import Processor


class Waveform(Processor):
    """A clip as ``waveform`` (T,), in a batch (N, T) in [−1, 1] padded with zeros, and ``lengths`` (N,) in samples.

    Args:
        rate: Hz.
        samples: of a window.
        augment: in training, shift by up to 5 % of the clip, scale the volume by −6 to 6 dB, add noise at 10 to 40 dB.
        windows: a longer clip comes in up to that many consecutive windows, (N, K, T) and (N, K) with 0 where there is
            none, where several are allowed; what is beyond them is cut.
    """

    kind = "audio"
    pads = True

    def __init__(self, rate: int, samples: int, augment: bool, windows: int = 1):
        self.rate, self.samples, self.windows = rate, samples, windows
        self.draws = self.augment = augment

    def __call__(self, item: Tensor, view: str | None = None) -> dict[str, Tensor]:
        """One clip, cut and augmented."""
        most = self.samples * self.windows
        x = item[:most]
        if view and self.augment:
            shift, volume, snr = torch.rand(3).tolist()
            x = torch.roll(x, round((2 * shift - 1) * 0.05 * len(x)))
            noise = torch.randn_like(x) * x.pow(2).mean().sqrt() * 10 ** (-(10 + 30 * snr) / 20)
            x = ((x + noise) * 10 ** ((2 * volume - 1) * 6 / 20)).clamp(-1, 1)
        return {"waveform": x, "cut": torch.tensor(len(item) > most)}

    def pad(self, items: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
        """N clips, with zeros past each one's end."""
        clips = [item["waveform"].split(self.samples) for item in items]  # each in its windows
        number = max(map(len, clips))
        nothing = clips[0][0].new_zeros(0)
        flat = [window for clip in clips for window in [*clip, *[nothing] * (number - len(clip))]]
        waveform, lengths = pad_sequence(flat, batch_first=True), torch.tensor([len(window) for window in flat])
        longest = waveform.shape[1]
        waveform = F.pad(waveform, (0, self.padded(longest, self.samples) - longest))
        if self.windows > 1:
            waveform, lengths = waveform.view(len(items), number, -1), lengths.view(len(items), number)
        return {"waveform": waveform, "lengths": lengths, "cut": torch.stack([item["cut"] for item in items])}
