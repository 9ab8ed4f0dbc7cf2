"""Recall by class."""

from __future__ import annotations

from typing import Any

from mmkt.metrics._counts import by_class, counts, rate
from mmkt.types import Metric, Predictions


class Recall(Metric):
    """Share of the rows of a class that were given it; 0 for one that no label has, NaN for one never given either."""

    heads = ("classify", "tag")
    overall = False

    def __call__(self, predictions: Predictions, task: str, weights: Any) -> dict[str, Any]:
        """Under ``"class=…"``, (R,) each."""
        found, predicted, true = counts(predictions, task, weights)
        return by_class(rate(found, true, predicted + true), predictions, task)
