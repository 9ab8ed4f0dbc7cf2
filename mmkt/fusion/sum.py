"""The mean of what each modality says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from mmkt.layers.presence import apply_each, mean_present, stacked, unless_nothing
from mmkt.types import Encoded, Fused, Fusion


class Sum(Fusion):
    """A sum of projections, renormalised: y = Σ_m p_m W_m x_m / Σ_m p_m. With nothing present, a learned vector."""

    level = "pooled"
    symmetric = True
    missing = "exact"
    interacts = False
    cost = "M·D²"
    params = "M*(D**2 + D) + D"
    flops = "2*M*D**2"

    def __init__(self, dim: int, modalities: Sequence[str], outputs: Mapping[str, int]):
        """Build M projections."""
        super().__init__()
        self.project = nn.ModuleDict({m: nn.Linear(dim, dim) for m in modalities})
        self.nothing = nn.Parameter(torch.zeros(dim))

    def forward(self, parts: dict[str, Encoded]) -> Fused:
        """(B, D) a modality → (B, D)."""
        x, present = stacked(parts)  # (B, M, D), (B, M)
        h = apply_each(self.project, x)
        return Fused(Encoded.of(unless_nothing(mean_present(h, present), present, self.nothing)), {}, {}, {})
