"""Merged attention: one transformer over the tokens of all modalities."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated

import torch
from pydantic import Field
from torch import nn

from mmkt.layers.presence import joined, with_summary
from mmkt.layers.transformer import Block
from mmkt.types import Encoded, Fused, Fusion


class Merged(Fusion):
    """Merged attention (MMBT, Kiela et al., 2019; ViLT, Kim et al., 2021): Enc([CLS; X_1 + t_1; …; X_M + t_M]) → CLS.

    t_m is a learned type vector. Exact: a missing modality's tokens are masked keys, the same as if they were not there.
    """

    level = "token"
    symmetric = True
    missing = "exact"
    interacts = True
    cost = "layers·(M·L·D² + M²·L²·D)"
    params = "(M + 1)*D + layers*(12*D**2 + 13*D) + 2*D"
    flops = "layers*(24*(1 + M*L)*D**2 + 4*(1 + M*L)**2*D)"

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
        x, mask = joined(part._replace(tokens=part.tokens + self.kind[m]) for m, part in parts.items())
        start = with_summary(self.cls.to(x.dtype).expand(len(x), -1), x, mask)
        x = start.tokens
        for block in self.blocks:
            x = block(x, start.mask)
        x = self.norm(x)
        return Fused(with_summary(x[:, 0], x[:, 1:], mask), {}, {}, {})
