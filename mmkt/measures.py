"""What a frozen representation promises for a target, measured without training: pure functions of arrays.

Higher promises more, but for ``proxy_a_distance`` (and for the distances of ``mmkt.layers.transport``). None of them is a
figure that a fine-tuned model will reach: they rank.
"""

from __future__ import annotations

import math
from itertools import permutations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import minimize_scalar
from scipy.stats import kendalltau
from sklearn.covariance import ledoit_wolf_shrinkage
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

Floats = NDArray[np.float64]
RATIOS = np.linspace(-10, 10, 81) * math.log(10)  # log of β/α times the features' mean variance, at which evidence is looked at
ALL = 8  # items of which every order is tried
DRAWS = 10_000  # orders of more items


def logme(features: ArrayLike, labels: ArrayLike) -> float:
    """The log of the maximum evidence (You et al., 2021), a row, averaged over classes.

    Each class's indicator y is a Bayesian linear regression on the features F: y ~ N(Fw, β⁻¹ I), w ~ N(0, α⁻¹ I). The evidence
    p(y | F, α, β) is that of N(0, β⁻¹ (I + t FFᵀ)) with t = β/α. For any t the best β is n/Q(t), where
    Q(t) = yᵀ(I + t FFᵀ)⁻¹y, which leaves −n/2 · (log 2π + 1 + log Q(t)/n) − ½ log|I + t FFᵀ| to be maximised over t alone.
    The paper's fixed point of α and β may end in a lower maximum, or nowhere where F has n columns or more; this does not: one
    singular value decomposition, a grid of t over 20 orders of magnitude, then Brent's method around its best point.

    Args:
        features: (n, W); neither centred nor scaled here, and scale does not matter.
        labels: (n,) whole numbers.
    """
    x, y = checked(features, labels)
    n = len(x)
    u, s, _ = np.linalg.svd(x, full_matrices=False)
    variance = s**2 / max(np.finfo(float).tiny, float(np.mean(s**2)))  # t is in units of its mean: no scale matters
    found = []
    for c in np.unique(y):
        target = (y == c).astype(np.float64)
        z = (u.T @ target) ** 2
        rest = max(0.0, float(target.sum() - z.sum()))  # of ‖y‖², beyond the features' span

        def lost(log_t: float, z: Floats = z, rest: float = rest) -> float:
            growth = 1 + math.exp(log_t) * variance
            q = max(float((z / growth).sum()) + rest, np.finfo(float).tiny)
            return 0.5 * (math.log(2 * math.pi) + 1 + math.log(q / n) + float(np.log(growth).sum()) / n)

        best = int(np.argmin([lost(log_t) for log_t in RATIOS]))
        low, high = RATIOS[max(0, best - 1)], RATIOS[min(len(RATIOS) - 1, best + 1)]
        refined = minimize_scalar(lost, bounds=(low, high), method="bounded", options={"xatol": 1e-6})
        found.append(-min(float(refined.fun), lost(RATIOS[best])))
    return float(np.mean(found))


def h_score(features: ArrayLike, labels: ArrayLike, shrinkage: bool = False) -> float:
    """The H-score tr(Σ⁻¹ Σ_B) (Bao et al., 2019): Σ is the features' covariance, Σ_B that of their classes' means.

    It is the sum of squared canonical correlations, between 0 and the smaller of W and classes − 1. With as many columns as rows
    or more it is classes − 1 for anything: ``shrinkage`` is for those (Ibrahim et al., 2022), which has (1 − λ) Σ_B over
    Σ_λ = (1 − λ) Σ + λ tr(Σ)/W · I with the λ of Ledoit and Wolf (2004).

    Args:
        features: (n, W).
        labels: (n,) whole numbers.
        shrinkage: of the covariance.
    """
    x, y = checked(features, labels)
    n, width = x.shape
    u, spread, _ = np.linalg.svd(x - x.mean(0), full_matrices=False)
    there = spread > spread[0] * max(n, width) * np.finfo(float).eps  # the others vary by rounding alone
    if not there.any():
        return 0.0
    variance = spread[there] ** 2 / n  # Σ, in its own axes
    # along each of them Σ_B / Σ is what the classes' sums of a vector of length 1 make up
    share = sum(u[y == c][:, there].sum(0) ** 2 / np.sum(y == c) for c in np.unique(y))
    amount = ledoit_wolf_shrinkage(x - x.mean(0), assume_centered=True) if shrinkage else 0.0
    kept = (1 - amount) * variance
    return float(np.sum(share * kept / (kept + amount * variance.sum() / width)))


def leep(probabilities: ArrayLike, labels: ArrayLike) -> float:
    """LEEP (Nguyen et al., 2020): the mean log-likelihood of the labels under the expected empirical predictor.

    With the joint P(y, z) = 1/n Σ_i [y_i = y] θ(x_i)_z of a target label and a source class it is
    1/n Σ_i log Σ_z P(y_i | z) θ(x_i)_z.

    Args:
        probabilities: θ, (n, source classes): what the source's head says of the target's rows.
        labels: (n,) whole numbers, of the target.
    """
    theta, y = checked(probabilities, labels, "probabilities")
    if theta.min() < 0 or not np.allclose(theta.sum(1), 1, atol=1e-3):
        raise ValueError("probabilities are 0 or more and sum to 1 in every row: give the softmax of the head's logits")
    classes, place = np.unique(y, return_inverse=True)
    joint = np.stack([theta[place == k].sum(0) for k in range(len(classes))]) / len(theta)  # (classes, source classes)
    given = joint / np.maximum(joint.sum(0), np.finfo(float).tiny)
    return float(np.log(np.maximum((given[place] * theta).sum(1), np.finfo(float).tiny)).mean())


def nce(sources: ArrayLike, labels: ArrayLike) -> float:
    """The negative conditional entropy −H(Y | Z) = Σ P(y, z) log P(y | z) in nats (Tran et al., 2019).

    Args:
        sources: (n,) whole numbers, a source label a row: what the source's head takes it for.
        labels: (n,) whole numbers, of the target.
    """
    z = np.asarray(sources)
    _, y = checked(z[:, None], labels, "source labels")
    table = np.zeros((len(np.unique(z)), len(np.unique(y))))
    np.add.at(table, (np.unique(z, return_inverse=True)[1], np.unique(y, return_inverse=True)[1]), 1 / len(z))
    given = table / table.sum(1, keepdims=True)
    return float((table * np.log(np.where(given > 0, given, 1))).sum())


def proxy_a_distance(source: ArrayLike, target: ArrayLike, seed: int = 0, folds: int = 5) -> float:
    """The proxy A-distance 2(1 − 2ε) (Ben-David et al., 2007): ε is the error of a linear classifier that tells both apart.

    About 0 where it cannot (by chance below), 2 where it always can. The classifier is a logistic regression on standardised
    features; ε is the mean of the two sides' errors on rows that it was not fitted on, so that sizes do not matter.

    Args:
        source: (n, W).
        target: (m, W).
        seed: of the folds.
        folds: of the cross-fitting; each side has as many rows or more.
    """
    x, y = np.asarray(source, dtype=np.float64), np.asarray(target, dtype=np.float64)
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1]:
        raise ValueError(f"both sides are (rows, W) of one width, found {x.shape} and {y.shape}")
    if min(len(x), len(y)) < folds:
        raise ValueError(f"cross-fitting over {folds} folds takes {folds} rows or more a side, found {len(x)} and {len(y)}")
    side = np.repeat([0, 1], [len(x), len(y)])
    classifier = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000, class_weight="balanced"))
    shuffled = StratifiedKFold(folds, shuffle=True, random_state=seed)
    wrong = cross_val_predict(classifier, np.concatenate([x, y]), side, cv=shuffled) != side
    return float(2 * (1 - wrong[: len(x)].mean() - wrong[len(x) :].mean()))


def kendall(values: ArrayLike, truth: ArrayLike, seed: int = 0) -> tuple[float, float]:
    """Kendall's τ_b and its two-sided p-value by permutation: every order of up to 8 items, else 10,000 drawn ones.

    NaN where a side has one value alone, as for fewer than two items.

    Args:
        values: (n,).
        truth: (n,).
        seed: of the draws.
    """
    x, y = np.asarray(values, dtype=np.float64), np.asarray(truth, dtype=np.float64)
    if len(np.unique(x)) < 2 or len(np.unique(y)) < 2:
        return math.nan, math.nan
    i, j = np.triu_indices(len(x), 1)
    if len(x) <= ALL:
        orders = np.array(list(permutations(range(len(x)))))
    else:
        orders = np.random.default_rng(seed).permuted(np.tile(np.arange(len(x)), (DRAWS, 1)), axis=1)
        orders[0] = np.arange(len(x))  # the order that was found is one of them: p is never 0
    # ties and so the denominator are the same in every order: concordant minus discordant pairs are what is compared
    surplus = np.sign(y[orders[:, i]] - y[orders[:, j]]) @ np.sign(x[i] - x[j])
    found = np.sign(y[i] - y[j]) @ np.sign(x[i] - x[j])
    return float(kendalltau(x, y, variant="b").statistic), float(np.mean(np.abs(surplus) >= abs(found)))


def checked(rows: ArrayLike, labels: ArrayLike, what: str = "features") -> tuple[Floats, NDArray[np.int64]]:
    """Rows (n, W) in double precision and their labels (n,).

    Raises:
        ValueError: they do not fit, are not finite, or there is one class alone.
    """
    x, y = np.asarray(rows, dtype=np.float64), np.asarray(labels)
    if x.ndim != 2 or y.shape != x.shape[:1] or not x.size:
        raise ValueError(f"{what} are (n, W) with one label a row, (n,); found {x.shape} and {y.shape}")
    if not np.isfinite(x).all():
        bad = int((~np.isfinite(x)).any(1).sum())
        raise ValueError(
            f"{bad} of {len(x)} rows of {what} are not finite numbers: no measure is defined on them; leave them out"
        )
    if len(np.unique(y)) < 2:
        raise ValueError(
            f"the target has one class alone ({np.unique(y).tolist()} in {len(y)} rows): a measure tells classes apart, "
            "so give rows of two classes or more"
        )
    return x, y
