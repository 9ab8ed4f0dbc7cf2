"""Late fusion: a mean of every modality's own logits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import nn

from mmkt.layers.presence import apply_each, unless_nothing
from mmkt.layers.unimodal import UnimodalLogits
from mmkt.types import Encoded, Fused, Fusion


class Late(Fusion):
    """Late fusion: ℓ = Σ_{m∈P} w_m ℓ_m / Σ_{m∈P} w_m, with a linear head a modality and task inside.

    ``weights: mean`` gives all w_m = 1, ``learned`` a positive w_m for each task and modality, ``stacked`` a linear layer
    on all ℓ_m and the presence bits (stacking, Wolpert, 1992), zeros standing for a missing ℓ_m. With nothing present,
    learned logits. The objective ``unimodal`` trains each ℓ_m by itself as well.
    """

    level = "logit"
    symmetric = True
    missing = "exact"
    interacts = False
    cost = "M·D·C"
    params = "M*(D + 1)*C + C + {'mean': 0, 'learned': M*T, 'stacked': M*(C + 1)*C + C}[weights]"
    flops = "2*M*D*C + (2*M*(C + 1)*C if weights == 'stacked' else 0)"
    heads = ("*",)

    def __init__(
        self,
        dim: int,
        modalities: Sequence[str],
        outputs: Mapping[str, int],
        *,
        weights: Literal["mean", "learned", "stacked"] = "mean",
    ):
        """Build the heads and weights."""
        super().__init__()
        width = sum(outputs.values())
        self.weights, self.each = weights, UnimodalLogits(dim, modalities, outputs)
        self.nothing = nn.Parameter(torch.zeros(width))
        if weights == "learned":
            self.log_weights = nn.ParameterDict({m: nn.Parameter(torch.zeros(len(outputs))) for m in modalities})
        if weights == "stacked":
            self.stack = nn.ModuleDict({m: nn.Linear(width + 1, width, bias=False) for m in modalities})
            self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, parts: dict[str, Encoded]) -> Fused:
        """(B, D) a modality → logits; each modality's, (B, M, outputs), come out as the notes ``logits.TASK``."""
        each, present = self.each(parts)  # (B, M, C), (B, M)
        if self.weights == "stacked":
            x = torch.cat([each, present[..., None].to(each.dtype)], 2)  # (B, M, C + 1)
            y = apply_each(self.stack, x).sum(1).float() + self.bias
        else:
            w = torch.ones_like(each)
            if self.weights == "learned":
                learned = torch.stack([self.log_weights[m] for m in parts]).exp()  # (M, T)
                sizes = self.each.outputs.values()
                w = torch.cat([w.expand(-1, size) for w, size in zip(learned.split(1, 1), sizes)], 1).expand_as(each)
            w = w.masked_fill(~present[..., None], 0.0)
            y = (w * each).sum(1) / w.sum(1).clamp(min=1e-6)
        y = unless_nothing(y, present, self.nothing)
        notes = {f"logits.{task}": x for task, x in self.each.by_task(each).items()}
        return self.each.fused(parts, self.each.by_task(y), notes)
