"""Waveform to log-mel spectrogram, inside the model: gradients reach the waveform, padding changes nothing."""

from __future__ import annotations

import torch.nn.functional as F
import torchaudio
from torch import Tensor, nn


class LogMel(nn.Module):
    """Waveforms (N, T) in [−1, 1] to log-mel frames, each clip normalised over its own frames.

    Frame t covers the samples around t · hop; the waveform is continued with zeros (not reflected), so that a clip's
    frames don't depend on what it is batched with.
    """

    def __init__(self, rate: int, mels: int, window: float, hop: float):
        super().__init__()
        self.n_fft, self.hop = round(rate * window), round(rate * hop)
        fft = 1 << (self.n_fft - 1).bit_length()
        self.pad = fft // 2
        self.mel = torchaudio.transforms.MelSpectrogram(
            rate, n_fft=fft, win_length=self.n_fft, hop_length=self.hop, n_mels=mels, center=False
        )

    def forward(self, waveform: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """(N, T), (N,) samples → (N, frames, mels) with zeros past a clip's end, and their mask (N, frames)."""
        frames = -(-waveform.shape[1] // self.hop)
        mel = self.mel(F.pad(waveform.float(), (self.pad, self.pad + self.hop)))[..., :frames].transpose(1, 2)
        x = (mel + 1e-6).log()  # (N, frames, mels)
        valid = -(-lengths // self.hop).clamp(max=frames)
        mask = x.new_ones(frames).cumsum(0)[None] <= valid[:, None]
        count = (valid * x.shape[2]).clamp(min=1)[:, None, None]
        there = mask[..., None]
        mean = x.masked_fill(~there, 0).sum((1, 2), keepdim=True) / count
        spread = ((x - mean) ** 2).masked_fill(~there, 0).sum((1, 2), keepdim=True) / count
        return ((x - mean) / (spread + 1e-3).sqrt()).masked_fill(~there, 0), mask
