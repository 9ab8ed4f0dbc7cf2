"""How far apart two samples are: maximum mean discrepancy, entropic optimal transport, and transport of labelled rows.

Every distance here is a squared one, (): its square root would have an infinite gradient where the samples agree. All are
differentiable with respect to both samples and are computed in float32 at the least. Transport costs are of the order of the
squared distances between rows; MMD² lies between 0 and 2.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import wraps
from typing import Concatenate, ParamSpec

import torch
from torch import Tensor

FACTORS = (0.25, 0.5, 1.0, 2.0, 4.0)  # on the median distance: the bandwidths by default
SHARE = 0.05  # of the mean cost: epsilon by default
CHECK_EVERY = 10  # iterations: reading a number off a GPU each time would cost more than the iterations

Rest = ParamSpec("Rest")


def _exactly(function: Callable[Concatenate[Tensor, Rest], Tensor]) -> Callable[Concatenate[Tensor, Rest], Tensor]:
    """Outside autocast, in whose bfloat16 a difference of squares is noise."""

    @wraps(function)
    def run(x: Tensor, *args: Rest.args, **kwargs: Rest.kwargs) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return function(x, *args, **kwargs)

    return run


@_exactly
def mmd(x: Tensor, y: Tensor, *, bandwidths: Sequence[float] | None = None, unbiased: bool = False) -> Tensor:
    """The squared maximum mean discrepancy (Gretton et al., 2012).

    MMD² = E k(x, x′) + E k(y, y′) − 2 E k(x, y); the kernel is the mean of Gaussian ones, exp(−‖u − v‖² / 2σ²). The biased
    statistic takes the means over all pairs and is never negative; the unbiased one leaves a row's pair with itself out.

    Args:
        x: (n, W).
        y: (m, W).
        bandwidths: the σ; by default ¼, ½, 1, 2 and 4 times the median distance between two rows of both samples together,
            which is a constant to the gradient.
        unbiased: leave the diagonal out; this takes two rows or more of each.
    """
    x, y = _two(x, y)
    n, m = len(x), len(y)
    if unbiased and min(n, m) < 2:
        raise ValueError(f"an unbiased MMD takes two rows or more of each sample, found {n} and {m}; set unbiased=False")
    if bandwidths is not None and not (len(bandwidths) and min(bandwidths) > 0):
        raise ValueError(f"bandwidths are one number above 0 or more, found {list(bandwidths)}")
    both = torch.cat([x, y])
    squared = squared_distances(both, both)
    sigmas = _median(squared.detach(), n + m) * squared.new_tensor(FACTORS) if bandwidths is None else bandwidths
    kernel = torch.stack([(-squared / (2 * sigma**2)).exp() for sigma in sigmas]).mean(0)
    xx, yy, xy = kernel[:n, :n], kernel[n:, n:], kernel[:n, n:]
    if unbiased:
        return _off_diagonal_mean(xx) + _off_diagonal_mean(yy) - 2 * xy.mean()
    return xx.mean() + yy.mean() - 2 * xy.mean()


@_exactly
def sinkhorn(
    x: Tensor,
    y: Tensor,
    *,
    epsilon: float | None = None,
    weights_x: Tensor | None = None,
    weights_y: Tensor | None = None,
    debiased: bool = False,
    iterations: int = 500,
    tolerance: float = 1e-5,
) -> Tensor:
    """Entropic optimal transport at the cost ‖x − y‖² (Cuturi, 2013), or its debiased divergence (Feydy et al., 2019).

    OT_ε(α, β) = min_π ⟨π, C⟩ + ε KL(π ‖ α ⊗ β) over plans π with the marginals α and β; the Sinkhorn divergence is
    S_ε(α, β) = OT_ε(α, β) − ½ OT_ε(α, α) − ½ OT_ε(β, β), which is zero for equal samples, as OT_ε is not.

    Args:
        x: (n, W).
        y: (m, W).
        epsilon: ε, in the unit of the cost; by default 5 % of its mean between x and y, which is a constant to the gradient.
        weights_x: (n,) of the rows, 0 or more, scaled here to sum to 1; by default all are equal.
        weights_y: (m,).
        debiased: the divergence, at three times the work.
        iterations: at the most; cut short, each OT_ε is a lower bound of itself.
        tolerance: end where the plan's marginal is off by less than this, summed over rows.
    """
    x, y = _two(x, y)
    pairs = [(x, y), (x, x), (y, y)] if debiased else [(x, y)]
    costs = [squared_distances(u, v) for u, v in pairs]
    return _divergence(costs, _weights(weights_x, x), _weights(weights_y, y), epsilon, iterations, tolerance)


@_exactly
def otdd(
    x: Tensor,
    labels_x: Tensor,
    y: Tensor,
    labels_y: Tensor,
    *,
    epsilon: float | None = None,
    debiased: bool = True,
    iterations: int = 500,
    tolerance: float = 1e-5,
) -> Tensor:
    """The optimal transport dataset distance (Alvarez-Melis and Fusi, 2020), squared.

    A row is carried to another at the cost ‖x − y‖² + W₂²(class of x, class of y), where a class is the Gaussian over its rows
    (see ``label_distances``): labels of the two sides are never compared by name. Transport is entropic (see ``sinkhorn``).

    Args:
        x: (n, W).
        labels_x: (n,) whole numbers, any; a class is there from one row on.
        y: (m, W).
        labels_y: (m,).
        epsilon: ε, in the unit of the cost; by default 5 % of its mean between x and y, which is a constant to the gradient.
        debiased: the divergence, zero for equal data sets, at three times the work; False gives OT_ε.
        iterations: at the most; cut short, each OT_ε is a lower bound of itself.
        tolerance: end where the plan's marginal is off by less than this, summed over rows.
    """
    x, y = _two(x, y)
    one, other = (x, labels_x), (y, labels_y)
    pairs = [(one, other), (one, one), (other, other)] if debiased else [(one, other)]
    costs = []
    for (u, labels_u), (v, labels_v) in pairs:
        classes = label_distances(u, labels_u, v, labels_v)
        place_u, place_v = (labels.unique(return_inverse=True)[1] for labels in (labels_u, labels_v))
        costs.append(squared_distances(u, v) + classes[place_u][:, place_v])
    return _divergence(costs, _weights(None, x), _weights(None, y), epsilon, iterations, tolerance)


@_exactly
def label_distances(x: Tensor, labels_x: Tensor, y: Tensor, labels_y: Tensor) -> Tensor:
    """Between the Gaussians over classes, the squared Bures–Wasserstein distance, (classes of x, classes of y), in sorted order.

    W₂² = ‖μ − ν‖² + tr(S + T − 2 (S^½ T S^½)^½), with covariances over n − 1. A class of one row has none: it takes its side's
    covariance within classes, pooled over them (zero where every class has one row), as linear discriminant analysis would.

    With S = AᵀA and T = BᵀB the last trace is the sum of the singular values of ABᵀ: there are as many as the rows of the
    smaller class, no W × W root is taken, and the gradient is finite for singular covariances too.

    Args:
        x: (n, W).
        labels_x: (n,).
        y: (m, W).
        labels_y: (m,).
    """
    x, y = _two(x, y)
    means_x, roots_x = _gaussians(x, labels_x)
    means_y, roots_y = _gaussians(y, labels_y)
    traces_x, traces_y = (torch.stack([root.square().sum() for root in roots]) for roots in (roots_x, roots_y))
    shared = torch.stack([torch.stack([torch.linalg.svdvals(a @ b.T).sum() for b in roots_y]) for a in roots_x])
    spread = (traces_x[:, None] + traces_y - 2 * shared).clamp(min=0)  # rounding can take it below
    return squared_distances(means_x, means_y) + spread


@_exactly
def squared_distances(x: Tensor, y: Tensor) -> Tensor:
    """‖x_i − y_j‖², (n, W), (m, W) → (n, m)."""
    # about a common centre: far from the origin the difference of squares would lose every digit
    centre = y.mean(0, keepdim=True).detach()
    x, y = x - centre, y - centre
    return (x.square().sum(1)[:, None] + y.square().sum(1) - 2 * x @ y.T).clamp(min=0)


def potentials(
    cost: Tensor,
    a: Tensor,
    b: Tensor,
    epsilon: float | Tensor,
    iterations: int,
    tolerance: float,
    *,
    within: bool = False,
) -> tuple[Tensor, Tensor]:
    """The dual potentials of entropic transport, by Sinkhorn's iterations on logarithms.

    The plan is π_ij = a_i b_j exp((f_i + g_j − C_ij) / ε), whose marginal over rows is b to rounding. The gradient goes through
    the last step alone, where that of ⟨a, f⟩ + ⟨b, g⟩ with respect to the cost is the plan (the envelope theorem).

    Args:
        cost: C, (n, m).
        a: (n,), sums to 1.
        b: (m,), sums to 1.
        epsilon: ε.
        iterations: at the most.
        tolerance: end where the marginal over columns is off by less than this, summed.
        within: of a sample to itself, where both potentials are one: steps are halved, after which a few do.

    Returns:
        f (n,) and g (m,).
    """
    log_a, log_b = a.log(), b.log()
    with torch.no_grad():
        f = torch.zeros_like(a)
        for k in range(iterations):
            g = -epsilon * (log_a[:, None] + (f[:, None] - cost) / epsilon).logsumexp(0)
            new = g if within else -epsilon * (log_b + (g - cost) / epsilon).logsumexp(1)
            # a · exp((f − new) / ε) is the marginal that f and g have
            if k % CHECK_EVERY == 0 and float((a * ((f - new) / epsilon).expm1()).abs().sum()) < tolerance:
                break
            f = (f + new) / 2 if within else new
    return f, -epsilon * (log_a[:, None] + (f[:, None] - cost) / epsilon).logsumexp(0)


def _divergence(
    costs: Sequence[Tensor], a: Tensor, b: Tensor, epsilon: float | None, iterations: int, tolerance: float
) -> Tensor:
    """OT_ε at the first cost, (n, m); with those within each sample, (n, n) and (m, m), the divergence."""
    if epsilon is not None and not epsilon > 0:
        raise ValueError(f"epsilon is a number above 0, found {epsilon}")
    # equal rows alone cost nothing at any ε
    blur = epsilon or (SHARE * (a @ costs[0].detach() @ b)).clamp(min=torch.finfo(a.dtype).tiny ** 0.5)
    values = []
    for cost, (p, q) in zip(costs, ((a, b), (a, a), (b, b))):
        f, g = potentials(cost, p, q, blur, iterations, tolerance, within=cost is not costs[0])
        values.append(p @ f + q @ g)
    return values[0] - (values[1] + values[2]) / 2 if len(values) == 3 else values[0]


def _gaussians(x: Tensor, labels: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Means (C, W) of the classes, in sorted order, and a root A (rows, W) of each covariance, S = AᵀA."""
    if labels.shape != x.shape[:1]:
        raise ValueError(f"labels are one number a row, ({len(x)},), found {tuple(labels.shape)}")
    classes, place = labels.unique(return_inverse=True)
    groups = [x[place == k] for k in range(len(classes))]
    means = torch.stack([rows.mean(0) for rows in groups])
    pooled = (x - means[place]) / max(1, len(x) - len(classes)) ** 0.5
    return means, [(rows - rows.mean(0)) / (len(rows) - 1) ** 0.5 if len(rows) > 1 else pooled for rows in groups]


def _off_diagonal_mean(kernel: Tensor) -> Tensor:
    return (kernel.sum() - kernel.diagonal().sum()) / (len(kernel) * (len(kernel) - 1))


def _median(squared: Tensor, rows: int) -> Tensor:
    """The median distance of two different rows; their mean where most rows are equal, 1 where all are."""
    i, j = torch.triu_indices(rows, rows, 1, device=squared.device)
    distances = squared[i, j].sqrt()
    middle = distances.median()
    middle = torch.where(middle > 0, middle, distances.mean())
    return torch.where(middle > 0, middle, torch.ones_like(middle))


def _two(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Two samples of one width, of one dtype, float32 at the least."""
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1] or not len(x) or not len(y):
        raise ValueError(
            f"two samples are (n, W) and (m, W), of one width and one row or more, found {tuple(x.shape)} and {tuple(y.shape)}"
        )
    kind = torch.promote_types(torch.promote_types(x.dtype, y.dtype), torch.float32)
    return x.to(kind), y.to(kind)


def _weights(weights: Tensor | None, x: Tensor) -> Tensor:
    """Weights of rows that sum to 1, (n,)."""
    if weights is None:
        return x.new_full((len(x),), 1 / len(x))
    if weights.shape != x.shape[:1] or bool((weights < 0).any()) or not bool(weights.sum() > 0):
        raise ValueError(f"weights are a number of 0 or more a row, ({len(x)},), some above 0; found {tuple(weights.shape)}")
    weights = weights.to(x)
    return weights / weights.sum()
