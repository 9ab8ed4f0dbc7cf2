"""Averages over every token there is room for."""

import torch
from torch import nn

from mmkt.layers.presence import mean_present
from mmkt.types import Encoded, Fused, Fusion


class ReadPadding(Fusion):
    """Breaks point 4."""

    level, symmetric, missing, interacts = "token", True, "exact", False
    cost, params, flops = "M·L·D", "D**2 + D", "2*D**2"

    def __init__(self, dim, modalities, outputs):
        super().__init__()
        self.out = nn.Linear(dim, dim)

    def forward(self, parts):
        means = torch.stack([x.tokens.mean(1) for x in parts.values()], 1)
        present = torch.stack([x.present for x in parts.values()], 1)
        return Fused(Encoded.of(self.out(mean_present(means, present))), {}, {}, {})
