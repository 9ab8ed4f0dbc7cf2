"""Low-rank tensor fusion."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated

import torch
from pydantic import Field
from torch import nn

from mmkt.layers.presence import stacked, with_one
from mmkt.types import Encoded, Fused, Fusion


class Lowrank(Fusion):
    """Low-rank multimodal fusion (Liu et al., 2018): y = Σ_r w_r Π_m (W_m^{(r)} [1; x_m]) + b.

    That is tensor fusion whose W is a sum of rank-one tensors, without ever building the tensor. Exact: a missing modality
    is [1; 0]. The factors are one parameter, (M, rank, D + 1, D), in the modalities' order.
    """

    level = "pooled"
    symmetric = False
    missing = "exact"
    interacts = True
    cost = "M·rank·D²"
    params = "M*rank*(D + 1)*D + rank + D"
    flops = "2*rank*(M*(D + 1)*D + D)"

    def __init__(
        self,
        dim: int,
        modalities: Sequence[str],
        outputs: Mapping[str, int],
        *,
        rank: Annotated[int, Field(ge=1)] = 4,
    ):
        """Draw the factors (Xavier) and the weights of the ranks."""
        super().__init__()
        self.factors = nn.Parameter(torch.empty(len(modalities), rank, dim + 1, dim))
        for factor in self.factors.data.flatten(0, 1):
            nn.init.xavier_normal_(factor)
        self.weights = nn.Parameter(torch.randn(rank) * rank**-0.5)
        self.bias = nn.Parameter(torch.zeros(dim))

    def forward(self, parts: dict[str, Encoded]) -> Fused:
        """(B, D) a modality → (B, D)."""
        x = with_one(stacked(parts)[0])  # (B, M, D + 1)
        each = torch.einsum("bmi,mrid->mbrd", x, self.factors)
        return Fused(Encoded.of(torch.einsum("brd,r->bd", each.prod(0), self.weights) + self.bias), {}, {}, {})
