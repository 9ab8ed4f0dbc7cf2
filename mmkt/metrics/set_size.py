"""Size of prediction sets."""

from __future__ import annotations

from typing import Any

import numpy as np

from mmkt.metrics._columns import average, sets
from mmkt.types import Metric, Predictions


class SetSize(Metric):
    """How many classes a row's prediction set (``mmkt calibrate``) holds, on average; an empty one counts 0."""

    heads = ("classify",)
    higher_is_better = False

    def __call__(self, predictions: Predictions, task: str, weights: Any) -> dict[str, Any]:
        """Under ``"all"``, (R,).

        Raises:
            ValueError: the model gives no sets.
        """
        sizes = np.array([len(some) for some in sets(predictions, task)], dtype=float)
        return {"all": average(sizes, weights)}
