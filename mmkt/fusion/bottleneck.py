"""Attention bottlenecks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import nn

from mmkt.layers.presence import key_mask, mean_present, stacked, unless_nothing, with_summary
from mmkt.layers.transformer import Block
from mmkt.types import Encoded, Fused, Fusion


class Bottleneck(Fusion):
    """Multimodal bottleneck transformer (MBT, Nagrani et al., 2021): modalities meet in a few tokens z alone.

    A layer: [X_m ‖ z_m] = Block_m([X_m ‖ z]), then z = mean_{m∈P} z_m. A modality's summary goes first, as its CLS; the
    answer is the mean of those of the present modalities (the paper's mean of logits, for a linear head). Exact: a missing
    modality is no key and in no mean; with nothing present the answer is a learned vector.
    """

    level = "token"
    symmetric = True
    missing = "exact"
    interacts = True
    cost = "layers·M·(L·D² + L²·D)"
    params = "layers*M*(12*D**2 + 13*D) + bottlenecks*D + 3*D"
    flops = "layers*M*(24*(1 + L + bottlenecks)*D**2 + 4*(1 + L + bottlenecks)**2*D)"

    layers: Any  # nn.ModuleList of ModuleDicts: its items are typed as Module alone

    def __init__(
        self,
        dim: int,
        modalities: Sequence[str],
        outputs: Mapping[str, int],
        *,
        bottlenecks: Annotated[int, Field(ge=1)] = 4,
        layers: Annotated[int, Field(ge=1)] = 2,
        heads: Annotated[int, Field(ge=1)] = 4,
        dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0,
    ):
        """Build a block a layer and modality."""
        super().__init__()
        self.bottlenecks = nn.Parameter(torch.randn(bottlenecks, dim) * 0.02)
        self.layers = nn.ModuleList(nn.ModuleDict({m: Block(dim, heads, dropout) for m in modalities}) for _ in range(layers))
        self.norm = nn.LayerNorm(dim)
        self.nothing = nn.Parameter(torch.zeros(dim))

    def forward(self, parts: dict[str, Encoded]) -> Fused:
        """(B, L_m, D) a modality → tokens (B, 1 + K, D), the summary, then the K bottlenecks."""
        pooled, present = stacked(parts)  # (B, M, D), (B, M)
        number, rows = len(self.bottlenecks), len(pooled)
        z = self.bottlenecks.to(pooled.dtype).expand(rows, -1, -1)  # (B, K, D)
        there = torch.ones(rows, number, dtype=torch.bool, device=z.device)
        tokens = {m: torch.cat([pooled[:, k, None], x.tokens], 1) for k, (m, x) in enumerate(parts.items())}
        mask = {m: torch.cat([x.present[:, None], key_mask(x), there], 1) for m, x in parts.items()}
        for layer in self.layers:
            seen = {m: layer[m](torch.cat([x, z], 1), mask[m]) for m, x in tokens.items()}
            met = mean_present(torch.stack([x[:, -number:] for x in seen.values()], 1), present)
            z = torch.where(present.any(1)[:, None, None], met, z)
            tokens = {m: x[:, :-number] for m, x in seen.items()}
        y = mean_present(torch.stack([self.norm(x[:, 0]) for x in tokens.values()], 1), present)
        return Fused(with_summary(unless_nothing(y, present, self.nothing), z, there), {}, {}, {})
