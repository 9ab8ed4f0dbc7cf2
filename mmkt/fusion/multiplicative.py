"""Multiplicative interactions of two modalities."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import nn

from mmkt.layers.presence import stacked
from mmkt.types import Encoded, Fused, Fusion


class Multiplicative(Fusion):
    """Multiplicative interactions (Jayakumar et al., 2020): y = x_1ᵀ 𝕎 x_2 + U x_1 + V x_2 + b.

    In other words x_2 generates the matrix that x_1 goes through. ``form`` is what the matrix may be: ``full`` (𝕎 has D³
    numbers), ``low-rank`` (a D × rank matrix of x_2, after a projection of x_1 to rank), ``vector`` (diagonal) or
    ``scalar``. Exact: a missing x is 0, so that without x_2 the answer is U x_1 + b and with nothing present b.
    """

    arity = "two"
    level = "pooled"
    symmetric = False
    missing = "exact"
    interacts = True
    cost = "rank·D² (full: D³)"
    params = "{'full': D**3, 'low-rank': rank*(D**2 + D), 'vector': D**2, 'scalar': D}[form] + 2*D**2 + D"
    flops = "2*{'full': D**3 + D**2, 'low-rank': rank*(D**2 + 2*D), 'vector': D**2, 'scalar': D}[form] + 4*D**2"

    def __init__(
        self,
        dim: int,
        modalities: Sequence[str],
        outputs: Mapping[str, int],
        *,
        form: Literal["full", "low-rank", "vector", "scalar"] = "low-rank",
        rank: Annotated[int, Field(ge=1)] = 8,
    ):
        """Build the generator of matrices, U, V and b."""
        super().__init__()
        self.form, self.rank = form, rank
        size = {"full": dim * dim, "low-rank": dim * rank, "vector": dim, "scalar": 1}[form]
        self.generate = nn.Linear(dim, size, bias=False)
        self.reduce = nn.Linear(dim, rank, bias=False) if form == "low-rank" else nn.Identity()
        self.linear = nn.Linear(2 * dim, dim)  # [U V] and b

    def forward(self, parts: dict[str, Encoded]) -> Fused:
        """(B, D) a modality → (B, D)."""
        x, _ = stacked(parts)  # (B, 2, D)
        one, matrix = self.reduce(x[:, 0]), self.generate(x[:, 1])
        if self.form in ("full", "low-rank"):
            both = torch.bmm(matrix.view(len(x), x.shape[-1], -1), one[..., None])[..., 0]
        else:
            both = matrix * one
        return Fused(Encoded.of(both + self.linear(x.flatten(1))), {}, {}, {})
