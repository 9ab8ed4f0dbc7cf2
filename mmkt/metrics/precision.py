"""Precision by class."""

from __future__ import annotations

from typing import Any

from mmkt.metrics._counts import by_class, counts, rate
from mmkt.types import Metric, Predictions


class Precision(Metric):
    """Share of the rows given a class that have it; 0 for one never given, NaN for one that no label has either."""

    heads = ("classify", "tag")
    overall = False

    def __call__(self, predictions: Predictions, task: str, weights: Any) -> dict[str, Any]:
        """Under ``"class=…"``, (R,) each."""
        found, predicted, true = counts(predictions, task, weights)
        return by_class(rate(found, predicted, predicted + true), predictions, task)
