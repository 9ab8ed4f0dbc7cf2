"""Areas under curves that come from ranking rows by a class's score; ties share one threshold, as in scikit-learn."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from mmkt.metrics._columns import log_softmax, logits, truth
from mmkt.metrics._counts import mean_defined
from mmkt.types import Predictions

CELLS = 2_000_000  # weights ranked at once: bounds the memory at a few times 16 MB


class Curve(NamedTuple):
    """One class's ranking from the highest score down, at the K thresholds that gain positives; weights, not counts."""

    gained: np.ndarray  # (K, R) positives of exactly this score
    found: np.ndarray  # (K, R) positives of this score or higher
    taken: np.ndarray  # (K, R) rows of this score or higher
    before: np.ndarray  # (K, R) rows of a higher score
    total: np.ndarray  # (R,) all rows


def curve(scores: np.ndarray, positive: np.ndarray, weights: np.ndarray) -> Curve:
    """Rank ``scores`` (n,) with at least one of ``positive`` (n,) under ``weights`` (n, R)."""
    order = np.argsort(-scores, kind="stable")
    scores, positive, weights = scores[order], positive[order], weights[order]
    taken = np.cumsum(weights, axis=0)
    starts = np.flatnonzero(np.r_[True, scores[1:] != scores[:-1]])  # of each run of equal scores
    ends = np.r_[starts[1:], len(scores)] - 1
    run = np.searchsorted(starts, np.flatnonzero(positive), side="right") - 1  # of each positive
    runs, first = np.unique(run, return_index=True)
    gained = np.add.reduceat(weights[positive], first, axis=0)
    before = np.where(starts[runs, None] > 0, taken[starts[runs] - 1], 0)
    return Curve(gained, np.cumsum(gained, axis=0), taken[ends[runs]], before, taken[-1])


def macro(area: Callable[[Curve], np.ndarray], predictions: Predictions, task: str, weights: np.ndarray) -> np.ndarray:
    """Mean of ``area`` over the classes with weight on positives and on negatives: (R,), NaN where there is none."""
    true = truth(predictions, task)
    # A tag's logit ranks as its probability does, without rounding to 1.
    scores = logits(predictions, task) if predictions.tasks[task] == "tag" else np.exp(log_softmax(predictions, task))
    step = max(1, CELLS // weights.shape[1])
    means = []
    for i in range(0, len(weights), step):
        columns = np.ascontiguousarray(weights[i : i + step].T)  # (n, r): a row's weights lie together
        areas = np.full((columns.shape[1], true.shape[1]), np.nan)
        for c in np.flatnonzero(true.any(axis=0)):
            points = curve(scores[:, c], true[:, c], columns)
            defined = (points.found[-1] > 0) & (points.found[-1] < points.total)
            with np.errstate(divide="ignore", invalid="ignore"):  # of the undefined ones, which are dropped here
                areas[:, c] = np.where(defined, area(points), np.nan)
        means.append(mean_defined(areas))
    return np.concatenate(means)
