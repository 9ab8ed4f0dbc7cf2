"""Differences between trainings, with both sources of chance (seeds and rows), and between two models on the same rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from scipy import stats

from mmkt.score import interval
from mmkt.types import Metric, Predictions

LEVEL = 0.95
CELLS = 4_000_000  # weights drawn at once: 32 MB an array


class Difference(NamedTuple):
    """Of two arms over paired seeds."""

    mean: float
    low: float  # the 95 % interval, over seeds and rows
    high: float
    p: float  # of a paired t-test over seeds, NaN with fewer than two
    seeds: int
    needed: float  # seeds that it would take for this mean to be told from 0; NaN where that can't be said

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

    The interval is a hierarchical bootstrap: each resample draws seeds with replacement and, for all of them, the same rows
    (test rows are shared). Resampling few seeds understates their variance, (S − 1) / S of it, so deviations from the mean are
    widened by √(S / (S − 1)). A difference counts where a paired t-test over seeds agrees.

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
    deviation = float(values[:, 0].std(ddof=1))
    p = float(stats.ttest_1samp(values[:, 0], 0).pvalue) if deviation else (1.0 if mean == 0 else 0.0)
    return Difference(mean, low, high, p, s, _needed(mean, deviation))


def _needed(mean: float, deviation: float) -> float:
    """Seeds after which the t interval of this mean would leave 0 out."""
    if not mean or not np.isfinite(deviation):
        return np.nan
    n = np.arange(2, 1001)
    enough = stats.t.ppf((1 + LEVEL) / 2, n - 1) * deviation / n**0.5 < abs(mean)
    return float(n[enough.argmax()]) if enough.any() else np.inf


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
