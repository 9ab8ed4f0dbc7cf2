"""The product of what each modality says, feature by feature."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import nn

from mmkt.layers.presence import apply_each, stacked
from mmkt.types import Encoded, Fused, Fusion


class Product(Fusion):
    """Hadamard product: y = LayerNorm(Π_m (W_m x_m)^{p_m}). A missing factor is 1, its neutral element; with nothing present
    the answer is the norm's learned bias.
    """

    level = "pooled"
    symmetric = True
    missing = "exact"
    interacts = True
    cost = "M·D²"
    params = "M*(D**2 + D) + 2*D"
    flops = "2*M*D**2"

    def __init__(self, dim: int, modalities: Sequence[str], outputs: Mapping[str, int]):
        """Build M projections and the norm."""
        super().__init__()
        self.project = nn.ModuleDict({m: nn.Linear(dim, dim) for m in modalities})
        self.norm = nn.LayerNorm(dim)

    def forward(self, parts: dict[str, Encoded]) -> Fused:
        """(B, D) a modality → (B, D)."""
        x, present = stacked(parts)  # (B, M, D), (B, M)
        h = apply_each(self.project, x)
        return Fused(Encoded.of(self.norm(h.masked_fill(~present[..., None], 1.0).prod(1))), {}, {}, {})
