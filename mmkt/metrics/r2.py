"""Coefficient of determination."""

from __future__ import annotations

from typing import Any

import numpy as np

from mmkt.metrics._columns import average, measured
from mmkt.types import Metric, Predictions

ROUNDING = 1e-12  # a variance below this share of the mean square is a constant's


class R2(Metric):
    """Share of the labels' variance that the predictions explain: 1 − Σ(ŷ − y)² / Σ(y − ȳ)²; NaN for a constant label."""

    heads = ("regress",)

    def __call__(self, predictions: Predictions, task: str, weights: Any) -> dict[str, Any]:
        """Under ``"all"``, (R,)."""
        label, prediction = measured(predictions, task)
        centred = label - label.mean()  # so that the difference of squares below keeps its digits
        square = average(centred**2, weights)
        variance = square - average(centred, weights) ** 2
        variance = np.where(variance > ROUNDING * square, variance, np.nan)
        return {"all": 1 - average((prediction - label) ** 2, weights) / variance}
