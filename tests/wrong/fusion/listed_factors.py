"""Low-rank fusion whose factors lie in a Python list: they are never trained, saved or moved."""

import torch
from torch import nn

from mmkt.types import Encoded, Fused, Fusion


class ListedFactors(Fusion):
    """Breaks point 1."""

    level, symmetric, missing, interacts = "pooled", False, "exact", True
    cost, params, flops = "M·D²", "D**2 + D", "2*M*D*(D + 1) + 2*D**2"

    def __init__(self, dim, modalities, outputs):
        super().__init__()
        self.factors = [nn.Parameter(torch.randn(dim + 1, dim) * dim**-0.5) for _ in modalities]
        self.out = nn.Linear(dim, dim)

    def forward(self, parts):
        y = 1.0
        for factor, x in zip(self.factors, parts.values()):
            pooled = x.pooled.masked_fill(~x.present[:, None], 0.0)
            y = y * (torch.cat([torch.ones_like(pooled[:, :1]), pooled], 1) @ factor)
        return Fused(Encoded.of(self.out(y)), {}, {}, {})
