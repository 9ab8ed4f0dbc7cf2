"""Co-attention: every modality's tokens attend to the others', layer by layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import nn

from mmkt.layers.masked import masked_mean
from mmkt.layers.presence import joined, stacked, unless_nothing, with_summary
from mmkt.layers.transformer import Block, CrossBlock
from mmkt.types import Encoded, Fused, Fusion


class Coattention(Fusion):
    """Co-attention (ViLBERT, Lu et al., 2019): in every layer X_a attends to all the others, then to itself.

    All modalities look at the others as the layer before left them. They are summed up as in MCAN (Yu et al., 2019):
    y = LayerNorm(Σ_{m∈P} W_m mean(X_m)). Exact: a missing modality is no key, and a row without keys keeps its residual;
    with nothing present the answer is a learned vector.
    """

    arity = "two+"
    level = "token"
    symmetric = True
    missing = "exact"
    interacts = True
    cost = "layers·M²·(L·D² + L²·D)"
    params = "layers*M*(24*D**2 + 28*D) + M*(D**2 + D) + 3*D"
    flops = "layers*M*(44*L*D**2 + 4*(M - 1)*L*D**2 + 4*M*L**2*D) + 2*M*D**2"

    cross: Any  # nn.ModuleList of ModuleDicts: its items are typed as Module alone
    own: Any

    def __init__(
        self,
        dim: int,
        modalities: Sequence[str],
        outputs: Mapping[str, int],
        *,
        layers: Annotated[int, Field(ge=1)] = 2,
        heads: Annotated[int, Field(ge=1)] = 4,
        dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0,
    ):
        """Build the layers."""
        super().__init__()
        self.cross = nn.ModuleList(nn.ModuleDict({m: CrossBlock(dim, heads, dropout) for m in modalities}) for _ in range(layers))
        self.own = nn.ModuleList(nn.ModuleDict({m: Block(dim, heads, dropout) for m in modalities}) for _ in range(layers))
        self.reduce = nn.ModuleDict({m: nn.Linear(dim, dim) for m in modalities})
        self.norm = nn.LayerNorm(dim)
        self.nothing = nn.Parameter(torch.zeros(dim))

    def forward(self, parts: dict[str, Encoded]) -> Fused:
        """(B, L_m, D) a modality → tokens (B, 1 + ΣL_m, D), the summary first."""
        _, present = stacked(parts)  # (B, M)
        for cross, own in zip(self.cross, self.own):
            seen = {a: cross[a](x.tokens, *joined(y for m, y in parts.items() if m != a)) for a, x in parts.items()}
            parts = {a: x._replace(tokens=own[a](seen[a], x.mask)) for a, x in parts.items()}
        h = torch.stack([self.reduce[m](masked_mean(x.tokens, x.mask)) for m, x in parts.items()], 1)
        y = self.norm((h * present[..., None]).sum(1))
        return Fused(with_summary(unless_nothing(y, present, self.nothing), *joined(parts.values())), {}, {}, {})
