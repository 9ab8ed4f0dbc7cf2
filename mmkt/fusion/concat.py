"""Concatenation: the baseline every other fusion is held against."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated

import torch
from pydantic import Field

from mmkt.layers.mlp import mlp
from mmkt.types import Encoded, Fused, Fusion


class Concat(Fusion):
    """Concatenation: y = MLP([x_1; …; x_M; p]) of the pooled vectors and the presence bits.

    A missing modality's learned vector e_m stands in its slot. With ``transfer.frozen: [fusion]`` its weights stay random:
    what the projections and the head make of it alone.
    """

    level = "pooled"
    symmetric = False
    missing = "stand-in"
    interacts = True
    cost = "M·D·H"
    params = "(M*(D + 1) + 1 + D)*(hidden or 2*D) + D"
    flops = "2*(M*(D + 1) + D)*(hidden or 2*D)"

    def __init__(
        self,
        dim: int,
        modalities: Sequence[str],
        outputs: Mapping[str, int],
        *,
        hidden: Annotated[int, Field(ge=1)] | None = None,
        dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0,
    ):
        """Build the MLP; ``hidden`` is 2·dim by default."""
        super().__init__()
        hidden = hidden or 2 * dim
        width = len(modalities) * (dim + 1)
        self.mlp = mlp(width, hidden, dim, dropout)

    def forward(self, parts: dict[str, Encoded]) -> Fused:
        """(B, D) a modality → (B, D)."""
        pooled = [x.pooled for x in parts.values()]
        bits = torch.stack([x.present for x in parts.values()], 1).to(pooled[0].dtype)  # (B, M)
        return Fused(Encoded.of(self.mlp(torch.cat([*pooled, bits], 1))), {}, {}, {})
