"""Diagonal Gaussians over a latent vector: an expert a modality, their product, draws and divergence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from mmkt.layers.presence import apply_each, stacked
from mmkt.types import Encoded


class Experts(nn.Module):
    """q_m(z | x_m) = N(μ_m, σ_m²): a linear layer a modality for μ and log σ² (Kingma and Welling, 2014)."""

    def __init__(self, dim: int, modalities: Sequence[str]):
        super().__init__()
        self.of = nn.ModuleDict({m: nn.Linear(dim, 2 * dim) for m in modalities})

    def forward(self, parts: Mapping[str, Encoded]) -> tuple[Tensor, Tensor, Tensor]:
        """Means and variances (B, M, D) in float32, and presence (B, M)."""
        x, present = stacked(parts)
        both = apply_each(self.of, x).float()
        mean, log_variance = both.chunk(2, -1)
        return mean, log_variance.clamp(-10, 10).exp(), present


def product(mean: Tensor, variance: Tensor, which: Tensor) -> tuple[Tensor, Tensor]:
    """The product of some experts and the prior N(0, 1), again a Gaussian (Wu and Goodman, 2018).

    Args:
        mean: (B, M, D).
        variance: (B, M, D).
        which: (B, …, M) bool, the experts of each product.

    Returns:
        T⁻¹ Σ μ_m σ_m⁻² and T⁻¹ with T = 1 + Σ σ_m⁻², each (B, …, D).
    """
    which = which.to(mean.dtype)
    total = 1 + torch.einsum("b...m,bmd->b...d", which, 1 / variance)
    return torch.einsum("b...m,bmd->b...d", which, mean / variance) / total, 1 / total


def draw(mean: Tensor, variance: Tensor) -> Tensor:
    """One draw from each Gaussian, by reparameterisation."""
    return mean + variance.sqrt() * torch.randn_like(mean)


def divergence(mean: Tensor, variance: Tensor) -> Tensor:
    """KL(N(μ, σ²) ‖ N(0, 1)) in nats, summed over the last axis."""
    return 0.5 * (mean.square() + variance - 1 - variance.log()).sum(-1)


def pick(which: Tensor) -> Tensor:
    """One of those that are True (B, S), drawn uniformly: (B,) long; 0 in a row without any."""
    chances = which.float() + (~which.any(1, keepdim=True)).float()
    # what torch.multinomial does too, but it looks at the chances first, for which the host would wait
    return (chances / torch.empty_like(chances).exponential_()).argmax(1)
