"""Gated multimodal unit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated

import torch
from pydantic import Field
from torch import nn

from mmkt.types import Encoded, Fused, Fusion


class Gated(Fusion):
    """Gated multimodal unit (Arevalo et al., 2017): a learned convex mix of the pooled vectors, feature by feature.

    h_m = tanh(W_m x_m), z = softmax over the present m of V_m [x_1; …; x_M], y = Σ_m z_m ⊙ h_m. For two modalities the
    softmax is the paper's sigmoid gate. Exact: a missing modality enters neither the gates' input (zeros) nor the mix;
    with nothing present the answer is a learned vector.
    """

    level = "pooled"
    symmetric = False
    missing = "exact"
    cost = "M²·D² + M·D²"

    def __init__(
        self,
        dim: int,
        modalities: Sequence[str],
        outputs: Mapping[str, int],
        *,
        dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0,
    ):
        """Build M transforms and the gates."""
        super().__init__()
        self.transform = nn.ModuleDict({m: nn.Linear(dim, dim) for m in modalities})
        self.gate = nn.Linear(len(modalities) * dim, len(modalities) * dim)
        self.nothing = nn.Parameter(torch.zeros(dim))
        self.drop = nn.Dropout(dropout)

    def forward(self, parts: dict[str, Encoded]) -> Fused:
        """(B, D) a modality → (B, D); the gates (B, M, D) come out as a note."""
        present = torch.stack([x.present for x in parts.values()], 1)[..., None]  # (B, M, 1)
        x = torch.stack([x.pooled for x in parts.values()], 1).masked_fill(~present, 0.0)  # (B, M, D)
        h = torch.stack([torch.tanh(self.transform[m](x[:, k])) for k, m in enumerate(parts)], 1)
        scores = self.gate(x.flatten(1)).view_as(x)
        some = present.any(1, keepdim=True)  # a softmax over nothing would be NaN
        z = scores.masked_fill(~present & some, float("-inf")).softmax(1)  # (B, M, D)
        y = torch.where(some[:, 0], (z * h).sum(1), self.nothing.to(h.dtype))
        return Fused(Encoded.of(self.drop(y)), {}, {}, {"gates": z})
