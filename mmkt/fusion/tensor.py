"""Tensor fusion."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated

import torch
from pydantic import Field
from torch import nn

from mmkt.layers.presence import stacked, with_one
from mmkt.types import Encoded, Fused, Fusion


class Tensor(Fusion):
    """Tensor fusion network (Zadeh et al., 2017): y = W vec(⊗_m [1; x_m]) + b, every product of features of different modalities.

    Exact: a missing modality is [1; 0], so that all terms without it stay. The tensor has (D + 1)^M entries: over
    ``limit`` it is refused, and ``width`` first projects every modality to fewer features, as the paper's sub-networks do.
    """

    level = "pooled"
    symmetric = False
    missing = "exact"
    interacts = True
    cost = "D^(M + 1)"
    params = "(M*(D + 1)*width if width else 0) + ((width or D) + 1)**M*D + D"
    flops = "2*((M*D*width if width else 0) + ((width or D) + 1)**M*D)"

    def __init__(
        self,
        dim: int,
        modalities: Sequence[str],
        outputs: Mapping[str, int],
        *,
        width: Annotated[int, Field(ge=1)] | None = None,
        limit: Annotated[int, Field(ge=1)] = 100_000,
    ):
        """Build W; raises ValueError for more than ``limit`` entries."""
        super().__init__()
        d, number = width or dim, len(modalities)
        if (d + 1) ** number > limit:
            most = int((limit + 0.5) ** (1 / number)) - 1
            raise ValueError(
                f"the tensor of {number} modalities of {d} features has {(d + 1) ** number:,} entries, the limit is {limit:,}: "
                f"set model.fusion.width={most} or less, raise model.fusion.limit, or take lowrank, which never builds it"
            )
        self.reduce = nn.ModuleDict({m: nn.Linear(dim, width) if width else nn.Identity() for m in modalities})
        self.linear = nn.Linear((d + 1) ** number, dim)

    def forward(self, parts: dict[str, Encoded]) -> Fused:
        """(B, D) a modality → (B, D)."""
        x, present = stacked(parts)  # (B, M, D), (B, M)
        outer = torch.ones_like(x[:, 0, :1])  # (B, 1)
        for k, m in enumerate(parts):
            factor = with_one(self.reduce[m](x[:, k]).masked_fill(~present[:, k, None], 0.0))
            outer = (outer[:, :, None] * factor[:, None]).flatten(1)  # (B, (D + 1)^(k + 1))
        return Fused(Encoded.of(self.linear(outer)), {}, {}, {})
