"""F1 by class."""

from __future__ import annotations

from typing import Any

from mmkt.metrics._counts import by_class, f1
from mmkt.types import Metric, Predictions


class F1(Metric):
    """Harmonic mean of precision and recall, class by class; NaN for a class in neither labels nor predictions."""

    heads = ("classify", "tag")
    overall = False

    def __call__(self, predictions: Predictions, task: str, weights: Any) -> dict[str, Any]:
        """Under ``"class=…"``, (R,) each."""
        return by_class(f1(predictions, task, weights), predictions, task)
