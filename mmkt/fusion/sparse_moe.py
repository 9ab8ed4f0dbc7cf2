"""A sparse mixture of experts with a router a modality."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from mmkt.distributed import gather
from mmkt.layers.presence import masked_softmax, mean_present, stacked, with_bits
from mmkt.types import Encoded, Fused, Fusion


class SparseMoe(Fusion):
    """FuseMoE (Han et al., 2024): y = Σ_{e∈TopK} g_e E_e([x_1; …; x_M; p]), a router a modality.

    Router m scores expert e by the Laplace gate −‖x_m − c_{m,e}‖ (or a softmax gate, x_mᵀ c_{m,e}); the scores of the
    present modalities are averaged, the k best experts kept, and g is their softmax. An expert is an MLP of all vectors,
    zeros standing for a missing one, and of the presence bits, which is how the experts see what is missing. All experts
    are computed and the best kept: shapes are fixed, and time is that of all. The term ``balance`` is the squared
    coefficient of variation of Σ g over the (global) batch (Shazeer et al., 2017).
    """

    level = "pooled"
    symmetric = False
    missing = "exact"
    interacts = True
    cost = "experts·M·D·H"
    params = "M*experts*D + experts*((M*(D + 1) + 1)*(hidden or D) + ((hidden or D) + 1)*D)"
    flops = "2*experts*((M*(D + 1) + D)*(hidden or D) + D) + (2*M*experts*D if gate == 'softmax' else 0)"
    terms = {"balance": 1e-2}

    def __init__(
        self,
        dim: int,
        modalities: Sequence[str],
        outputs: Mapping[str, int],
        *,
        experts: Annotated[int, Field(ge=1)] = 4,
        k: Annotated[int, Field(ge=1)] = 2,
        gate: Literal["laplace", "softmax"] = "laplace",
        hidden: Annotated[int, Field(ge=1)] | None = None,
    ):
        """Build routers and experts; ``hidden`` of an expert is dim by default."""
        super().__init__()
        if k > experts:
            raise ValueError(f"k={k} experts of {experts} can't be kept: set model.fusion.k or model.fusion.experts")
        hidden, width = hidden or dim, len(modalities) * (dim + 1)
        self.k, self.gate = k, gate
        self.centres = nn.Parameter(torch.randn(len(modalities), experts, dim) * dim**-0.5)
        self.inner, self.inner_bias = (drawn(experts, n, hidden, width) for n in (width, 1))
        self.outer, self.outer_bias = (drawn(experts, n, dim, hidden) for n in (hidden, 1))

    def forward(self, parts: dict[str, Encoded]) -> Fused:
        """(B, D) a modality → (B, D); the gates (B, experts) come out as a note."""
        x, present = stacked(parts)  # (B, M, D), (B, M)
        if self.gate == "laplace":
            scores = -torch.linalg.vector_norm(x[:, :, None] - self.centres, dim=3)  # (B, M, E)
        else:
            scores = torch.einsum("bmd,med->bme", x, self.centres)
        scores = mean_present(scores, present)
        kept = torch.zeros_like(scores, dtype=torch.bool).scatter(1, scores.topk(self.k, 1).indices, True)
        g = masked_softmax(scores, kept, 1)  # (B, E)
        h = nn.functional.gelu(torch.einsum("bi,eih->ebh", with_bits(x, present), self.inner) + self.inner_bias)
        each = torch.einsum("ebh,ehd->ebd", h, self.outer) + self.outer_bias
        y = torch.einsum("be,ebd->bd", g, each)
        return Fused(Encoded.of(y), {}, {"balance": self._balance(g)}, {"gates": g})

    def _balance(self, g: Tensor) -> Tensor:
        load = g.sum(0, keepdim=True)  # (1, E)
        if self.training:  # every process has a batch of this step, which in evaluation need not be so
            load = gather(load).sum(0, keepdim=True)
        return load.var(correction=0) / load.mean().square()


def drawn(experts: int, inputs: int, outputs: int, fan_in: int) -> nn.Parameter:
    """Weights or a bias of every expert, (experts, inputs, outputs), as nn.Linear draws them."""
    return nn.Parameter(torch.empty(experts, inputs, outputs).uniform_(-(fan_in**-0.5), fan_in**-0.5))
