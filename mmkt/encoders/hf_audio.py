"""Sound through the audio models of the transformers library."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor
from transformers import AutoFeatureExtractor

from mmkt.layers import hf_body
from mmkt.layers.hf_front_end import FRONT_ENDS
from mmkt.layers.masked import masked_mean, zero_masked
from mmkt.layers.waveform import Waveform
from mmkt.layers.windows import read_windows
from mmkt.pretrained import Weights
from mmkt.types import Encoded, Encoder, Processor

# SpecAugment draws from numpy's generator, which no seed of a run reaches, and a layer that is dropped trains on nothing.
STILL = {"apply_spec_augment": False, "mask_time_prob": 0.0, "mask_feature_prob": 0.0, "layerdrop": 0.0, "encoder_layerdrop": 0.0}


class HfAudio(Encoder):
    """A Hugging Face audio model (wav2vec 2.0, HuBERT, WavLM, AST, Whisper's encoder, CLAP's audio side), front end inside.

    Inputs are ``waveform`` (N, T) in [−1, 1] at the model's own rate, and ``lengths`` (N,) in samples; with several
    ``windows`` there are K of them for each clip: (N, K, T), (N, K). Tokens are the last hidden states; CLAP's are projected
    into its shared space.
    """

    kind = "audio"
    backbone = "body"
    bounds = (-1.0, 1.0)

    def __init__(
        self,
        house: Mapping[str, Encoder],
        assets: Path | None,
        *,
        model: str = "facebook/wav2vec2-base",
        weights: Weights = "pretrained",
        pooling: Literal["own", "mean"] = "own",
        seconds: Annotated[float, Field(gt=0)] | None = None,
        windows: Annotated[int, Field(ge=1)] = 1,
        augment: bool = False,
    ):
        """Load or build the body.

        Args:
            house: unused.
            assets: a checkpoint's folder with configuration and preprocessing.
            model: local folder, or Hub id.
            weights: ``random`` draws the architecture's own initial weights; ``statistics`` draws each tensor anew with the mean
                and deviation of the pretrained one.
            pooling: the model's own summary (AST's two class tokens, CLAP's embedding; the others' is the mean), or the mean
                over tokens.
            seconds: of a window; by default what the model takes, 30 where that is any length.
            windows: a longer clip is read in up to that many consecutive windows, what is beyond them is cut. Its tokens are
                those of all windows; its summary is the mean of theirs, weighted by their samples.
            augment: in training, shift by up to 5 % of the clip, scale the volume by −6 to 6 dB, add noise at 10 to 40 dB.

        Raises:
            ValueError: the model can't be had, is of another kind, or takes fewer seconds.
        """
        super().__init__()
        self.extractor, self.body = hf_body.load(
            model, assets, weights=weights, reader=AutoFeatureExtractor, changes=STILL, take=_hearing
        )
        self.front = FRONT_ENDS[self.body.config.model_type](self.extractor, hf_body.inner(self.body).config)
        self.width: int = hf_body.width(self.body)
        self.pooling, self.windows, self.augment, self.rate = pooling, windows, augment, self.extractor.sampling_rate
        most = self.front.samples
        self.samples = round(self.rate * seconds) if seconds else most or 30 * self.rate
        if most and self.samples > most:
            raise ValueError(f"seconds: {seconds:g} is more than {model!r} takes; up to {most / self.rate:g} are allowed")

    def forward(self, inputs: Mapping[str, Tensor]) -> Encoded:
        """Encode N clips."""
        known = {"waveform": inputs["waveform"], "lengths": inputs["lengths"]}
        return read_windows(self._read, known, known["lengths"])

    def _read(self, known: Mapping[str, Tensor]) -> Encoded:
        waveform, lengths = known["waveform"].float(), known["lengths"]
        there = torch.arange(waveform.shape[1], device=waveform.device) < lengths[:, None]
        tokens, mask, own = self.front(self.body, waveform.masked_fill(~there, 0.0), lengths)
        tokens = zero_masked(tokens, mask)
        pooled = own if own is not None and self.pooling == "own" else masked_mean(tokens, mask)
        return Encoded(tokens, mask, pooled, mask[:, 0])

    def stages(self) -> list[list[str]]:
        """Convolutions or embeddings, each layer, what comes between and after them."""
        return hf_body.stages(name for name, _ in self.named_parameters())

    def processor(self) -> Processor:
        """Cut to ``windows`` of ``seconds``; in training with ``augment`` also shift, volume and noise."""
        return Waveform(self.rate, self.samples, self.augment, self.windows)

    def blank(self) -> dict[str, Tensor]:
        """A tenth of a second of silence."""
        return {"waveform": torch.zeros(1, self.rate // 10), "lengths": torch.tensor([self.rate // 10])}

    def checkpoint_gradients(self) -> None:
        """Every layer."""
        hf_body.checkpoint_gradients(self.body)

    def save_assets(self, folder: Path) -> None:
        """Configuration and preprocessing."""
        self.body.config.save_pretrained(folder)
        self.extractor.save_pretrained(folder)


def _hearing(body: Any) -> torch.nn.Module:
    """Whisper's encoder without its decoder, CLAP's audio side; the others whole."""
    kind = body.config.model_type
    if kind not in FRONT_ENDS:
        raise ValueError(f"found a model of type {kind!r}; hf_audio takes {', '.join(FRONT_ENDS)}")
    return body.encoder if kind == "whisper" else hf_body.part("audio", summary=True)(body)
