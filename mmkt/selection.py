"""What checkpoints are chosen by, on validation."""

from __future__ import annotations

from typing import NamedTuple

from mmkt.model import Model
from mmkt.parts import ConfigError, Parts
from mmkt.predictions import judges
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
