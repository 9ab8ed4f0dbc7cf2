"""Additive attention over the modalities."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated

import torch
from pydantic import Field
from torch import nn

from mmkt.layers.presence import masked_softmax, stacked, unless_nothing
from mmkt.types import Encoded, Fused, Fusion


class AttentionPool(Fusion):
    """Additive attention (Bahdanau et al., 2015) over the pooled vectors: a = softmax_{m∈P}(wᵀ tanh(U x_m)), y = Σ_m a_m x_m.

    Behind a linear head the sign of its answer is that of a sum over modalities, weights or no weights (multiply by the
    softmax's denominator), so that it models no interaction. With nothing present, a learned vector.
    """

    level = "pooled"
    symmetric = True
    missing = "exact"
    interacts = False
    cost = "M·D·H"
    params = "(D + 2)*(hidden or D) + D"
    flops = "2*M*(D + 1)*(hidden or D)"

    def __init__(
        self,
        dim: int,
        modalities: Sequence[str],
        outputs: Mapping[str, int],
        *,
        hidden: Annotated[int, Field(ge=1)] | None = None,
    ):
        """Build U and w; ``hidden`` is dim by default."""
        super().__init__()
        hidden = hidden or dim
        self.inner, self.score = nn.Linear(dim, hidden), nn.Linear(hidden, 1, bias=False)
        self.nothing = nn.Parameter(torch.zeros(dim))

    def forward(self, parts: dict[str, Encoded]) -> Fused:
        """(B, D) a modality → (B, D); the weights (B, M) come out as a note."""
        x, present = stacked(parts)  # (B, M, D), (B, M)
        a = masked_softmax(self.score(torch.tanh(self.inner(x)))[..., 0], present, 1)
        y = unless_nothing((a[..., None] * x).sum(1), present, self.nothing)
        return Fused(Encoded.of(y), {}, {}, {"weights": a})
