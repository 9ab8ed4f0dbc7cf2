"""Area under the receiver operating characteristic."""

from __future__ import annotations

from typing import Any

import numpy as np

from mmkt.metrics._ranks import Curve, macro
from mmkt.types import Metric, Predictions


class Auroc(Metric):
    """Area under the ROC curve, each class against the rest, mean over classes with both positives and negatives."""

    heads = ("classify", "tag")

    def __call__(self, predictions: Predictions, task: str, weights: Any) -> dict[str, Any]:
        """Under ``"all"``, (R,); NaN where no class has both."""
        return {"all": macro(_area, predictions, task, weights)}


def _area(points: Curve) -> np.ndarray:
    """P(a positive scores above a negative), a tie counting half (Mann and Whitney, 1947): (R,)."""
    positives = points.found[-1]
    negatives = points.total - positives
    taken = points.taken - points.found  # negatives of this score or higher
    before = points.before - (points.found - points.gained)
    return (points.gained * (negatives - (taken + before) / 2)).sum(axis=0) / (positives * negatives)
