"""Block-term fusion."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated

import torch
from pydantic import Field
from torch import nn

from mmkt.layers.presence import stacked
from mmkt.types import Encoded, Fused, Fusion


class Block(Fusion):
    """BLOCK (Ben-younes et al., 2019): the core of a Tucker fusion is block-diagonal, each block of a low rank.

    U_m x_m is cut into chunks of H/chunks features; chunk c gives z_c = Σ_r Π_m M_{m,c}^{(r)} (U_m x_m)_c, and
    y = W_o [z_1; …; z_C] + b. For two modalities it is the paper's; more multiply alike. Exact: a missing factor is 1.
    """

    level = "pooled"
    symmetric = True
    missing = "exact"
    interacts = True
    cost = "M·D·H + M·rank·H²/chunks"
    params = "M*((D + 1)*(hidden or D) + rank*((hidden or D)//chunks + 1)*(hidden or D)) + (hidden or D)*D + D"
    flops = "2*M*(D*(hidden or D) + rank*(hidden or D)**2//chunks) + 2*(hidden or D)*D"

    def __init__(
        self,
        dim: int,
        modalities: Sequence[str],
        outputs: Mapping[str, int],
        *,
        chunks: Annotated[int, Field(ge=1)] = 4,
        rank: Annotated[int, Field(ge=1)] = 4,
        hidden: Annotated[int, Field(ge=1)] | None = None,
        dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0,
    ):
        """Build projections and blocks; ``hidden`` is dim by default and divides by ``chunks``."""
        super().__init__()
        hidden = hidden or dim
        if hidden % chunks:
            raise ValueError(f"{hidden} hidden features do not divide into {chunks} chunks: set model.fusion.chunks")
        size = hidden // chunks
        self.chunks, self.rank = chunks, rank
        self.project = nn.ModuleDict({m: nn.Linear(dim, hidden) for m in modalities})
        draw = size**-0.5
        self.core = nn.ParameterDict(
            {m: nn.Parameter(torch.empty(chunks, size, rank * size).uniform_(-draw, draw)) for m in modalities}
        )
        self.bias = nn.ParameterDict(
            {m: nn.Parameter(torch.empty(chunks, rank * size).uniform_(-draw, draw)) for m in modalities}
        )
        self.drop, self.out = nn.Dropout(dropout), nn.Linear(hidden, dim)

    def forward(self, parts: dict[str, Encoded]) -> Fused:
        """(B, D) a modality → (B, D)."""
        x, present = stacked(parts)  # (B, M, D), (B, M)
        product = torch.ones(1, device=x.device, dtype=x.dtype)
        for k, m in enumerate(parts):
            h = self.drop(self.project[m](x[:, k])).view(len(x), self.chunks, -1)
            h = torch.einsum("bcs,cst->bct", h, self.core[m]) + self.bias[m]
            product = product * h.masked_fill(~present[:, k, None, None], 1.0)  # (B, chunks, rank·size)
        z = product.view(len(x), self.chunks, self.rank, -1).sum(2).flatten(1)
        return Fused(Encoded.of(self.out(z)), {}, {}, {})
