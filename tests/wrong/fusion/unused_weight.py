"""A sum with a layer that nothing goes through."""

from torch import nn

from mmkt.layers.presence import mean_present, stacked
from mmkt.types import Encoded, Fused, Fusion


class UnusedWeight(Fusion):
    """Breaks points 1 and 7."""

    level, symmetric, missing, interacts = "pooled", True, "exact", False
    cost, params, flops = "M·D", "2*(D**2 + D)", "2*D**2"

    def __init__(self, dim, modalities, outputs):
        super().__init__()
        self.out, self.spare = nn.Linear(dim, dim), nn.Linear(dim, dim)

    def forward(self, parts):
        return Fused(Encoded.of(self.out(mean_present(*stacked(parts)))), {}, {}, {})
