"""Probabilities that mean what they say, and sets that hold the truth as often as asked. Functions of arrays."""

from __future__ import annotations

import math

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import logsumexp

RANGE = 1e-2, 1e2  # of temperatures


def fit_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """The T that minimises the negative log-likelihood of softmax(logits / T) (Guo et al., 2017).

    The likelihood is convex in 1 / T, so there is one minimum. It is sought between 0.01 and 100: a model without mistakes
    would have 0, one that knows nothing no end.

    Args:
        logits: (n, C).
        labels: (n,) the true classes' places.
    """

    def loss(log_t: float) -> float:
        x = logits / math.exp(log_t)
        return float((logsumexp(x, axis=1) - x[np.arange(len(labels)), labels]).mean())

    found = minimize_scalar(loss, bounds=tuple(map(math.log, RANGE)), method="bounded", options={"xatol": 1e-6})
    return math.exp(found.x)


def conformal_threshold(probabilities: np.ndarray, labels: np.ndarray, coverage: float) -> float:
    """The least probability of a class in a prediction set, by split conformal prediction (Sadinle, Lei and Wasserman, 2019).

    With 1 − p_true as the score, a set holds every class whose score is at most the ⌈(n + 1) · coverage⌉-th smallest of the n
    calibration rows. If new rows are drawn as these were, it holds the true class with probability coverage or more, and
    at most 1 / (n + 1) more where scores have no ties: on average over calibration sets, not for every group or class.

    Args:
        probabilities: (n, C).
        labels: (n,) the true classes' places.
        coverage: between 0 and 1.

    Returns:
        The threshold; 0, so that sets hold everything, where n rows are too few for this coverage.
    """
    scores = np.sort(probabilities[np.arange(len(labels)), labels])[::-1]  # the smallest score first
    place = math.ceil((len(scores) + 1) * coverage - 1e-9)
    return float(scores[place - 1]) if place <= len(scores) else 0.0
