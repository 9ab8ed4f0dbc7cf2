"""Distances between samples, against POT, closed forms and numeric gradients."""

from __future__ import annotations

import math

import numpy as np
import ot
import pytest
import torch

from mmkt.layers.transport import label_distances, mmd, otdd, potentials, sinkhorn, squared_distances

EXACT = {"iterations": 20_000, "tolerance": 1e-10}


def sample(n: int, width: int = 3, seed: int = 0, shift: float = 0.0) -> torch.Tensor:
    return torch.randn(n, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + shift


def plan(x: torch.Tensor, y: torch.Tensor, epsilon: float, a=None, b=None) -> torch.Tensor:
    a = torch.full((len(x),), 1 / len(x), dtype=x.dtype) if a is None else a
    b = torch.full((len(y),), 1 / len(y), dtype=x.dtype) if b is None else b
    cost = squared_distances(x, y)
    f, g = potentials(cost, a, b, epsilon, *EXACT.values())
    return a[:, None] * b * ((f[:, None] + g - cost) / epsilon).exp()


def by_pot(x, y, epsilon: float, a=None, b=None) -> float:
    """⟨π, C⟩ + ε KL(π ‖ α ⊗ β) of POT's plan."""
    a = ot.unif(len(x)) if a is None else a
    b = ot.unif(len(y)) if b is None else b
    cost = ot.dist(x.numpy(), y.numpy())
    pi = ot.sinkhorn(a, b, cost, epsilon, method="sinkhorn_log", numItermax=20_000, stopThr=1e-9)
    return float((pi * cost).sum() + epsilon * (pi * np.log(pi / np.outer(a, b))).sum())


# ---------------------------------------------------------------- entropic transport


@pytest.mark.parametrize("epsilon", [0.3, 3.0])
def test_entropic_transport_is_that_of_pot(epsilon):
    x, y = sample(20), sample(30, seed=1, shift=1)
    pi = plan(x, y, epsilon)
    a, b, cost = ot.unif(20), ot.unif(30), ot.dist(x.numpy(), y.numpy())
    assert np.allclose(pi, ot.sinkhorn(a, b, cost, epsilon, method="sinkhorn_log", stopThr=1e-9, numItermax=20_000), atol=1e-9)
    theirs = ot.sinkhorn2(a, b, cost, epsilon, method="sinkhorn_log", stopThr=1e-9, numItermax=20_000)
    assert float((pi * squared_distances(x, y)).sum()) == pytest.approx(float(theirs))
    assert float(sinkhorn(x, y, epsilon=epsilon, **EXACT)) == pytest.approx(by_pot(x, y, epsilon))


def test_the_divergence_is_that_of_pot():
    x, y, epsilon = sample(12), sample(15, seed=1, shift=1), 10.0
    entropic = [by_pot(u, v, epsilon) for u, v in ((x, y), (x, x), (y, y))]
    found = float(sinkhorn(x, y, epsilon=epsilon, debiased=True, **EXACT))
    assert found == pytest.approx(entropic[0] - (entropic[1] + entropic[2]) / 2)
    # POT's own divergence leaves the entropies out: that of our plans is the same
    costs = [float((plan(u, v, epsilon) * squared_distances(u, v)).sum()) for u, v in ((x, y), (x, x), (y, y))]
    theirs = ot.bregman.empirical_sinkhorn_divergence(x.numpy(), y.numpy(), epsilon, numIterMax=20_000, stopThr=1e-9)
    assert costs[0] - (costs[1] + costs[2]) / 2 == pytest.approx(float(theirs))
    assert float(sinkhorn(x, x, epsilon=epsilon, debiased=True, **EXACT)) == pytest.approx(0, abs=1e-9)
    assert float(sinkhorn(x, x, epsilon=epsilon, **EXACT)) > 0.1  # which plain entropic transport is not


def test_weights_are_those_of_pot_and_count_like_repeated_rows():
    x, y = sample(5), sample(6, seed=1)
    a, b = torch.tensor([1.0, 2, 3, 4, 0]).double(), torch.tensor([2.0, 1, 1, 1, 1, 2]).double()
    found = float(sinkhorn(x, y, epsilon=5.0, weights_x=a, weights_y=b, **EXACT))
    assert found == pytest.approx(by_pot(x[:4], y, 5.0, (a / a.sum()).numpy()[:4], (b / b.sum()).numpy()))
    repeated = x.repeat_interleave(a.long(), 0), y.repeat_interleave(b.long(), 0)
    assert found == pytest.approx(float(sinkhorn(*repeated, epsilon=5.0, **EXACT)))


def test_small_epsilon_is_exact_transport():
    x, y = sample(12), sample(12, seed=1, shift=0.5)
    exact = ot.emd2(ot.unif(12), ot.unif(12), ot.dist(x.numpy(), y.numpy()))
    far = [float(sinkhorn(x, y, epsilon=e, iterations=20_000, tolerance=1e-7)) - exact for e in (1.0, 0.3, 0.05)]
    assert far[0] > far[1] > far[2] >= -1e-4
    assert far[2] < 0.05 * math.log(12) + 1e-6  # ε KL is at most ε log n


def test_two_points():
    x, y = torch.zeros(1, 2), torch.tensor([[3.0, 4.0]])
    for debiased in (False, True):
        assert float(sinkhorn(x, y, debiased=debiased)) == pytest.approx(25)


@pytest.mark.parametrize("debiased", [False, True])
def test_gradient_of_transport_is_the_numeric_one(debiased):
    x, y = sample(6).requires_grad_(), sample(5, seed=1)
    assert torch.autograd.gradcheck(lambda z: sinkhorn(z, y, epsilon=1.0, debiased=debiased, **EXACT), x, atol=1e-5)
    assert torch.autograd.gradcheck(lambda z: sinkhorn(y, z, epsilon=1.0, debiased=debiased, **EXACT), x, atol=1e-5)


def test_cut_short_it_is_a_lower_bound():
    x, y = sample(20), sample(20, seed=1, shift=2)
    whole = float(sinkhorn(x, y, epsilon=1.0, **EXACT))
    bounds = [float(sinkhorn(x, y, epsilon=1.0, iterations=n)) for n in (1, 5, 50)]
    assert bounds == sorted(bounds)
    assert bounds[0] < whole
    assert bounds[-1] <= whole + 1e-9


# ---------------------------------------------------------------- mmd


def test_mmd_of_two_points_by_hand():
    x, y = torch.tensor([[0.0], [1.0]]), torch.tensor([[3.0], [5.0]])
    k = {d: math.exp(-(d**2) / 8) for d in range(6)}  # σ = 2
    across = 2 * (k[3] + k[5] + k[2] + k[4]) / 4
    assert float(mmd(x, y, bandwidths=[2.0])) == pytest.approx((1 + k[1]) / 2 + (1 + k[2]) / 2 - across)
    assert float(mmd(x, y, bandwidths=[2.0], unbiased=True)) == pytest.approx(k[1] + k[2] - across)
    several = [float(mmd(x, y, bandwidths=[s])) for s in (1.0, 2.0)]
    assert float(mmd(x, y, bandwidths=[1.0, 2.0])) == pytest.approx(sum(several) / 2)


def test_mmd_of_two_gaussians_in_closed_form():
    """E k over N(0, 1) and N(δ, 1) with a Gaussian kernel is that of a Gaussian of variance σ² + 2."""
    shift, sigma, n = 1.5, 1.3, 1000
    total = sigma**2 + 2
    exact = 2 * sigma / math.sqrt(total) * (1 - math.exp(-(shift**2) / (2 * total)))
    found = float(mmd(sample(n, 1), sample(n, 1, seed=1, shift=shift), bandwidths=[sigma], unbiased=True))
    assert found == pytest.approx(exact, abs=0.03)
    same = [float(mmd(sample(100, 1, s), sample(100, 1, 50 + s), unbiased=True)) for s in range(20)]
    assert abs(np.mean(same)) < 3 * np.std(same) / math.sqrt(20)  # unbiased, where the biased one is above zero
    assert min(float(mmd(sample(100, 1, s), sample(100, 1, 50 + s))) for s in range(20)) > 0


def test_bandwidths_follow_the_scale_and_equal_rows_are_no_trouble():
    x, y = sample(20), sample(30, seed=1, shift=1)
    assert float(mmd(1000 * x, 1000 * y)) == pytest.approx(float(mmd(x, y)))
    assert float(mmd(x, x)) == pytest.approx(0, abs=1e-12)
    ones = torch.ones(4, 2, requires_grad=True)
    mmd(ones, torch.ones(3, 2)).backward()
    sinkhorn(ones, torch.ones(3, 2), debiased=True).backward()
    assert torch.isfinite(ones.grad).all()


@pytest.mark.parametrize("unbiased", [False, True])
def test_gradient_of_mmd_is_the_numeric_one(unbiased):
    x, y = sample(6).requires_grad_(), sample(5, seed=1)
    assert torch.autograd.gradcheck(lambda z: mmd(z, y, bandwidths=[0.5, 2.0], unbiased=unbiased), x)


# ---------------------------------------------------------------- labelled rows


def labelled(n: int, seed: int, classes: int = 3, shift: float = 0.0) -> tuple[torch.Tensor, torch.Tensor]:
    labels = torch.arange(n) % classes
    return sample(n, 4, seed, shift) + 2 * labels[:, None], 7 * labels


def test_classes_are_as_far_apart_as_pot_says():
    (x, of_x), (y, of_y) = labelled(30, 0), labelled(24, 1, 2, shift=1)
    found = label_distances(x, of_x, y, of_y)
    assert found.shape == (3, 2)
    for i, j in np.ndindex(3, 2):
        u, v = x[of_x == 7 * i].numpy(), y[of_y == 7 * j].numpy()
        theirs = ot.gaussian.bures_wasserstein_distance(u.mean(0), v.mean(0), np.cov(u.T), np.cov(v.T))
        assert float(found[i, j]) == pytest.approx(float(theirs) ** 2)


def test_a_class_of_one_row_takes_the_pooled_covariance():
    x, of_x = labelled(31, 0)
    of_x[-1] = 99
    y, of_y = labelled(24, 1)
    found = label_distances(x, of_x, y, of_y)[-1, 0]
    residuals = np.concatenate([x[of_x == c].numpy() - x[of_x == c].numpy().mean(0) for c in (0, 7, 14)])
    pooled = residuals.T @ residuals / (31 - 4)
    v = y[of_y == 0].numpy()
    theirs = ot.gaussian.bures_wasserstein_distance(x[-1].numpy(), v.mean(0), pooled, np.cov(v.T))
    assert float(found) == pytest.approx(float(theirs) ** 2)
    alone = label_distances(x[:3], torch.arange(3), y[:2], torch.arange(2))
    assert torch.allclose(alone, squared_distances(x[:3], y[:2]))  # no class has two rows: between the means


def test_otdd_is_exact_transport_at_its_cost():
    (x, of_x), (y, of_y) = labelled(12, 0), labelled(12, 1, 2, shift=1)
    between = label_distances(x, of_x, y, of_y).numpy()
    cost = ot.dist(x.numpy(), y.numpy()) + between[of_x.numpy() // 7][:, of_y.numpy() // 7]
    exact = ot.emd2(ot.unif(12), ot.unif(12), cost)
    found = float(otdd(x, of_x, y, of_y, debiased=False, epsilon=1.0, iterations=20_000, tolerance=1e-6))
    assert exact - 1e-4 <= found < exact + math.log(12)
    assert float(otdd(x, of_x, x, of_x)) == pytest.approx(0, abs=1e-4)
    assert float(otdd(x, of_x, y, of_y)) > 0.1


def test_otdd_sees_labels_but_not_their_names():
    (x, of_x), (y, of_y) = labelled(30, 0), labelled(30, 1)
    plain = float(otdd(x, of_x, y, of_y))
    assert float(otdd(x, -of_x, y, 3 * of_y + 1)) == pytest.approx(plain)
    assert float(otdd(x, of_x, y, of_y.roll(1))) == pytest.approx(plain, rel=0.5)
    mixed = of_y[torch.randperm(30, generator=torch.Generator().manual_seed(0))]
    assert float(otdd(x, of_x, y, mixed)) > 2 * plain


def test_gradient_of_otdd_is_the_numeric_one_and_training_on_it_brings_samples_together():
    (x, of_x), (y, of_y) = labelled(7, 0), labelled(9, 1, 2, shift=1)
    of_x[-1] = 99  # a class of one row
    x.requires_grad_()
    assert torch.autograd.gradcheck(lambda z: otdd(z, of_x, y, of_y, epsilon=20.0, **EXACT), x, atol=1e-4)
    (x, of_x), (y, of_y) = labelled(30, 0), labelled(30, 1, shift=5)
    x, y = x.float(), y.float()
    before = float(otdd(x, of_x, y, of_y))
    optimiser = torch.optim.Adam([x.requires_grad_()], lr=0.3)
    for _ in range(40):
        optimiser.zero_grad()
        otdd(x, of_x, y, of_y, iterations=50).backward()
        optimiser.step()
    assert float(otdd(x.detach(), of_x, y, of_y)) < 0.1 * before


# ---------------------------------------------------------------- precision, bad input


def test_half_precision_and_autocast_are_computed_in_single():
    x, y = sample(20, 64).float() + 50, sample(20, 64, seed=1).float() + 50
    labels = torch.arange(20) % 2
    for measure in (mmd, sinkhorn, lambda u, v: otdd(u, labels, v, labels)):
        plain = float(measure(x, y))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert float(measure(x, y)) == plain
        assert measure(x.bfloat16(), y).dtype == torch.float32


def test_bad_input():
    x, labels = sample(4), torch.arange(4) % 2
    with pytest.raises(ValueError, match="of one width and one row or more, found \\(4, 3\\) and \\(4, 2\\)"):
        mmd(x, x[:, :2])
    with pytest.raises(ValueError, match="one row or more"):
        sinkhorn(x, x[:0])
    with pytest.raises(ValueError, match="two rows or more of each sample, found 4 and 1"):
        mmd(x, x[:1], unbiased=True)
    with pytest.raises(ValueError, match="above 0"):
        mmd(x, x, bandwidths=[1.0, 0.0])
    with pytest.raises(ValueError, match="epsilon is a number above 0, found -1"):
        sinkhorn(x, x, epsilon=-1)
    with pytest.raises(ValueError, match="weights"):
        sinkhorn(x, x, weights_x=torch.tensor([1.0, -1, 1, 1]))
    with pytest.raises(ValueError, match="one number a row, \\(4,\\), found \\(3,\\)"):
        otdd(x, labels[:3], x, labels)
