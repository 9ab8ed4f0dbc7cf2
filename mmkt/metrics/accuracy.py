"""Accuracy."""

from __future__ import annotations

from typing import Any

from mmkt.metrics._columns import average, guess, truth
from mmkt.types import Metric, Predictions


class Accuracy(Metric):
    """Share of rows answered right: the most probable class, or exactly the right set of tags at threshold 0.5."""

    heads = ("classify", "tag")

    def __call__(self, predictions: Predictions, task: str, weights: Any) -> dict[str, Any]:
        """Under ``"all"``, (R,)."""
        right = (truth(predictions, task) == guess(predictions, task)).all(axis=1)
        return {"all": average(right, weights)}
