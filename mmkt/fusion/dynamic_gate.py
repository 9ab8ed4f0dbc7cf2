"""A gate that chooses which modalities to use, row by row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from mmkt.layers.mlp import mlp
from mmkt.layers.presence import stacked, unless_nothing, with_bits
from mmkt.parts import nearest
from mmkt.types import Encoded, Fused, Fusion


class DynamicGate(Fusion):
    """Dynamic multimodal fusion (DynMM, Xue and Marculescu, 2023): y = Σ_k g_k E_k, g = GumbelSoftmax(G([x; p])), one k a row.

    An option k is a subset of the modalities and E_k an MLP of their vectors. Exact: options are subsets of what is present;
    with nothing present the answer is a learned vector. Training draws g (straight-through), evaluation takes the best. The
    term ``cost`` is the mean expected cost of a row, each modality costing what ``costs`` says (its encoder's GFLOPs, say; 1
    by default): its weight is the paper's λ. All options are computed, as the gate sees all modalities.
    """

    level = "pooled"
    symmetric = False
    missing = "exact"
    interacts = True
    cost = "2^M·M·D²"
    params = "(M*(D + 1) + 1)*D + (D + 1)*(2**M - 1) + M*2**(M - 1)*D**2 + (2**M - 1)*(D**2 + 2*D) + D"
    flops = "2*(M*(D + 1)*D + D*(2**M - 1) + M*2**(M - 1)*D**2 + (2**M - 1)*(D**2 + D))"
    terms = {"cost": 1e-2}
    options: Tensor
    costs: Tensor

    def __init__(
        self,
        dim: int,
        modalities: Sequence[str],
        outputs: Mapping[str, int],
        *,
        temperature: Annotated[float, Field(gt=0)] = 1.0,
        costs: dict[str, Annotated[float, Field(ge=0)]] | None = None,
    ):
        """Build gate and options; 6 modalities are the most."""
        super().__init__()
        if len(modalities) > 6:
            raise ValueError(f"dynamic_gate has an expert for every subset of 6 modalities at the most, found {len(modalities)}")
        for name in costs or {}:
            if name not in modalities:
                near = nearest(name, modalities)
                raise ValueError(f"costs names no modality {name!r}{near}; allowed: {', '.join(modalities)}")
        self.temperature, places = temperature, range(len(modalities))
        self.subsets = subsets = [list(s) for n in range(1, len(modalities) + 1) for s in combinations(places, n)]
        one = [(costs or {}).get(m, 1.0) for m in modalities]
        self.register_buffer("options", torch.tensor([[k in s for k in places] for s in subsets]), persistent=False)
        self.register_buffer("costs", torch.tensor([sum(one[k] for k in s) for s in subsets]), persistent=False)
        self.gate = mlp(len(modalities) * (dim + 1), dim, len(subsets))
        self.experts = nn.ModuleList(mlp(len(s) * dim, dim, dim) for s in subsets)
        self.nothing = nn.Parameter(torch.zeros(dim))

    def forward(self, parts: dict[str, Encoded]) -> Fused:
        """(B, D) a modality → (B, D); the choice (B, 2^M − 1) and its expected ``cost`` (B,) come out as notes."""
        x, present = stacked(parts)  # (B, M, D), (B, M)
        allowed = (self.options <= present[:, None]).all(2)  # (B, K)
        scores = self.gate(with_bits(x, present)).float()
        scores = scores.masked_fill(~allowed, torch.finfo(scores.dtype).min)
        if self.training:
            g = F.gumbel_softmax(scores, self.temperature, hard=True)
        else:
            g = F.one_hot(scores.argmax(1), scores.shape[1]).to(scores.dtype)
            g = g + scores.softmax(1) - scores.softmax(1).detach()  # straight-through here too, for gradients in evaluation
        # by number: picked by a mask on the device, the host would wait for how many there are
        each = torch.stack([expert(torch.cat([x[:, k] for k in s], 1)) for expert, s in zip(self.experts, self.subsets)], 1)
        y = unless_nothing(torch.einsum("bk,bkd->bd", g, each.to(g.dtype)), present, self.nothing)
        cost = (g * self.costs).sum(1) * present.any(1)
        return Fused(Encoded.of(y), {}, {"cost": cost.mean()}, {"choice": g, "cost": cost})
