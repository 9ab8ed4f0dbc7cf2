"""Gated cross-attention into one modality: the natural start from a text model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated

import torch
from pydantic import Field
from torch import nn

from mmkt.layers.masked import zero_masked
from mmkt.layers.presence import joined, target_of
from mmkt.layers.transformer import CrossBlock
from mmkt.types import Encoded, Fused, Fusion


class Flamingo(Fusion):
    """Gated cross-attention (Alayrac et al., 2022): X_t += tanh(α) CrossAttention(X_t, X_v), X_t += tanh(β) FFN(X_t).

    t is the first modality or ``target``, v all others; the summary of t is one more query. α = β = 0 at the start, so
    that before training the answer is the target's own to the bit, and for ever so in rows without any other. A missing
    target is its learned vector.
    """

    arity = "two+"
    level = "token"
    symmetric = False
    missing = "stand-in"
    interacts = True
    cost = "layers·M·L·(D² + L·D)"
    params = "layers*(12*D**2 + 15*D + 2)"
    flops = "layers*(20*(1 + L)*D**2 + 4*(M - 1)*L*D**2 + 4*(1 + L)*(M - 1)*L*D)"
    identity_at_start = True

    def __init__(
        self,
        dim: int,
        modalities: Sequence[str],
        outputs: Mapping[str, int],
        *,
        target: str | None = None,
        layers: Annotated[int, Field(ge=1)] = 2,
        heads: Annotated[int, Field(ge=1)] = 4,
        dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0,
    ):
        """Build the gated blocks; ``target`` is the first modality by default."""
        super().__init__()
        self.target = target_of(target, modalities)
        self.blocks = nn.ModuleList(CrossBlock(dim, heads, dropout, gated=True) for _ in range(layers))

    def forward(self, parts: dict[str, Encoded]) -> Fused:
        """(B, L_m, D) a modality → tokens (B, L_target, D)."""
        target = parts[self.target]
        keys, mask = joined(x for m, x in parts.items() if m != self.target)
        x = torch.cat([target.pooled[:, None], target.tokens], 1)
        for block in self.blocks:
            x = block(x, keys, mask)
        return Fused(Encoded(zero_masked(x[:, 1:], target.mask), target.mask, x[:, 0], target.mask.any(1)), {}, {}, {})
