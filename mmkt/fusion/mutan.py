"""Tucker fusion with a low-rank core."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated

import torch
from pydantic import Field
from torch import nn

from mmkt.layers.presence import apply_each, stacked
from mmkt.types import Encoded, Fused, Fusion


class Mutan(Fusion):
    """MUTAN (Ben-younes et al., 2017): y = W_o Σ_r Π_m M_m^{(r)} tanh(U_m x_m) + b, a Tucker decomposition of rank-R core.

    For two modalities it is the paper's; more multiply alike. Exact: a missing factor M_m^{(r)} tanh(…) is 1.
    """

    level = "pooled"
    symmetric = True
    missing = "exact"
    interacts = True
    cost = "M·rank·H²"
    params = "M*((D + 1)*(hidden or D) + rank*((hidden or D) + 1)*(hidden or D)) + (hidden or D)*D + D"
    flops = "2*M*(D*(hidden or D) + rank*(hidden or D)**2) + 2*(hidden or D)*D"

    def __init__(
        self,
        dim: int,
        modalities: Sequence[str],
        outputs: Mapping[str, int],
        *,
        rank: Annotated[int, Field(ge=1)] = 5,
        hidden: Annotated[int, Field(ge=1)] | None = None,
        dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0,
    ):
        """Build projections and core; ``hidden`` is dim by default."""
        super().__init__()
        hidden = hidden or dim
        self.rank = rank
        self.project = nn.ModuleDict({m: nn.Linear(dim, hidden) for m in modalities})
        self.core = nn.ModuleDict({m: nn.Linear(hidden, rank * hidden) for m in modalities})
        self.drop, self.out = nn.Dropout(dropout), nn.Linear(hidden, dim)

    def forward(self, parts: dict[str, Encoded]) -> Fused:
        """(B, D) a modality → (B, D)."""
        x, present = stacked(parts)  # (B, M, D), (B, M)
        h = apply_each(self.core, self.drop(torch.tanh(apply_each(self.project, x))))
        each = h.masked_fill(~present[..., None], 1.0).prod(1)  # (B, R·H)
        return Fused(Encoded.of(self.out(each.view(len(x), self.rank, -1).sum(1))), {}, {}, {})
