"""A state that one modality after another updates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated

import torch
from pydantic import Field
from torch import nn

from mmkt.layers.mlp import mlp
from mmkt.layers.presence import stacked
from mmkt.types import Encoded, Fused, Fusion


class Sequential(Fusion):
    """MultiModN (Swamy et al., 2023): s_i = f_i([s_{i−1}; x_i]) where modality i is present, s_{i−1} where it isn't.

    s_0 is learned, f_i an MLP, y the last state. Exact: a missing modality is skipped, so that the state is as if it were
    not there. The order of the modalities matters.
    """

    level = "pooled"
    symmetric = False
    missing = "exact"
    interacts = True
    cost = "M·D·H"
    params = "D + M*((2*D + 1)*(hidden or D) + ((hidden or D) + 1)*D)"
    flops = "6*M*D*(hidden or D)"

    def __init__(
        self,
        dim: int,
        modalities: Sequence[str],
        outputs: Mapping[str, int],
        *,
        hidden: Annotated[int, Field(ge=1)] | None = None,
        dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0,
    ):
        """Build an MLP a modality; its ``hidden`` is dim by default."""
        super().__init__()
        hidden = hidden or dim
        self.start = nn.Parameter(torch.zeros(dim))
        self.step = nn.ModuleDict({m: mlp(2 * dim, hidden, dim, dropout) for m in modalities})

    def forward(self, parts: dict[str, Encoded]) -> Fused:
        """(B, D) a modality → (B, D)."""
        x, present = stacked(parts)  # (B, M, D), (B, M)
        s = self.start.to(x.dtype).expand(len(x), -1)
        for k, m in enumerate(parts):
            s = torch.where(present[:, k, None], self.step[m](torch.cat([s, x[:, k]], 1)), s)
        return Fused(Encoded.of(s), {}, {}, {})
