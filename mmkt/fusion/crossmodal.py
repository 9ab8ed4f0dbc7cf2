"""Crossmodal transformers, one an ordered pair."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import nn

from mmkt.layers.masked import masked_mean
from mmkt.layers.presence import key_mask, stacked, unless_nothing
from mmkt.layers.transformer import Block, CrossBlock
from mmkt.types import Encoded, Fused, Fusion


class Crossmodal(Fusion):
    """Multimodal transformer (MulT, Tsai et al., 2019): every ordered pair X_{b→a} has its own stack of cross-attention.

    For each a the X_{b→a} stand side by side, (M − 1)·D wide, go through self-attention and are averaged over a's tokens
    (the paper takes the last one); a linear layer reads those of all a. Exact: a pair whose b is missing is dropped and the
    others are scaled by (M − 1) over their number, as is an a by M; an a without any other keeps its own tokens. With
    nothing present the answer is a learned vector.
    """

    arity = "two+"
    level = "token"
    symmetric = False
    missing = "exact"
    interacts = True
    cost = "layers·M³·(L·D² + L²·D)"
    params = "layers*M*((M - 1)*(12*D**2 + 15*D) + 12*((M - 1)*D)**2 + 13*(M - 1)*D) + M*(M - 1)*D**2 + 2*D"
    flops = "layers*M*(M - 1)*(24*L*D**2 + 4*L**2*D) + layers*M*(24*L*((M - 1)*D)**2 + 4*L**2*(M - 1)*D) + 2*M*(M - 1)*D**2"

    cross: Any  # nn.ModuleDict of ModuleLists: its values are typed as Module alone
    own: Any

    def __init__(
        self,
        dim: int,
        modalities: Sequence[str],
        outputs: Mapping[str, int],
        *,
        layers: Annotated[int, Field(ge=1)] = 2,
        heads: Annotated[int, Field(ge=1)] = 4,
        dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0,
    ):
        """Build the stacks."""
        super().__init__()
        pairs = [(a, b) for a in modalities for b in modalities if a != b]
        wide, number = (len(modalities) - 1) * dim, range(layers)
        self.cross = nn.ModuleDict(
            {f"{b}_to_{a}": nn.ModuleList(CrossBlock(dim, heads, dropout) for _ in number) for a, b in pairs}
        )
        self.own = nn.ModuleDict({m: nn.ModuleList(Block(wide, heads, dropout) for _ in number) for m in modalities})
        self.out = nn.Linear(len(modalities) * wide, dim)
        self.nothing = nn.Parameter(torch.zeros(dim))

    def forward(self, parts: dict[str, Encoded]) -> Fused:
        """(B, L_m, D) a modality → (B, D)."""
        _, present = stacked(parts)  # (B, M)
        found = []
        for a, x in parts.items():
            z = torch.cat([self._seen(a, x, b, parts) for b in parts if b != a], 2)  # (B, L_a, (M − 1)·D)
            for block in self.own[a]:
                z = block(z, x.mask)
            found.append(masked_mean(z, x.mask) * x.present[:, None])
        y = torch.cat(found, 1) * (len(parts) / present.sum(1, keepdim=True).clamp(min=1))
        return Fused(Encoded.of(unless_nothing(self.out(y), present, self.nothing)), {}, {}, {})

    def _seen(self, a: str, x: Encoded, b: str, parts: dict[str, Encoded]) -> torch.Tensor:
        """X_{b→a}, (B, L_a, D), times its weight."""
        others = torch.stack([y.present for m, y in parts.items() if m != a], 1).sum(1)  # (B,)
        weight = torch.where(others > 0, parts[b].present * (len(parts) - 1) / others.clamp(min=1), 1.0)
        z = x.tokens
        for block in self.cross[f"{b}_to_{a}"]:
            z = block(z, parts[b].tokens, key_mask(parts[b]))
        return z * weight[:, None, None].to(z.dtype)
