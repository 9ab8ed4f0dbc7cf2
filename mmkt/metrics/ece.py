"""Expected calibration error."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from mmkt.metrics._columns import labels, log_softmax
from mmkt.types import Metric, Predictions


class Ece(Metric):
    """Expected calibration error of the top class over bins of confidence (Guo et al., 2017).

    It cannot fall below 0, so noise in the bins raises it: in small samples, and again in bootstrap resamples of them, it
    is biased upwards, and for a well calibrated model the interval lies above the truth and may lie above the value.
    """

    heads = ("classify",)
    higher_is_better = False

    def __init__(self, *, bins: Annotated[int, Field(ge=1)] = 15, equal: Literal["width", "mass"] = "width"):
        """Remember the settings.

        Args:
            bins: how many.
            equal: each as wide as the others, or with as many rows (Nixon et al., 2019), those of one confidence together; such
                bins are of the rows at hand, whatever their weights.
        """
        self.bins, self.equal = bins, equal

    def __call__(self, predictions: Predictions, task: str, weights: Any) -> dict[str, Any]:
        """Under ``"all"``, (R,), between 0 and 1."""
        probabilities = np.exp(log_softmax(predictions, task))
        confidence = probabilities.max(axis=1)
        right = probabilities.argmax(axis=1) == labels(predictions, task)
        shares = np.linspace(0, 1, self.bins + 1)[1:-1]
        inner = shares if self.equal == "width" else np.quantile(confidence, shares, method="inverted_cdf")
        place = np.searchsorted(inner, confidence)  # bins are (low, high]
        gap = np.where(place[:, None] == np.arange(self.bins), (right - confidence)[:, None], 0)  # (n, bins)
        return {"all": np.abs(weights @ gap).sum(axis=1) / weights.sum(axis=1)}
