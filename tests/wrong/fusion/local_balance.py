"""A term that squares a mean of the local rows alone: two processes don't give what one gives."""

from torch import nn

from mmkt.layers.presence import mean_present, stacked
from mmkt.types import Encoded, Fused, Fusion


class LocalBalance(Fusion):
    """Breaks point 7."""

    level, symmetric, missing, interacts = "pooled", True, "exact", False
    cost, params, flops = "M·D", "D**2 + D", "2*D**2"
    terms = {"balance": 10.0}  # noqa: RUF012

    def __init__(self, dim, modalities, outputs):
        super().__init__()
        self.out = nn.Linear(dim, dim)

    def forward(self, parts):
        y = self.out(mean_present(*stacked(parts)))
        return Fused(Encoded.of(y), {}, {"balance": y.mean(0).square().mean()}, {})
