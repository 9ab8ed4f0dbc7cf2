"""Macro F1."""

from __future__ import annotations

from typing import Any

from mmkt.metrics._counts import f1, mean_defined
from mmkt.types import Metric, Predictions


class MacroF1(Metric):
    """Mean F1 over the classes that occur in labels or predictions; a class never found counts 0."""

    heads = ("classify", "tag")

    def __call__(self, predictions: Predictions, task: str, weights: Any) -> dict[str, Any]:
        """Under ``"all"``, (R,)."""
        return {"all": mean_defined(f1(predictions, task, weights))}
