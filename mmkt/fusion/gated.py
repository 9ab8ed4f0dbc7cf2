"""Gated multimodal unit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import nn

from mmkt.layers.presence import apply_each, masked_softmax, stacked, unless_nothing
from mmkt.types import Encoded, Fused, Fusion


class Gated(Fusion):
    """Gated multimodal unit (Arevalo et al., 2017): a learned mix of the pooled vectors, feature by feature.

    h_m = tanh(W_m x_m), y = Σ_{m∈P} z_m ⊙ h_m. The paper ties the gates of two modalities, z and 1 − z, which is the
    softmax over both, and gives each of more a sigmoid of its own: z_m = σ(V_m [x_1; …; x_M]). ``gates: softmax`` is a
    convex mix for any number. Exact: a missing modality enters neither the gates' input (zeros) nor the mix; with nothing
    present the answer is a learned vector.
    """

    level = "pooled"
    symmetric = False
    missing = "exact"
    interacts = True
    cost = "M²·D²"
    params = "M*(D**2 + D) + (M*D)**2 + M*D + D"
    flops = "2*M*D**2 + 2*(M*D)**2"

    def __init__(
        self,
        dim: int,
        modalities: Sequence[str],
        outputs: Mapping[str, int],
        *,
        gates: Literal["paper", "softmax", "sigmoid"] = "paper",
        dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0,
    ):
        """Build M transforms and the gates."""
        super().__init__()
        self.convex = gates == "softmax" or (gates == "paper" and len(modalities) == 2)
        self.transform = nn.ModuleDict({m: nn.Linear(dim, dim) for m in modalities})
        self.gate = nn.Linear(len(modalities) * dim, len(modalities) * dim)
        self.nothing = nn.Parameter(torch.zeros(dim))
        self.drop = nn.Dropout(dropout)

    def forward(self, parts: dict[str, Encoded]) -> Fused:
        """(B, D) a modality → (B, D); the gates (B, M, D) come out as a note."""
        x, present = stacked(parts)  # (B, M, D), (B, M)
        there = present[..., None]
        h = torch.tanh(apply_each(self.transform, x))
        scores = self.gate(x.flatten(1)).view_as(x)
        z = masked_softmax(scores, there, 1) if self.convex else scores.sigmoid().masked_fill(~there, 0.0)
        y = unless_nothing((z * h).sum(1), present, self.nothing)
        return Fused(Encoded.of(self.drop(y)), {}, {}, {"gates": z})
