"""Coverage of prediction sets."""

from __future__ import annotations

from typing import Any

import numpy as np

from mmkt.metrics._columns import average, sets
from mmkt.types import Metric, Predictions


class Coverage(Metric):
    """Share of rows whose prediction set (``mmkt calibrate``) holds the true class."""

    heads = ("classify",)

    def __call__(self, predictions: Predictions, task: str, weights: Any) -> dict[str, Any]:
        """Under ``"all"``, (R,).

        Raises:
            ValueError: the model gives no sets.
        """
        label = predictions.table[f"{task}.label"].to_pylist()
        held = [x in some for x, some in zip(label, sets(predictions, task), strict=True)]
        return {"all": average(np.array(held, dtype=float), weights)}
