"""A product of Gaussian experts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mmkt.layers.gaussian import Experts, divergence, draw, product
from mmkt.types import Encoded, Fused, Fusion


class Poe(Fusion):
    """Product of experts (MVAE, Wu and Goodman, 2018): T = 1 + Σ_{m∈P} σ_m⁻², μ = T⁻¹ Σ_{m∈P} μ_m σ_m⁻².

    The 1 is the prior expert N(0, 1), which makes any subset of the modalities exact; with nothing present the answer is
    the prior's mean. In training z is drawn from N(μ, T⁻¹), otherwise it is μ. The term ``divergence`` is the mean
    KL(N(μ, T⁻¹) ‖ N(0, 1)) of a row, in nats.
    """

    level = "latent"
    symmetric = True
    missing = "exact"
    interacts = True
    cost = "M·D²"
    params = "2*M*(D**2 + D)"
    flops = "4*M*D**2 + 4*M*D"
    terms = {"divergence": 1e-3}

    def __init__(self, dim: int, modalities: Sequence[str], outputs: Mapping[str, int], *, sample: bool = True):
        """Build the experts; ``sample: false`` takes μ in training too."""
        super().__init__()
        self.sample, self.experts = sample, Experts(dim, modalities)

    def forward(self, parts: dict[str, Encoded]) -> Fused:
        """(B, D) a modality → (B, D); the variance (B, D) comes out as a note."""
        mean, variance, present = self.experts(parts)
        mean, variance = product(mean, variance, present)
        z = draw(mean, variance) if self.sample and self.training else mean
        return Fused(Encoded.of(z), {}, {"divergence": divergence(mean, variance).mean()}, {"variance": variance})
