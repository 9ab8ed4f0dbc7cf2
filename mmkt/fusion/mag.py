"""Multimodal adaptation gate: one modality's tokens, shifted by the others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated

import torch
from pydantic import Field
from torch import nn

from mmkt.layers.masked import zero_masked
from mmkt.layers.presence import target_of
from mmkt.types import Encoded, Fused, Fusion


class MAG(Fusion):
    """Multimodal adaptation gate (Rahman et al., 2020): z̄ = z + min(β‖z‖ / ‖h‖, 1) h with h = Σ_v g_v ⊙ W_v v + b.

    z is a token of the first modality or ``target``, or its summary; v the others' summaries; g_v = ReLU(V_v [z; v] + c_v).
    W_v and b start at zero and the paper's LayerNorm of z̄ is left out, so that before training the answer is the target's
    own to the bit. A missing v has g_v = 0; without any there is no b either. A missing target is its learned vector.
    """

    arity = "two+"
    level = "token"
    symmetric = False
    missing = "stand-in"
    interacts = True
    cost = "M·L·D²"
    params = "(M - 1)*(3*D**2 + D) + D"
    flops = "2*(M - 1)*(2*(1 + L)*D**2 + D**2)"
    identity_at_start = True

    def __init__(
        self,
        dim: int,
        modalities: Sequence[str],
        outputs: Mapping[str, int],
        *,
        target: str | None = None,
        beta: Annotated[float, Field(gt=0)] = 1.0,
        dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0,
    ):
        """Build gates and shifts; ``beta`` bounds a shift's length by that of z."""
        super().__init__()
        self.target, self.beta = target_of(target, modalities), beta
        others = [m for m in modalities if m != self.target]
        self.gate = nn.ModuleDict({m: nn.Linear(2 * dim, dim) for m in others})
        self.shift = nn.ParameterDict({m: nn.Parameter(torch.zeros(dim, dim)) for m in others})
        self.bias = nn.Parameter(torch.zeros(dim))
        self.drop = nn.Dropout(dropout)

    def forward(self, parts: dict[str, Encoded]) -> Fused:
        """(B, L_m, D) a modality → tokens (B, L_target, D)."""
        target = parts[self.target]
        z = torch.cat([target.pooled[:, None], target.tokens], 1)  # (B, 1 + L, D)
        h, some = self.bias.expand_as(z), torch.zeros_like(target.present)
        for m, gate in self.gate.items():
            there = parts[m].present
            v = parts[m].pooled.masked_fill(~there[:, None], 0.0)[:, None]  # (B, 1, D)
            g = torch.relu(gate(torch.cat([z, v.expand_as(z)], 2))).masked_fill(~there[:, None, None], 0.0)
            h, some = h + g * (v @ self.shift[m].T), some | there
        length = torch.linalg.vector_norm(z, dim=2, keepdim=True) / (torch.linalg.vector_norm(h, dim=2, keepdim=True) + 1e-6)
        x = z + self.drop((self.beta * length).clamp(max=1) * h).masked_fill(~some[:, None, None], 0.0)
        return Fused(Encoded(zero_masked(x[:, 1:], target.mask), target.mask, x[:, 0], target.mask.any(1)), {}, {}, {})
