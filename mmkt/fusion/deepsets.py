"""Deep sets over the modalities."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import nn

from mmkt.layers.mlp import mlp
from mmkt.layers.presence import apply_each, mean_present, stacked
from mmkt.types import Encoded, Fused, Fusion


class Deepsets(Fusion):
    """Deep sets (Zaheer et al., 2017): y = ρ(Σ_{m∈P} φ_m(x_m)), with a φ a modality, as modalities are told apart.

    φ_m is a linear layer and GELU, ρ an MLP. An empty sum is zero, so that nothing present is ρ(0).
    """

    level = "pooled"
    symmetric = True
    missing = "exact"
    interacts = True
    cost = "M·D² + D·H"
    params = "M*(D**2 + D) + (2*D + 1)*(hidden or D) + D"
    flops = "2*M*D**2 + 4*D*(hidden or D)"

    def __init__(
        self,
        dim: int,
        modalities: Sequence[str],
        outputs: Mapping[str, int],
        *,
        pool: Literal["sum", "mean", "max"] = "sum",
        hidden: Annotated[int, Field(ge=1)] | None = None,
        dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0,
    ):
        """Build φ and ρ; ``hidden`` of ρ is dim by default."""
        super().__init__()
        hidden = hidden or dim
        self.pool = pool
        self.phi = nn.ModuleDict({m: nn.Sequential(nn.Linear(dim, dim), nn.GELU()) for m in modalities})
        self.rho = mlp(dim, hidden, dim, dropout)

    def forward(self, parts: dict[str, Encoded]) -> Fused:
        """(B, D) a modality → (B, D)."""
        x, present = stacked(parts)  # (B, M, D), (B, M)
        h = apply_each(self.phi, x)
        if self.pool == "max":
            pooled = h.masked_fill(~present[..., None], torch.finfo(h.dtype).min).amax(1)
            pooled = pooled.masked_fill(~present.any(1, keepdim=True), 0.0)
        else:
            pooled = mean_present(h, present)
            pooled = pooled * present.sum(1, keepdim=True) if self.pool == "sum" else pooled
        return Fused(Encoded.of(self.rho(pooled)), {}, {}, {})
