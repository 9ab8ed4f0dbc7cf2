"""Mean absolute error."""

from __future__ import annotations

from typing import Any

import numpy as np

from mmkt.metrics._columns import average, measured
from mmkt.types import Metric, Predictions


class Mae(Metric):
    """Mean absolute error, in the label's units."""

    heads = ("regress",)
    higher_is_better = False

    def __call__(self, predictions: Predictions, task: str, weights: Any) -> dict[str, Any]:
        """Under ``"all"``, (R,)."""
        label, prediction = measured(predictions, task)
        return {"all": average(np.abs(prediction - label), weights)}
