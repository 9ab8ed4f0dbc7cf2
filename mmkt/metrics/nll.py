"""Negative log-likelihood."""

from __future__ import annotations

from typing import Any

import numpy as np

from mmkt.metrics._columns import average, labels, log_softmax
from mmkt.types import Metric, Predictions


class Nll(Metric):
    """Mean negative log-likelihood of the true class, in nats."""

    heads = ("classify",)
    higher_is_better = False

    def __call__(self, predictions: Predictions, task: str, weights: Any) -> dict[str, Any]:
        """Under ``"all"``, (R,)."""
        places = labels(predictions, task)
        return {"all": average(-log_softmax(predictions, task)[np.arange(len(places)), places], weights)}
