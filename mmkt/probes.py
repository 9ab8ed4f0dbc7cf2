"""How much of the answer lies in each modality's vectors by itself: a linear probe of every modality, at each evaluation."""

from __future__ import annotations

import numpy as np
import torch

from mmkt.feed import Feed
from mmkt.few_shot import Vectors, accuracy, ridge
from mmkt.model import Model
from mmkt.types import Predictions
from mmkt.vectors import unit_vectors

PENALTY = 0.1  # on the squares of the probe's weights; vectors have length 1
FEWEST = 4  # rows that a probe is made of


def tasks(model: Model) -> list[str]:
    """The tasks whose modalities are probed: classifications, where there are two modalities or more to tell apart."""
    if len(model.modalities) < 2:
        return []
    return [task for task, head in model.heads.items() if type(head).__name__.lower() == "classify"]


def measure(model: Model, feed: Feed, predictions: Predictions) -> dict[str, float]:
    """Accuracy of a ridge classifier on each modality's vectors in the shared space, ``probe/TASK/MODALITY``.

    Half of the labelled rows that have the modality fit it, the others test it; which half a row is in is drawn with a fixed
    seed, so every evaluation of a training splits them alike. The probe is thrown away: training learns nothing of it.

    Args:
        model: whose heads say the tasks.
        feed: whose labels are meant.
        predictions: of some rows, with their vectors.

    Returns:
        NaN where vectors are not finite; without modalities that fewer than four labelled rows have.
    """
    rows, found = torch.tensor(predictions.table["row"].to_numpy()), {}
    for task in tasks(model):
        y, labelled = (x[rows] for x in feed.labels[task])
        for m in model.modalities:
            there = labelled & torch.tensor(predictions.table[f"has.{m}"].to_numpy())
            if there.sum() >= FEWEST:
                classes = model.heads[task].outputs(model.heads[task].vocabulary)
                found[f"probe/{task}/{m}"] = _probed(predictions, m, there, y, classes)
    return found


def _probed(predictions: Predictions, m: str, there: torch.Tensor, y: torch.Tensor, classes: int) -> float:
    """One probe's accuracy."""
    try:
        x = unit_vectors(predictions, m)[there]
    except ValueError:
        return float("nan")
    order = torch.from_numpy(np.random.default_rng(0).permutation(len(x)))
    fitted, tested = order[: len(x) // 2], order[len(x) // 2 :]
    labels = y[there]
    scores = ridge(Vectors(x[fitted], labels[fitted]), x[tested], classes, penalty=PENALTY)
    return accuracy(scores, labels[tested])
