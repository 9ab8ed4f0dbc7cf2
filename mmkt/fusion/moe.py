"""A mixture of Gaussian experts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mmkt.layers.gaussian import Experts, divergence, draw, pick
from mmkt.layers.presence import mean_present
from mmkt.types import Encoded, Fused, Fusion


class Moe(Fusion):
    """Mixture of experts (MMVAE, Shi et al., 2019): q(z | x) = Σ_{m∈P} N(μ_m, σ_m²) / #P.

    In training z is drawn from one present expert, each equally often; otherwise it is the mixture's mean, a sum over
    modalities, so that it models no interaction. With nothing present the answer is the prior's mean, 0. The term
    ``divergence`` is the mean over rows and present experts of KL(N(μ_m, σ_m²) ‖ N(0, 1)), in nats, which bounds the
    mixture's.
    """

    level = "latent"
    symmetric = True
    missing = "exact"
    interacts = False
    cost = "M·D²"
    params = "2*M*(D**2 + D)"
    flops = "4*M*D**2"
    terms = {"divergence": 1e-3}

    def __init__(self, dim: int, modalities: Sequence[str], outputs: Mapping[str, int], *, sample: bool = True):
        """Build the experts; ``sample: false`` takes the mean in training too."""
        super().__init__()
        self.sample, self.experts = sample, Experts(dim, modalities)

    def forward(self, parts: dict[str, Encoded]) -> Fused:
        """(B, D) a modality → (B, D)."""
        mean, variance, present = self.experts(parts)  # (B, M, D), (B, M)
        term = mean_present(divergence(mean, variance), present).mean()
        if self.sample and self.training:
            one = pick(present)[:, None, None].expand(-1, 1, mean.shape[2])
            z = draw(mean.gather(1, one)[:, 0], variance.gather(1, one)[:, 0]) * present.any(1, keepdim=True)
        else:
            z = mean_present(mean, present)
        return Fused(Encoded.of(z), {}, {"divergence": term}, {})
