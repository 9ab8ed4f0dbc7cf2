"""The columns of one task as arrays, for the metrics."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mmkt.types import Predictions


def logits(predictions: Predictions, task: str) -> np.ndarray:
    """(n, C) float64."""
    column = predictions.table[f"{task}.logits"]
    return pc.list_flatten(column).to_numpy().astype(np.float64).reshape(len(column), -1)


def log_softmax(predictions: Predictions, task: str) -> np.ndarray:
    """Log-probabilities of a single choice, (n, C)."""
    x = logits(predictions, task)
    x -= x.max(axis=1, keepdims=True)
    return x - np.log(np.exp(x).sum(axis=1, keepdims=True))


def labels(predictions: Predictions, task: str) -> np.ndarray:
    """The true class of a single choice as its place in the vocabulary, (n,)."""
    return _places(predictions.table[f"{task}.label"], predictions, task)


def truth(predictions: Predictions, task: str) -> np.ndarray:
    """The true classes of a single choice or of a set of tags, (n, C) bool."""
    column = predictions.table[f"{task}.label"]
    hot = np.zeros((len(column), len(predictions.vocabularies[task]["classes"])), dtype=bool)
    if predictions.tasks[task] == "tag":
        hot[pc.list_parent_indices(column).to_numpy(), _places(pc.list_flatten(column), predictions, task)] = True
    else:
        hot[np.arange(len(column)), labels(predictions, task)] = True
    return hot


def guess(predictions: Predictions, task: str) -> np.ndarray:
    """The predicted classes, (n, C) bool: the largest logit of a choice, the tags of probability one half or more."""
    x = logits(predictions, task)
    return x >= 0 if predictions.tasks[task] == "tag" else x.argmax(axis=1)[:, None] == np.arange(x.shape[1])


def measured(predictions: Predictions, task: str) -> tuple[np.ndarray, np.ndarray]:
    """Labels and predictions of a regression, (n,) float64 each, in the label's units."""
    label, prediction = (predictions.table[f"{task}.{name}"].to_numpy().astype(np.float64) for name in ("label", "prediction"))
    return label, prediction


def sets(predictions: Predictions, task: str) -> list[list[Any]]:
    """The prediction sets, n lists of classes.

    Raises:
        ValueError: the model gives none.
    """
    name = f"{task}.set"
    if name not in predictions.table.column_names:
        raise ValueError(f"the predictions of {task} have no sets: mmkt calibrate CHECKPOINT fits them")
    return predictions.table[name].to_pylist()


def average(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Weighted means of ``values`` (n,) under each of ``weights`` (R, n): (R,)."""
    return weights @ values / weights.sum(axis=1)


def _places(names: pa.ChunkedArray, predictions: Predictions, task: str) -> np.ndarray:
    classes = predictions.vocabularies[task]["classes"]
    places = pc.index_in(names, value_set=pa.array(classes).cast(names.type))
    if places.null_count:
        unknown = pc.unique(names.filter(pc.is_null(places))).to_pylist()
        raise ValueError(f"{task}.label holds {unknown[:5]}, which the vocabulary does not have; its classes are {classes[:20]}")
    return places.to_numpy()
