"""Factorised bilinear pooling."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated

import torch.nn.functional as F
from pydantic import Field
from torch import nn

from mmkt.layers.presence import apply_each, stacked
from mmkt.types import Encoded, Fused, Fusion


class MFB(Fusion):
    """Multimodal factorised bilinear pooling (Yu et al., 2017): z = Σ-pool_k(Π_m U_m x_m), signed square root, L2 norm.

    The factors have k·D features, of which k at a time are summed. For two modalities it is the paper's; more multiply
    alike. Exact: a missing factor is 1. The square root is of |z| + ε less that of ε, as its slope at zero is infinite.
    """

    level = "pooled"
    symmetric = True
    missing = "exact"
    interacts = True
    cost = "M·k·D²"
    params = "M*(D + 1)*k*D"
    flops = "2*M*k*D**2"

    def __init__(
        self,
        dim: int,
        modalities: Sequence[str],
        outputs: Mapping[str, int],
        *,
        k: Annotated[int, Field(ge=1)] = 5,
        dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0,
    ):
        """Build the factors."""
        super().__init__()
        self.k, self.drop = k, nn.Dropout(dropout)
        self.project = nn.ModuleDict({m: nn.Linear(dim, k * dim) for m in modalities})

    def forward(self, parts: dict[str, Encoded]) -> Fused:
        """(B, D) a modality → (B, D)."""
        x, present = stacked(parts)  # (B, M, D), (B, M)
        h = apply_each(self.project, x)  # (B, M, k·D)
        both = self.drop(h.masked_fill(~present[..., None], 1.0).prod(1)).float()
        z = both.view(len(x), -1, self.k).sum(2)  # (B, D)
        eps = 1e-6
        root = z.sign() * ((z.abs() + eps).sqrt() - eps**0.5)
        return Fused(Encoded.of(F.normalize(root, dim=1)), {}, {}, {})
