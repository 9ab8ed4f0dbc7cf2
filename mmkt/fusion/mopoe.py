"""A mixture of products of Gaussian experts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from mmkt.layers.gaussian import Experts, divergence, draw, pick, product
from mmkt.layers.presence import mean_present
from mmkt.types import Encoded, Fused, Fusion


class Mopoe(Fusion):
    """Mixture of products of experts (MoPoE-VAE, Sutter et al., 2021): the mixture over all subsets of P of their products.

    The subsets are those with one modality or more, each product as in ``poe``, with the prior expert. In training z is
    drawn from one subset of what is present, each equally often; otherwise it is the mixture's mean. With nothing present
    the answer is the prior's mean, 0. The term ``divergence`` is the mean over rows and subsets of KL(q_S ‖ N(0, 1)), in
    nats. There are 2^M − 1 subsets: 8 modalities are the most.
    """

    level = "latent"
    symmetric = True
    missing = "exact"
    interacts = True
    cost = "M·D² + 2^M·M·D"
    params = "2*M*(D**2 + D)"
    flops = "4*M*D**2 + 4*(2**M - 1)*M*D"
    terms = {"divergence": 1e-3}
    subsets: Tensor

    def __init__(self, dim: int, modalities: Sequence[str], outputs: Mapping[str, int], *, sample: bool = True):
        """Build the experts; ``sample: false`` takes the mean in training too."""
        super().__init__()
        number = len(modalities)
        if number > 8:
            raise ValueError(f"mopoe mixes all subsets of 8 modalities at the most, found {number}; take poe or moe")
        self.sample, self.experts = sample, Experts(dim, modalities)
        bits = torch.arange(1, 2**number)[:, None] >> torch.arange(number) & 1
        self.register_buffer("subsets", bits.bool(), persistent=False)  # (S, M)

    def forward(self, parts: dict[str, Encoded]) -> Fused:
        """(B, D) a modality → (B, D)."""
        mean, variance, present = self.experts(parts)  # (B, M, D), (B, M)
        which = self.subsets & present[:, None]
        there = (self.subsets <= present[:, None]).all(2)  # (B, S): the subsets of what is present
        mean, variance = product(mean, variance, which)  # (B, S, D)
        term = mean_present(divergence(mean, variance), there).mean()
        if self.sample and self.training:
            one = pick(there)[:, None, None].expand(-1, 1, mean.shape[2])
            z = draw(mean.gather(1, one)[:, 0], variance.gather(1, one)[:, 0]) * there.any(1, keepdim=True)
        else:
            z = mean_present(mean, there)
        return Fused(Encoded.of(z), {}, {"divergence": term}, {})
