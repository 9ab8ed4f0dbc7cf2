"""Brier score."""

from __future__ import annotations

from typing import Any

import numpy as np

from mmkt.metrics._columns import average, log_softmax, truth
from mmkt.types import Metric, Predictions


class Brier(Metric):
    """Squared error of the probabilities, summed over classes (Brier, 1950): 0 to 2, for two classes as well."""

    heads = ("classify",)
    higher_is_better = False

    def __call__(self, predictions: Predictions, task: str, weights: Any) -> dict[str, Any]:
        """Under ``"all"``, (R,)."""
        error = np.exp(log_softmax(predictions, task)) - truth(predictions, task)
        return {"all": average((error**2).sum(axis=1), weights)}
