"""Differences between trainings, with both sources of chance: seeds and rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

from mmkt.score import draws
from mmkt.types import Metric, Predictions

LEVEL = 0.95


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
        low, high = interval(values[0, 1:])
        return Difference(mean, low, high, np.nan, s, np.nan)
    drawn = np.random.default_rng(seed).integers(s, size=(values.shape[1] - 1, s))  # (R, S)
    resampled = values[drawn, np.arange(1, values.shape[1])[:, None]].mean(1)  # (R,)
    rows = values[:, 1:].mean(0)  # what rows alone do
    low, high = interval(rows + (resampled - rows) * (s / (s - 1)) ** 0.5)
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


def interval(drawn: np.ndarray) -> tuple[float, float]:
    """Percentiles of what is defined."""
    defined = drawn[~np.isnan(drawn)]
    if not len(defined):
        return np.nan, np.nan
    low, high = np.quantile(defined, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def holm(p: Sequence[float]) -> list[float]:
    """Holm's (1979) corrected p-values; NaN stays NaN and is not counted."""
    known = [k for k, x in enumerate(p) if not np.isnan(x)]
    corrected, running = list(p), 0.0
    for place, k in enumerate(sorted(known, key=lambda k: p[k])):
        running = max(running, min(1.0, p[k] * (len(known) - place)))
        corrected[k] = running
    return corrected


def resampled(predictions: Predictions, task: str, metric: Metric, resamples: int) -> np.ndarray:
    """A metric's value over all rows, then over ``resamples`` draws of rows: (1 + resamples,).

    Equally many rows get equal draws, so differences of two of these are paired by row.
    """
    n = predictions.table.num_rows
    parts = [np.ones((1, n)), *draws(np.arange(n), resamples, 0)]
    return np.concatenate([metric(predictions, task, weights)["all"] for weights in parts])
