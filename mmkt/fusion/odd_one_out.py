"""A check of which modality contradicts the others, and experts that leave it out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from mmkt.layers.mlp import mlp
from mmkt.layers.presence import apply_each, masked_softmax, stacked, unless_nothing, with_bits
from mmkt.types import Encoded, Fused, Fusion


class OddOneOut(Fusion):
    """Robust fusion against a single bad source (Yang et al., 2021): y = q_0 E_0([x; p]) + Σ_m q_m E_m([x_{−m}; p_{−m}]).

    q = softmax o(·) says that none of the modalities is odd (q_0) or that m is. The check o is an MLP of the vectors, the
    presence bits and, as agreement is a product, the products a_i ⊙ a_j of projections a_m = U_m x_m. An expert is an MLP of
    all vectors, or of all but one. Exact: zeros and bits stand for what is missing, which is never odd. Of two modalities that
    contradict each other none is the odd one: with fewer than three in a row q_0 = 1, and with two in the model there is no
    check, only E_0. With nothing present the answer is a learned vector.

    The check is trained by the objective ``odd_one_out``; by the task's loss alone it learns whatever helps the task.
    """

    arity = "two+"
    level = "pooled"
    symmetric = False
    missing = "exact"
    interacts = True
    cost = "M²·D·H"
    params = (
        "(M*(D + 1) + 1 + D)*(hidden or D) + 2*D"
        " + (M*((M - 1)*(D + 1) + 1 + D)*(hidden or D) + M*D + M*(D**2 + D)"
        " + (M*(D + 1) + M*(M - 1)//2*D + M + 2)*(hidden or D) + M + 1 if M > 2 else 0)"
    )
    flops = (
        "2*(M*(D + 1) + D)*(hidden or D)"
        " + (2*M*((M - 1)*(D + 1) + D)*(hidden or D) + 2*M*D**2"
        " + 2*(M*(D + 1) + M*(M - 1)//2*D + M + 1)*(hidden or D) if M > 2 else 0)"
    )

    def __init__(
        self,
        dim: int,
        modalities: Sequence[str],
        outputs: Mapping[str, int],
        *,
        hidden: Annotated[int, Field(ge=1)] | None = None,
    ):
        """Build experts and check; ``hidden`` of each is dim by default."""
        super().__init__()
        number, hidden = len(modalities), hidden or dim
        self.whole = mlp(number * (dim + 1), hidden, dim)
        self.without = nn.ModuleDict()
        if number > 2:
            self.without = nn.ModuleDict({m: mlp((number - 1) * (dim + 1), hidden, dim) for m in modalities})
            self.project = nn.ModuleDict({m: nn.Linear(dim, dim) for m in modalities})
            self.check = mlp(number * (dim + 1) + number * (number - 1) // 2 * dim, hidden, number + 1)
        self.nothing = nn.Parameter(torch.zeros(dim))

    def forward(self, parts: dict[str, Encoded]) -> Fused:
        """(B, D) a modality → (B, D).

        Notes: ``odd`` (B, 1 + M), the probabilities that none or that modality m is odd; ``odd_scores`` (B, 1 + M), what they are
        the softmax of; ``weights`` (B, M), how far each modality is trusted: 1 − q_m, zero where it is missing.
        """
        x, present = stacked(parts)  # (B, M, D), (B, M)
        scores, possible = self._scores(x, present)
        q = masked_softmax(scores, possible, 1)  # (B, 1 + M)
        y = self.whole(with_bits(x, present))
        if self.without:
            places = range(x.shape[1])
            others = [[k for k in places if k != m] for m in places]
            each = [expert(with_bits(x[:, o], present[:, o])) for o, expert in zip(others, self.without.values(), strict=True)]
            y = (q[..., None] * torch.stack([y, *each], 1)).sum(1)
        weights = (1 - q[:, 1:]) * present
        notes = {"odd": q, "odd_scores": scores, "weights": weights}
        return Fused(Encoded.of(unless_nothing(y, present, self.nothing)), {}, {}, notes)

    def _scores(self, x: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
        """Of none and of every modality, (B, 1 + M) float32, the lowest number for what cannot be odd; what can be, bool."""
        judged = present & (present.sum(1, keepdim=True) > 2)
        possible = torch.cat([torch.ones_like(present[:, :1]), judged], 1)
        if not self.without:
            return x.new_zeros(possible.shape, dtype=torch.float32), possible
        a = apply_each(self.project, x).masked_fill(~present[..., None], 0.0)
        products = [a[:, i] * a[:, j] for i, j in combinations(range(x.shape[1]), 2)]
        scores = self.check(torch.cat([with_bits(x, present), *products], 1)).float()
        return scores.masked_fill(~possible, torch.finfo(scores.dtype).min), possible
