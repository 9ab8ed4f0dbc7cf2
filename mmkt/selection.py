"""What checkpoints are chosen by, on validation."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from accelerate import Accelerator

from mmkt import distributed, probes
from mmkt.experiment import Train
from mmkt.feed import Feed
from mmkt.learner import Learner
from mmkt.model import Model
from mmkt.parts import ConfigError, Parts, nearest
from mmkt.predictions import judges, mean_loss, predict
from mmkt.score import About, score
from mmkt.types import Metric, Objective, Phase, Predictions


class Judge(NamedTuple):
    """One metric of one task."""

    task: str
    name: str
    metric: Metric


def judge_of(model: Model, select: str | None, where: str = "train.select", others: Sequence[str] = ()) -> Judge | None:
    """The metric of a task that is named, by default the first head's first one; None for the loss.

    Args:
        model: whose tasks.
        select: ``task/metric`` or ``loss``.
        where: it is named, for the error.
        others: what may be named there and is measured elsewhere, for the error.

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
        allowed = ["loss", *known, *others]
        raise ConfigError([(where, f"there is no {select!r}{nearest(select, allowed)}; allowed: {', '.join(allowed)}")])
    return known[select]


def watching(objectives: Iterable[tuple[str, Objective]]) -> dict[str, str]:
    """Figures that objectives watch and checkpoints may be chosen by, each with the name of the objective."""
    return {f"{figure}/{name}": name for name, objective in objectives for figure in objective.selects}


def refuse(learner: Learner, plan: Sequence[Phase], select: str | None) -> None:
    """Refuse what nothing measures, before training begins.

    Raises:
        ConfigError: so it is, in some phase.
    """
    by = watching((name, objective) for name, objective in learner.objectives.items())
    if select not in by:
        judge_of(learner.model, select, others=list(by))
        return
    for phase in plan:
        if phase.objectives is not None and by[select] not in phase.objectives:
            words = f"the phase {phase.name!r} is without {by[select]}, which watches {select}: choose by task/metric, or by loss"
            raise ConfigError([("train.select", words)])


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
        ConfigError: ``train.select`` names what cannot be measured on these rows.
    """
    parts, select = learner.parts(), train.select
    watched = {f"{figure}/{n}": x for n, objective in parts for figure, x in objective.watched(learner, feed, rows).items()}
    if select not in watching(parts):
        found = _answered(learner, feed, rows, accelerator, select, train.probes)
        return found._replace(probed=watched | found.probed)
    if select not in watched:
        words = f"{select} is not known: no row that validates has a label and what is attacked; choose by task/metric or loss"
        raise ConfigError([("train.select", words)])
    found = _answered(learner, feed, rows, accelerator, None, train.probes)
    beside = watched | {f"validation/{found.name}": found.value} | found.probed
    return Measured(select, beside.pop(select), higher=True, probed=beside)


def _answered(
    learner: Learner, feed: Feed, rows: np.ndarray, accelerator: Accelerator, select: str | None, probing: bool
) -> Measured:
    """By a metric of a task, or by the loss."""
    model, device, autocast = learner.model, accelerator.device, accelerator.autocast
    judge = judge_of(model, select)
    if judge is None:
        return Measured("loss", mean_loss(learner, feed, rows, device, autocast), higher=False, probed={})
    wanted = probing and bool(probes.tasks(model))
    predictions = predict(model, feed, rows, device=device, autocast=autocast, vectors=wanted)
    probed = probes.measure(model, feed, predictions) if wanted and distributed.rank() == 0 else {}
    return Measured(f"{judge.task}/{judge.name}", judged(predictions, judge), judge.metric.higher_is_better, probed)
