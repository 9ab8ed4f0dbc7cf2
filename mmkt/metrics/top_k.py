"""Accuracy among the likeliest classes."""

from __future__ import annotations

from typing import Annotated, Any

import numpy as np
from pydantic import Field

from mmkt.metrics._columns import average, labels, logits
from mmkt.types import Metric, Predictions


class TopK(Metric):
    """Share of rows whose class is among the k likeliest; what is as likely as it, or not a number, stands before it."""

    heads = ("classify",)

    def __init__(self, *, k: Annotated[int, Field(ge=1)] = 5):
        """Remember k."""
        self.k = k

    def __call__(self, predictions: Predictions, task: str, weights: Any) -> dict[str, Any]:
        """Under ``"all"``, (R,)."""
        scores, places = logits(predictions, task), labels(predictions, task)
        true = scores[np.arange(len(places)), places][:, None]
        return {"all": average((~(scores < true)).sum(1) <= self.k, weights)}
