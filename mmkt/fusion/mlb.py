"""Low-rank bilinear pooling through tanh."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated

import torch
from pydantic import Field
from torch import nn

from mmkt.layers.presence import apply_each, stacked
from mmkt.types import Encoded, Fused, Fusion


class MLB(Fusion):
    """Multimodal low-rank bilinear pooling (Kim et al., 2017): y = W_o Π_m tanh(U_m x_m) + b.

    For two modalities it is the paper's; more multiply alike. Exact: a missing factor is 1.
    """

    level = "pooled"
    symmetric = True
    missing = "exact"
    interacts = True
    cost = "M·D·H"
    params = "M*(D + 1)*(hidden or D) + (hidden or D)*D + D"
    flops = "2*(M + 1)*D*(hidden or D)"

    def __init__(
        self,
        dim: int,
        modalities: Sequence[str],
        outputs: Mapping[str, int],
        *,
        hidden: Annotated[int, Field(ge=1)] | None = None,
        dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0,
    ):
        """Build the projections; ``hidden`` is dim by default."""
        super().__init__()
        hidden = hidden or dim
        self.project = nn.ModuleDict({m: nn.Linear(dim, hidden) for m in modalities})
        self.drop, self.out = nn.Dropout(dropout), nn.Linear(hidden, dim)

    def forward(self, parts: dict[str, Encoded]) -> Fused:
        """(B, D) a modality → (B, D)."""
        x, present = stacked(parts)  # (B, M, D), (B, M)
        h = torch.tanh(apply_each(self.project, x))  # (B, M, H)
        return Fused(Encoded.of(self.out(self.drop(h.masked_fill(~present[..., None], 1.0).prod(1)))), {}, {}, {})
