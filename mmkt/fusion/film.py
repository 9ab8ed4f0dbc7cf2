"""Feature-wise linear modulation of one modality by the others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import nn

from mmkt.layers.presence import stacked, target_of, with_bits
from mmkt.types import Encoded, Fused, Fusion


class Film(Fusion):
    """FiLM (Perez et al., 2018): y = γ(c) ⊙ x_a + β(c); a is the first modality or ``target``, c all the others.

    [γ − 1; β] is linear in the others' vectors and presence bits. Without any of them γ = 1 and β = 0; a missing target is
    its learned vector e_a.
    """

    arity = "two+"
    level = "pooled"
    symmetric = False
    missing = "stand-in"
    interacts = True
    cost = "M·D²"
    params = "((M - 1)*(D + 1) + 1)*2*D"
    flops = "4*(M - 1)*(D + 1)*D"

    def __init__(self, dim: int, modalities: Sequence[str], outputs: Mapping[str, int], *, target: str | None = None):
        """Build γ and β; ``target`` is the first modality by default."""
        super().__init__()
        self.target = target_of(target, modalities)
        self.modulate = nn.Linear((len(modalities) - 1) * (dim + 1), 2 * dim)

    def forward(self, parts: dict[str, Encoded]) -> Fused:
        """(B, D) a modality → (B, D)."""
        c, present = stacked({m: x for m, x in parts.items() if m != self.target})
        gamma, beta = self.modulate(with_bits(c, present)).masked_fill(~present.any(1, keepdim=True), 0.0).chunk(2, 1)
        return Fused(Encoded.of((1 + gamma) * parts[self.target].pooled + beta), {}, {}, {})
