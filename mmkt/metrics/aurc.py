"""Area under the risk–coverage curve."""

from __future__ import annotations

from typing import Any

import numpy as np

from mmkt.metrics._columns import labels, log_softmax
from mmkt.types import Metric, Predictions


class Aurc(Metric):
    """Area under the risk–coverage curve (Geifman and El-Yaniv, 2017): the error rate among the answers that are given, averaged
    over all shares of rows that are answered, the most confident first.

    Rows of one confidence are answered together. A model that knows when it is wrong has less than its error rate; one whose
    confidence says nothing has just that.
    """

    heads = ("classify",)
    higher_is_better = False

    def __call__(self, predictions: Predictions, task: str, weights: Any) -> dict[str, Any]:
        """Under ``"all"``, (R,)."""
        scores = log_softmax(predictions, task)
        confidence, wrong = scores.max(axis=1), scores.argmax(axis=1) != labels(predictions, task)
        order = np.argsort(-confidence, kind="stable")
        _, sizes = np.unique(-confidence, return_counts=True)  # of runs of one confidence, the highest first
        starts = np.cumsum(sizes) - sizes
        w, errors = weights[:, order], (weights * wrong)[:, order]
        answered, failed = (np.cumsum(np.add.reduceat(x, starts, axis=1), axis=1) for x in (w, errors))  # (R, runs)
        risk = np.divide(failed, answered, out=np.zeros_like(failed), where=answered > 0)
        steps = np.diff(answered, axis=1, prepend=0)
        return {"all": (risk * steps).sum(axis=1) / answered[:, -1]}
