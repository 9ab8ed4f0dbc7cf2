"""The largest of what the modalities say, feature by feature."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from mmkt.layers.presence import apply_each, stacked, unless_nothing
from mmkt.types import Encoded, Fused, Fusion


class Max(Fusion):
    """Element-wise maximum over the present modalities: y = max_{m∈P} W_m x_m. With nothing present, a learned vector."""

    level = "pooled"
    symmetric = True
    missing = "exact"
    interacts = True
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
        y = h.masked_fill(~present[..., None], torch.finfo(h.dtype).min).amax(1)
        return Fused(Encoded.of(unless_nothing(y, present, self.nothing)), {}, {}, {})
