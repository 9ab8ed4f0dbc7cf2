"""What precision, recall and F1 count."""

from __future__ import annotations

import numpy as np

from mmkt.metrics._columns import guess, truth
from mmkt.types import Predictions

CLASSES = 64  # counted at once: bounds the memory where there are many


def counts(predictions: Predictions, task: str, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Weights of the rows of each class that were found, predicted and true: three (R, C)."""
    true, predicted = truth(predictions, task), guess(predictions, task)

    def total(rows: np.ndarray) -> np.ndarray:
        parts = [weights @ rows[:, i : i + CLASSES].astype(np.float64) for i in range(0, rows.shape[1], CLASSES)]
        return np.concatenate(parts, axis=1)

    return total(true & predicted), total(predicted), total(true)


def rate(found: np.ndarray, of: np.ndarray, occurs: np.ndarray) -> np.ndarray:
    """``found / of``, 0 where ``of`` is 0, and NaN where the class occurs in neither labels nor predictions."""
    return np.where(occurs > 0, np.divide(found, of, out=np.zeros_like(found), where=of > 0), np.nan)


def f1(predictions: Predictions, task: str, weights: np.ndarray) -> np.ndarray:
    """F1 of each class, (R, C)."""
    found, predicted, true = counts(predictions, task, weights)
    return rate(2 * found, predicted + true, predicted + true)


def by_class(values: np.ndarray, predictions: Predictions, task: str) -> dict[str, np.ndarray]:
    """(R, C) as the groups of a report by class."""
    return {f"class={name}": column for name, column in zip(predictions.vocabularies[task]["classes"], values.T, strict=True)}


def mean_defined(values: np.ndarray) -> np.ndarray:
    """Mean over the classes (the last axis) that are not NaN; NaN where none is."""
    defined = ~np.isnan(values)
    number = defined.sum(axis=-1)
    total = np.where(defined, values, 0).sum(axis=-1)
    return np.divide(total, number, out=np.full(total.shape, np.nan), where=number > 0)
