"""A non-local gate: one modality's tokens look at the others'."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch.nn.functional as F
from torch import nn

from mmkt.layers.masked import masked_mean, zero_masked
from mmkt.layers.presence import joined, target_of
from mmkt.types import Encoded, Fused, Fusion


class NonlocalGate(Fusion):
    """Non-local gate (Wang, Tran and Feiszli, 2020, after Wang et al., 2018): y = Q + softmax(QKᵀ/√D) V, then the mean.

    Q is linear in the tokens of the first modality or ``target``, K and V in those of all others. Without any of them y is
    Q; a missing target is its learned vector. Where the others have a single token between them, the softmax is 1 and y a
    sum over modalities: it models interactions through the choice among tokens alone, and is declared as modelling none.
    """

    arity = "two+"
    level = "token"
    symmetric = False
    missing = "stand-in"
    interacts = False
    cost = "M·L·D² + M·L²·D"
    params = "3*(D**2 + D)"
    flops = "2*L*D**2 + 4*(M - 1)*L*D**2 + 4*(M - 1)*L**2*D"

    def __init__(self, dim: int, modalities: Sequence[str], outputs: Mapping[str, int], *, target: str | None = None):
        """Build Q, K and V; ``target`` is the first modality by default."""
        super().__init__()
        self.target = target_of(target, modalities)
        self.q, self.k, self.v = (nn.Linear(dim, dim) for _ in range(3))

    def forward(self, parts: dict[str, Encoded]) -> Fused:
        """(B, L_m, D) a modality → tokens (B, L_target, D)."""
        keys, key_mask = joined(x for m, x in parts.items() if m != self.target)  # (B, S, D), (B, S)
        some = key_mask.any(1, keepdim=True)
        q, mask = self.q(parts[self.target].tokens), parts[self.target].mask
        y = F.scaled_dot_product_attention(q, self.k(keys), self.v(keys), attn_mask=(key_mask | ~some)[:, None])
        y = zero_masked(q + y.masked_fill(~some[..., None], 0.0), mask)
        return Fused(Encoded(y, mask, masked_mean(y, mask), mask.any(1)), {}, {}, {})
