"""Latents that read all modalities."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated

import torch
from pydantic import Field
from torch import nn

from mmkt.layers.presence import joined
from mmkt.layers.transformer import Block, CrossBlock
from mmkt.types import Encoded, Fused, Fusion


class Perceiver(Fusion):
    """Perceiver (Jaegle et al., 2021; the Q-Former of Li et al., 2023, is its kin): learned latents Z, and y = mean(Z).

    A layer: Z += CrossAttention(Z, [X_1 + t_1; …; X_M + t_M]), then self-attention over Z, each with its feed-forward; t_m
    is a learned type vector. Exact: a missing modality's tokens are masked keys; without any key Z keeps its residual.
    """

    level = "token"
    symmetric = True
    missing = "exact"
    interacts = True
    cost = "layers·M·L·(D² + latents·D)"
    params = "(latents + M)*D + layers*(24*D**2 + 28*D) + 2*D"
    flops = "layers*(44*latents*D**2 + 4*M*L*D**2 + 4*latents*M*L*D + 4*latents**2*D)"

    def __init__(
        self,
        dim: int,
        modalities: Sequence[str],
        outputs: Mapping[str, int],
        *,
        latents: Annotated[int, Field(ge=1)] = 8,
        layers: Annotated[int, Field(ge=1)] = 2,
        heads: Annotated[int, Field(ge=1)] = 4,
        dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0,
    ):
        """Build the layers."""
        super().__init__()
        self.latents = nn.Parameter(torch.randn(latents, dim) * 0.02)
        self.kind = nn.ParameterDict({m: nn.Parameter(torch.randn(dim) * 0.02) for m in modalities})
        self.cross = nn.ModuleList(CrossBlock(dim, heads, dropout) for _ in range(layers))
        self.own = nn.ModuleList(Block(dim, heads, dropout) for _ in range(layers))
        self.norm = nn.LayerNorm(dim)

    def forward(self, parts: dict[str, Encoded]) -> Fused:
        """(B, L_m, D) a modality → the latents, tokens (B, K, D)."""
        keys, mask = joined(x._replace(tokens=x.tokens + self.kind[m]) for m, x in parts.items())
        z = self.latents.to(keys.dtype).expand(len(keys), -1, -1)
        there = torch.ones(z.shape[:2], dtype=torch.bool, device=z.device)
        for cross, own in zip(self.cross, self.own):
            z = own(cross(z, keys, mask), there)
        z = self.norm(z)
        return Fused(Encoded(z, there, z.mean(1), there[:, 0]), {}, {}, {})
