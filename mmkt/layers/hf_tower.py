"""One side of a contrastive model of the transformers library: CLIP, Chinese CLIP, SigLIP, CLAP."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPooling

SIDES = {"text": ("text_model", "text_projection"), "image": ("vision_model", "visual_projection")}
SIDES |= {"audio": ("audio_model", "audio_projection")}
# model type → the sides it has
TYPES = {
    "clip": ("text", "image"),
    "chinese_clip": ("text", "image"),
    "siglip": ("text", "image"),
    "clap": ("text", "audio"),
}


class Tower(nn.Module):
    """A side's transformer, then its projection into the space that both sides share.

    The projection is applied to every token as it is to the summary, so that both have one width. The summary is the
    model's own embedding before it is scaled to length 1: CLIP (Radford et al., 2021), SigLIP (Zhai et al., 2023), CLAP
    (Wu et al., 2023).

    Args:
        whole: the two-sided model.
        side: ``text``, ``image`` or ``audio``.
        summary: False leaves out what makes a summary alone (SigLIP's attention pool).

    Raises:
        ValueError: the model has no such side.
    """

    def __init__(self, whole: Any, side: str, summary: bool = True):
        super().__init__()
        self.config, self.side, kind = whole.config, side, whole.config.model_type
        if side not in TYPES[kind]:
            raise ValueError(f"found a {kind} model, which has no {side} side: it has {' and '.join(TYPES[kind])}")
        model, projection = SIDES[side]
        self.tower: Any = getattr(whole, model)
        self.projection: Any = getattr(whole, projection, None)
        if kind == "siglip" and side == "image" and not summary:
            self.tower.use_head, self.tower.head = False, None
        if kind == "clap" and side == "audio" and self.tower.config.enable_fusion:
            patches = self.tower.audio_encoder.patch_embed  # what fuses several crops of a long clip: clips are one crop here
            patches.fusion_model, patches.mel_conv2d = None, None
        # which token is the summary; SigLIP's text is always continued with padding, whose last token was trained to be it
        self.pick = "last" if kind in ("clip", "siglip") else "cls"
        self.full_length = kind == "siglip" and side == "text"
        own = self.tower.config
        siglip = getattr(own, "projection_size", own.hidden_size)  # of its text side; pictures are not projected
        self.width: int = siglip if kind == "siglip" else self.config.projection_dim

    def forward(self, inputs_embeds: Tensor | None = None, **inputs: Any) -> BaseModelOutputWithPooling:
        """Projected tokens (N, L, W); for pictures and sounds also the summary (N, W)."""
        out = self.tower(**inputs) if inputs_embeds is None else self._from_embeddings(inputs_embeds, inputs)
        states = out.last_hidden_state
        if self.side == "text":
            return BaseModelOutputWithPooling(last_hidden_state=self._words(states))
        if self.side == "audio":  # (N, C, f, t)
            tokens = self.projection(states.flatten(2).transpose(1, 2))
            return BaseModelOutputWithPooling(last_hidden_state=tokens, pooler_output=self.projection(out.pooler_output))
        if self.projection is None:
            return BaseModelOutputWithPooling(last_hidden_state=states, pooler_output=out.pooler_output)
        tokens = self.projection(self.tower.post_layernorm(states))
        return BaseModelOutputWithPooling(last_hidden_state=tokens, pooler_output=tokens[:, 0])

    def _from_embeddings(self, embeds: Tensor, inputs: dict[str, Any]) -> Any:
        if "inputs_embeds" in inspect.signature(self.tower.forward).parameters:
            return self.tower(inputs_embeds=embeds, **inputs)
        # CLIP's and SigLIP's text sides take ids alone: what these are looked up as is replaced
        hook = self.get_input_embeddings().register_forward_hook(lambda *_: embeds)
        try:
            return self.tower(input_ids=embeds.new_zeros(embeds.shape[:2], dtype=torch.long), **inputs)
        finally:
            hook.remove()

    def _words(self, states: Tensor) -> Tensor:
        if self.config.model_type == "clap":  # a dense layer and tanh on the first token, here on each
            states = self.tower.pooler.activation(self.tower.pooler.dense(states))
        return self.projection(states) if self.projection is not None else self.tower.head(states)

    def get_input_embeddings(self) -> nn.Module:
        """The token embeddings of a text side."""
        return self.tower.get_input_embeddings()
