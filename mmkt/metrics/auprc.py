"""Area under the precision-recall curve."""

from __future__ import annotations

from typing import Any

import numpy as np

from mmkt.metrics._ranks import Curve, macro
from mmkt.types import Metric, Predictions


class Auprc(Metric):
    """Average precision, each class against the rest, mean over classes with both positives and negatives."""

    heads = ("classify", "tag")

    def __call__(self, predictions: Predictions, task: str, weights: Any) -> dict[str, Any]:
        """Under ``"all"``, (R,); NaN where no class has both."""
        return {"all": macro(_area, predictions, task, weights)}


def _area(points: Curve) -> np.ndarray:
    """Precision at each threshold times the recall gained there, not interpolated: (R,)."""
    precision = np.divide(points.found, points.taken, out=np.zeros_like(points.found), where=points.taken > 0)
    return (points.gained * precision).sum(axis=0) / points.found[-1]
