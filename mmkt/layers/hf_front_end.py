"""How the audio models of transformers take a waveform in: their feature extractors, differentiable and aware of lengths.

Each is called with a body, clips (N, T) in [−1, 1] that are zero past their ends, and lengths (N,) in samples. It gives
tokens (N, L, W), their mask (N, L), and the model's own summary (N, W), None where it has none.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchaudio.compliance import kaldi

Features = tuple[Tensor, Tensor, Tensor | None]


class RawWave(nn.Module):
    """wav2vec 2.0 (Baevski et al., 2020), HuBERT (Hsu et al., 2021), WavLM (Chen et al., 2022): convolutions on samples.

    Where the feature extractor says ``do_normalize``, a clip is brought to zero mean and unit variance over its own
    samples. The models of base size have a group norm over time behind their first convolution, in which padding would
    count: here its mean and variance are those of the clip's own frames. The convolutions after it see no padding in a
    clip's own frames, and attention is masked, so every clip gets what the model gives it alone.
    """

    samples: int | None = None  # clips of any length

    def __init__(self, extractor: Any, config: Any):
        super().__init__()
        if getattr(config, "add_adapter", False):
            raise ValueError("a body with add_adapter: true is not supported; give the checkpoint without the adapter")
        self.normalize = extractor.do_normalize
        self.shortest = 1  # samples that make one token
        for kernel, stride in reversed(list(zip(config.conv_kernel, config.conv_stride))):
            self.shortest = (self.shortest - 1) * stride + kernel

    def forward(self, body: Any, waveform: Tensor, lengths: Tensor) -> Features:
        """Convolutions, projection, transformer."""
        x = waveform
        if self.normalize:
            there = torch.arange(x.shape[1], device=x.device) < lengths[:, None]
            mean = x.sum(1, keepdim=True) / lengths[:, None]
            spread = ((x - mean) ** 2 * there).sum(1, keepdim=True) / lengths[:, None]
            x = (x - mean) / (spread + 1e-7).sqrt() * there
        x = F.pad(x, (0, max(0, self.shortest - x.shape[1])))[:, None]
        lengths = lengths.clamp(min=self.shortest)
        for layer in body.feature_extractor.conv_layers:
            if isinstance(getattr(layer, "layer_norm", None), nn.GroupNorm):
                valid = (lengths - layer.conv.kernel_size[0]) // layer.conv.stride[0] + 1
                x = layer.activation(_norm_over_time(layer.conv(x), valid, layer.layer_norm))
            else:
                x = layer(x)
        x = x.transpose(1, 2)  # (N, L, channels)
        mask = torch.arange(x.shape[1], device=x.device) < body._get_feat_extract_output_lengths(lengths)[:, None]
        projected = body.feature_projection(x)
        projected = projected[0] if isinstance(projected, tuple) else projected  # HuBERT's gives one tensor
        return body.encoder(projected, attention_mask=mask).last_hidden_state, mask, None


def _norm_over_time(x: Tensor, valid: Tensor, norm: nn.GroupNorm) -> Tensor:
    """A group norm with one group a channel, (N, C, L), over the first ``valid`` (N,) places alone."""
    assert norm.num_groups == norm.num_channels
    there = (torch.arange(x.shape[2], device=x.device) < valid[:, None])[:, None]
    y, count = x.float(), valid[:, None, None]
    mean = (y * there).sum(2, keepdim=True) / count
    spread = ((y - mean) ** 2 * there).sum(2, keepdim=True) / count
    y = (y - mean) / (spread + norm.eps).sqrt()
    return (y * norm.weight[:, None] + norm.bias[:, None]).to(x.dtype)


class KaldiMel(nn.Module):
    """AST (Gong et al., 2021): Kaldi's log-mel filter bank, continued with zero frames to the model's length."""

    def __init__(self, extractor: Any, config: Any):
        super().__init__()
        self.rate, self.frames, self.mels = extractor.sampling_rate, extractor.max_length, extractor.num_mel_bins
        self.mean: float = extractor.mean if extractor.do_normalize else 0.0
        self.scale: float = 2 * extractor.std if extractor.do_normalize else 1.0
        self.window, self.hop = int(0.025 * self.rate), int(0.010 * self.rate)
        self.samples = self.window + (self.frames - 1) * self.hop

    def features(self, waveform: Tensor, lengths: Tensor) -> Tensor:
        """(N, T), (N,) → (N, frames, mels)."""
        clips = F.pad(waveform, (0, self.samples - waveform.shape[1]))
        with torch.autocast(clips.device.type, enabled=False):
            made = [
                kaldi.fbank(clip[None], sample_frequency=self.rate, window_type="hanning", num_mel_bins=self.mels)
                for clip in clips
            ]
        valid = torch.div(lengths - self.window, self.hop, rounding_mode="floor") + 1  # frames that lie within the clip
        there = torch.arange(self.frames, device=lengths.device) < valid[:, None]
        return (torch.stack(made).masked_fill(~there[..., None], 0.0) - self.mean) / self.scale

    def forward(self, body: Any, waveform: Tensor, lengths: Tensor) -> Features:
        """All tokens are there: silence is part of what the model was trained on."""
        out = body(self.features(waveform, lengths))
        mask = torch.ones(out.last_hidden_state.shape[:2], dtype=torch.bool, device=lengths.device)
        return out.last_hidden_state, mask, out.pooler_output


class WhisperMel(nn.Module):
    """Whisper's encoder (Radford et al., 2022): log-mel of the clip continued with silence to the model's length.

    The encoder attends to that silence, as it was trained to; tokens past the clip's end are masked behind it.
    """

    filters: Tensor
    window: Tensor

    def __init__(self, extractor: Any, config: Any):
        super().__init__()
        self.samples, self.hop, self.n_fft = extractor.n_samples, extractor.hop_length, extractor.n_fft
        filters = torch.from_numpy(extractor.mel_filters).float().T  # (mels, n_fft / 2 + 1)
        self.register_buffer("filters", filters.contiguous(), persistent=False)
        self.register_buffer("window", torch.hann_window(self.n_fft), persistent=False)

    def features(self, waveform: Tensor) -> Tensor:
        """(N, T) → (N, mels, frames)."""
        clips = F.pad(waveform, (0, self.samples - waveform.shape[1]))
        with torch.autocast(clips.device.type, enabled=False):
            spectrum = torch.stft(clips, self.n_fft, self.hop, window=self.window, return_complex=True)[..., :-1]
            power = spectrum.real**2 + spectrum.imag**2  # abs has no gradient in silence
            mel = (self.filters @ power).clamp(min=1e-10).log10()
            return (torch.maximum(mel, mel.amax((1, 2), keepdim=True) - 8) + 4) / 4

    def forward(self, body: Any, waveform: Tensor, lengths: Tensor) -> Features:
        """A token is there when its first sample is."""
        tokens = body(self.features(waveform)).last_hidden_state
        starts = torch.arange(tokens.shape[1], device=lengths.device) * (self.samples // tokens.shape[1])
        return tokens, starts < lengths[:, None], None


class ClapMel(nn.Module):
    """CLAP's audio side (Wu et al., 2023): log-mel of the clip repeated as often as it fits into the model's length.

    Models made for fusing several crops of a long clip get the same crop four times, as they do for short clips.
    """

    filters: Tensor
    window: Tensor

    def __init__(self, extractor: Any, config: Any):
        super().__init__()
        if extractor.padding not in ("repeatpad", "repeat", "pad"):
            raise ValueError(f"found a feature extractor with padding {extractor.padding!r}; repeatpad, repeat and pad are known")
        self.padding, self.samples = extractor.padding, extractor.nb_max_samples
        self.n_fft, self.hop = extractor.fft_window_size, extractor.hop_length
        self.crops = 4 if config.enable_fusion else 1
        filters = extractor.mel_filters if extractor.truncation == "fusion" else extractor.mel_filters_slaney
        self.register_buffer("filters", torch.from_numpy(filters).float().T.contiguous(), persistent=False)
        self.register_buffer("window", torch.hann_window(self.n_fft), persistent=False)

    def features(self, waveform: Tensor, lengths: Tensor) -> Tensor:
        """(N, T), (N,) → (N, crops, frames, mels), in dB."""
        place = torch.arange(self.samples, device=lengths.device).expand(len(lengths), -1)
        size = lengths[:, None]
        end = {"repeatpad": self.samples // size * size, "repeat": torch.full_like(size, self.samples), "pad": size}
        clips = waveform.gather(1, place % size).masked_fill(place >= end[self.padding], 0.0)
        with torch.autocast(clips.device.type, enabled=False):
            spectrum = torch.stft(clips, self.n_fft, self.hop, window=self.window, return_complex=True)
            power = spectrum.real**2 + spectrum.imag**2  # abs has no gradient in silence
            mel = 10 * (self.filters @ power).clamp(min=1e-10).log10()
        return mel.transpose(1, 2)[:, None].expand(-1, self.crops, -1, -1)

    def forward(self, body: Any, waveform: Tensor, lengths: Tensor) -> Features:
        """All tokens are there: repeats and silence are part of what the model was trained on."""
        longer = torch.zeros(len(lengths), 1, dtype=torch.bool, device=lengths.device)
        out = body(input_features=self.features(waveform, lengths), is_longer=longer)
        mask = torch.ones(out.last_hidden_state.shape[:2], dtype=torch.bool, device=lengths.device)
        return out.last_hidden_state, mask, out.pooler_output


FRONT_ENDS: dict[str, type[RawWave | KaldiMel | WhisperMel | ClapMel]] = {
    "wav2vec2": RawWave,
    "hubert": RawWave,
    "wavlm": RawWave,
    "audio-spectrogram-transformer": KaldiMel,
    "whisper": WhisperMel,
    "clap": ClapMel,
}
