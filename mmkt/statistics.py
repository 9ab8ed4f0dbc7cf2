"""Differences between trainings, with both sources of chance (seeds and rows), and between two models on the same rows."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from scipy import special, stats

from mmkt.score import interval
from mmkt.types import Metric, Predictions

LEVEL = 0.95
CELLS = 4_000_000  # weights drawn at once: 32 MB an array


class Difference(NamedTuple):
    """Of two arms over paired seeds."""

    mean: float
    low: float  # the 95 % interval, over seeds and rows
    high: float
    p: float  # over seeds and rows (see ``difference``), NaN with fewer than two seeds
    seeds: int
    needed: float  # seeds at which it is told from 0 in 80 % of studies; NaN where that can't be said, inf above a thousand
    effect: float = np.nan  # the mean in deviations over seeds, without small samples' bias; NaN with fewer than three

    def verdict(self, p: float | None = None) -> str:
        """``gain``, ``loss``, ``not distinguishable``, or ``sighting`` with fewer than five seeds.

        Args:
            p: corrected for several comparisons; its own by default.
        """
        if self.seeds < 5:
            return "sighting"
        clear = (self.low > 0 or self.high < 0) and (self.p if p is None else p) < 1 - LEVEL
        return ("gain" if self.mean > 0 else "loss") if clear else "not distinguishable"


def difference(values: np.ndarray, seed: int = 0) -> Difference:
    """Of paired seeds, from values that are resampled over rows alike.

    A difference is μ + seed + row + (seed × row), so its mean over S seeds and N rows errs by
    (σ²_seed + σ²_seed×row / N) / S + σ²_row / N. The variance over seeds, divided by S, estimates the first two. The third is
    what all seeds share as they answer the same rows: the mean covariance of two seeds over resamples. (The variance of the
    seeds' mean over resamples would count the interplay twice: safe, but blind where seeds answer rows differently.)

    The interval is a hierarchical bootstrap: each resample draws seeds with replacement and, for all of them, the same rows
    (test rows are shared). Resampling few seeds understates their variance, (S − 1) / S of it, so deviations from the mean are
    widened by √(S / (S − 1)). A difference counts where the interval and p agree; p is ``two_sources``.

    Args:
        values: (S, 1 + R): of each seed the difference itself, then that of R resamples of rows.
        seed: of the draws of seeds.
    """
    s, mean = len(values), float(values[:, 0].mean())
    if s < 2:
        low, high = interval(values[0, 1:], LEVEL)
        return Difference(mean, low, high, np.nan, s, np.nan)
    drawn = np.random.default_rng(seed).integers(s, size=(values.shape[1] - 1, s))  # (R, S)
    resampled = values[drawn, np.arange(1, values.shape[1])[:, None]].mean(1)  # (R,)
    rows = values[:, 1:].mean(0)  # what rows alone do
    low, high = interval(rows + (resampled - rows) * (s / (s - 1)) ** 0.5, LEVEL)
    variance, shared = float(values[:, 0].var(ddof=1)), _shared(values[:, 1:])
    p = two_sources(mean, variance / s, s - 1, shared)
    return Difference(mean, low, high, p, s, needed(mean, variance, shared), _effect(mean, variance, s))


def _shared(resampled: np.ndarray) -> float:
    """The mean covariance of two seeds over resamples of rows, (S, R), at least 0; NaN where fewer than two are defined."""
    s, defined = len(resampled), ~np.isnan(resampled).any(0)
    if defined.sum() < 2:
        return np.nan
    covariance = np.cov(resampled[:, defined])
    return max(0.0, float(covariance.sum() - covariance.trace()) / (s * (s - 1)))


def two_sources(mean: float, estimated: float, freedom: int, known: float) -> float:
    """The two-sided p of a mean of 0 whose variance is the sum of one that is estimated and one that is known.

    The solution of Behrens and Fisher (Fisher, 1935), one of its two degrees of freedom being infinite: the mean over
    W ~ χ²(freedom) of P(|N(0, estimated · freedom / W + known)| ≥ |mean|). Nothing known gives Student's t, nothing estimated
    gives the normal. It never claims too often (Robinson, 1976). Welch's t with Satterthwaite's degrees of freedom would: an
    ``estimated`` that comes out small by chance looks as if it were known well, and with four degrees of freedom
    p < 0.05 / 19, as Holm's correction of 19 comparisons asks, comes up to three times as often as it should
    (``tests/test_statistics.py``).

    Args:
        mean: what is tested.
        estimated: of the mean, from few values.
        freedom: degrees of freedom of ``estimated``.
        known: of the mean, from so many values (test rows) that their number no longer matters.
    """
    if estimated + known == 0:
        return 1.0 if mean == 0 else 0.0
    half = freedom / 2  # W / 2 is a gamma variable of this shape
    low, high = np.log([special.gammaincinv(half, 1e-14), special.gammainccinv(half, 1e-14)])
    x = np.linspace(low, high, 400)
    y = np.exp(x)
    beyond = 2 * special.ndtr(-abs(mean) / np.sqrt(estimated * half / y + known))
    # trapezoids over the logarithm: the integrand vanishes at both ends, where they are as good as exact
    return float(np.minimum(1.0, np.trapezoid(beyond * np.exp(half * x - y - special.gammaln(half)), x)))


def needed(mean: float, variance: float, shared: float, power: float = 0.8) -> float:
    """Seeds at which a difference like this one is told from 0 with this power, by a two-sided test at 0.05.

    The power is that of a noncentral t with Welch's and Satterthwaite's degrees of freedom; exact where rows play no part.
    A difference that was only just seen is likely to be smaller, so take it as a lower bound.

    Args:
        mean: the true difference.
        variance: over seeds.
        shared: of the mean, as seeds share their rows; more seeds leave it as it is.
        power: how often it is to be told.

    Returns:
        At most 1000; inf where more would be needed, or where no number is enough as the rows hide it; NaN where something
        is unknown, or for a mean of 0.
    """
    if not mean or not np.isfinite(mean + variance + shared):
        return np.nan

    def reached(n: int) -> float:
        whole = variance / n + shared
        freedom = (n - 1) * (whole * n / variance) ** 2 if variance else np.inf
        far = min(abs(mean) / whole**0.5, 1e3) if whole else 1e3  # the noncentral t is NaN far beyond
        return 1 - special.nctdtr(freedom, far, special.stdtrit(freedom, (1 + LEVEL) / 2))

    found = 2 + bisect_left(range(2, 1001), power, key=reached)
    return float(found) if found <= 1000 else np.inf


def _effect(mean: float, variance: float, s: int) -> float:
    """Hedges' (1981) g of paired differences: mean / deviation · J(S − 1), J(m) = Γ(m/2) / (√(m/2) Γ((m − 1)/2)).

    J takes off the bias of small samples; with two seeds the estimate has no mean, J is 0, and nothing can be said. Where
    seeds don't vary at all it is infinite.
    """
    m = s - 1
    if m < 2 or np.isnan(mean + variance) or not (mean or variance):
        return np.nan
    if not variance:
        return float(np.copysign(np.inf, mean))
    return float(mean / variance**0.5 * np.exp(special.gammaln(m / 2) - special.gammaln((m - 1) / 2)) / (m / 2) ** 0.5)


def holm(p: Sequence[float]) -> list[float]:
    """Holm's (1979) corrected p-values; NaN stays NaN and is not counted."""
    known = [k for k, x in enumerate(p) if not np.isnan(x)]
    corrected, running = list(p), 0.0
    for place, k in enumerate(sorted(known, key=lambda k: p[k])):
        running = max(running, min(1.0, p[k] * (len(known) - place)))
        corrected[k] = running
    return corrected


def mcnemar(first: np.ndarray, other: np.ndarray) -> tuple[int, int, float]:
    """The exact test of McNemar (1947) on which rows two models answer right, (n,) bool each.

    Returns:
        How many rows the first alone answers right, how many the other alone, and the two-sided p of a fair coin.
    """
    one, two = int((first & ~other).sum()), int((other & ~first).sum())
    return one, two, float(stats.binomtest(one, one + two).pvalue) if one + two else 1.0


def permutation_test(first: Predictions, other: Predictions, task: str, metric: Metric, times: int, seed: int = 0) -> float:
    """The two-sided p of a paired permutation test: in each row the two models' answers change places, or not, by a coin.

    If nothing tells the models apart, the difference that was seen is one of those that exchanging gives (Fisher's sharp null
    hypothesis). The seen one counts as one of the draws, so p is never 0.

    Args:
        first: labelled rows alone.
        other: the same rows.
        task: which task.
        metric: whose difference is tested.
        times: draws.
        seed: of the draws.

    Returns:
        p; NaN where the metric is undefined.
    """
    n, columns = first.table.num_rows, {}
    for name in ("label", "prediction", "logits"):
        name = f"{task}.{name}"
        if name in first.table.column_names and name in other.table.column_names:
            # by values: a list that is empty in every row has no type of its own
            columns[name] = [*first.table[name].to_pylist(), *other.table[name].to_pylist()]
    both = first._replace(table=pa.table(columns))

    def figures(swap: np.ndarray) -> np.ndarray:  # (r, n) → (2, r)
        stays = 1 - swap
        return np.stack([metric(both, task, np.concatenate(parts, 1))["all"] for parts in ((stays, swap), (swap, stays))])

    one, two = figures(np.zeros((1, n)))[:, 0]
    if np.isnan(two - one):
        return np.nan
    # equal differences may be summed in another order: their last digits are those of the figures
    least = abs(two - one) - 1e-9 * max(abs(one), abs(two))
    random, step, beyond = np.random.default_rng(seed), max(1, CELLS // (2 * n)), 1
    for start in range(0, times, step):
        drawn = figures(random.integers(2, size=(min(step, times - start), n)).astype(np.float64))
        beyond += int((np.abs(drawn[1] - drawn[0]) >= least).sum())
    return beyond / (times + 1)
