"""What checkpoints are chosen by, on validation."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from accelerate import Accelerator

from mmkt import distributed, probes
from mmkt.experiment import Train
from mmkt.feed import Feed
from mmkt.learner import Learner
from mmkt.model import Model
from mmkt.parts import ConfigError, Parts
from mmkt.predictions import judges, mean_loss, predict
from mmkt.score import About, score
from mmkt.types import Metric, Predictions


class Judge(NamedTuple):
    """One metric of one task."""

    task: str
    name: str
    metric: Metric


def judge_of(model: Model, select: str | None) -> Judge | None:
    """What ``train.select`` names, by default the first head's first metric; None for the loss.

    Raises:
        ConfigError: there is no such task or metric.
    """
    if select is None and model.heads:
        task, head = next(iter(model.heads.items()))
        select = f"{task}/{head.metrics[0]}"
    if select is None or select == "loss":
        return None
    known = {f"{task}/{name}": Judge(task, name, m) for task, pairs in judges(model, {}, Parts()).items() for name, m in pairs}
    if select not in known:
        raise ConfigError([("train.select", f"there is no {select!r}; allowed: {', '.join(['loss', *known])}")])
    return known[select]


def judged(predictions: Predictions, judge: Judge) -> float:
    """The figure over all rows."""
    rows = score(predictions, {judge.task: [(judge.name, judge.metric)]}, about=About(), resamples=0)
    return next(row.value for row in rows if row.group == "all")


class Measured(NamedTuple):
    """What a checkpoint is worth."""

    name: str
    value: float
    higher: bool  # … is better
    probed: dict[str, float]  # beside it, on rank 0: see ``probes``, and what objectives watch


def measured(learner: Learner, feed: Feed, rows: np.ndarray, accelerator: Accelerator, train: Train) -> Measured:
    """A learner on validation, by what ``train.select`` says; all processes take part.

    Args:
        learner: on its device.
        feed: its rows.
        rows: numbers of those that validate.
        accelerator: device and precision.
        train: the loop's settings.

    Raises:
        ConfigError: ``train.select`` names what there is not.
    """
    model, device, autocast = learner.model, accelerator.device, accelerator.autocast
    judge = judge_of(model, train.select)
    watched = {
        f"{figure}/{name}": value
        for name, objective in learner.parts()
        for figure, value in objective.watched(learner, feed, rows).items()
    }
    if judge is None:
        return Measured("loss", mean_loss(learner, feed, rows, device, autocast), higher=False, probed=watched)
    wanted = train.probes and bool(probes.tasks(model))
    predictions = predict(model, feed, rows, device=device, autocast=autocast, vectors=wanted)
    probed = probes.measure(model, feed, predictions) if wanted and distributed.rank() == 0 else {}
    name = f"{judge.task}/{judge.name}"
    return Measured(name, judged(predictions, judge), judge.metric.higher_is_better, watched | probed)
