"""Merged attention: one transformer over the tokens of all modalities."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated

import torch
from pydantic import Field
from torch import nn

from mmkt.layers.masked import zero_masked
from mmkt.layers.transformer import Block
from mmkt.types import Encoded, Fused, Fusion


class Merged(Fusion):
    """Merged attention (MMBT, Kiela et al., 2019; ViLT, Kim et al., 2021): Enc([CLS; X_1 + t_1; …; X_M + t_M]) → CLS.

    t_m is a learned type vector. Exact: a missing modality's tokens are masked keys, the same as if they were not there.
    """

    level = "token"
    symmetric = True
    missing = "exact"
    cost = "layers·(ΣL)²·D"

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
        """Build the blocks."""
        super().__init__()
        self.cls = nn.Parameter(torch.randn(dim) * 0.02)
        self.kind = nn.ParameterDict({m: nn.Parameter(torch.randn(dim) * 0.02) for m in modalities})
        self.blocks = nn.ModuleList(Block(dim, heads, dropout) for _ in range(layers))
        self.norm = nn.LayerNorm(dim)

    def forward(self, parts: dict[str, Encoded]) -> Fused:
        """(B, L_m, D) a modality → tokens (B, 1 + ΣL_m, D), CLS first."""
        first = next(iter(parts.values()))
        rows = first.pooled.shape[0]
        x = torch.cat(
            [self.cls.to(first.tokens.dtype).expand(rows, 1, -1)] + [p.tokens + self.kind[m] for m, p in parts.items()], 1
        )
        there = torch.ones(rows, 1, dtype=torch.bool, device=x.device)
        mask = torch.cat([there] + [p.mask & p.present[:, None] for p in parts.values()], 1)
        x = zero_masked(x, mask)
        for block in self.blocks:
            x = block(x, mask)
        x = zero_masked(self.norm(x), mask)
        return Fused(Encoded(x, mask, x[:, 0], there[:, 0]), {}, {}, {})
