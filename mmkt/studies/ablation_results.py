"""An ablation's figures: lines, differences from the baseline, ranks over several data sets, costs."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mmkt import report
from mmkt.checkpoint import settle
from mmkt.ensemble import averaged
from mmkt.parts import ConfigError
from mmkt.ranks import Friedman, friedman, nemenyi, win_rates
from mmkt.score import resampled_alike, spread
from mmkt.statistics import Difference, difference, holm
from mmkt.stored import load
from mmkt.studies.ablation import Ablation
from mmkt.studies.ablation_cells import Cell, Key, Task
from mmkt.studies.costs import Cost, noted
from mmkt.studies.encoders import origin
from mmkt.types import Predictions


class Line(NamedTuple):
    """A cell, or an ensemble of cells, over its seeds."""

    cell: Cell
    lr: float  # NaN of an ensemble
    edge: bool  # the rate is the lowest or the highest of several: the best one may lie beyond
    values: list[float]  # on test, by seed
    mean: float
    deviation: float
    low: float  # the mean's 95 % interval over seeds
    high: float
    validation: dict[float, list[float]]  # by rate, of each seed
    curve: dict[int, float]  # validation by step, the mean over seeds
    subsets: dict[str, float]  # by subset of the modalities, the mean over seeds
    cost: Cost | None
    against: Difference | None  # from the baseline
    p: float  # corrected (Holm) over the comparisons of its task

    @property
    def verdict(self) -> str:
        """Against the baseline; empty for the baseline itself, or where no verdicts are asked for."""
        return "" if self.against is None else self.against.verdict(self.p)


class Ranks(NamedTuple):
    """Over several tasks."""

    labels: list[str]
    tasks: list[Task]
    values: np.ndarray  # (tasks, labels), the mean over seeds
    friedman: Friedman
    distance: float  # Nemenyi's critical difference of mean ranks
    wins: np.ndarray  # (labels, labels), the share of tasks on which the first is better


class Results(NamedTuple):
    """Of what has ended."""

    study: Ablation
    lines: dict[Task, list[Line]]  # best first
    ranks: Ranks | None
    origins: dict[str, dict[str, str]]  # by data set, by modality: where encoders come from
    tried: int  # trainings whose validation figures were compared
    failed: list[Key]
    unfinished: list[Cell]


def gather(study: Ablation) -> Results:
    """Read every cell whose seeds have ended on test."""
    finals = {cell: keys for cell in study.cells if (keys := study.finals(cell)) and all(map(study.tested, keys))}
    costs = noted(Path(study.study.run))
    lines = {task: found for task in study.tasks if (found := _lines(study, task, finals, costs))}
    every = [key for cell in study.cells for key in study.sweep(cell)]
    failed = [key for key in every if (study.folder(key) / "failed.json").is_file()]
    unfinished = [cell for cell in study.cells if cell not in finals]
    origins = {data: origin(study.study, data) for data in study.study.data or {"": []}}
    return Results(study, lines, _ranks(study, lines), origins, sum(map(study.ended, every)), failed, unfinished)


def _lines(study: Ablation, task: Task, finals: dict[Cell, list[Key]], costs: dict[str, Cost]) -> list[Line]:
    answers = {cell: [load(study.folder(key), study.test) for key in keys] for cell, keys in finals.items() if cell.task == task}
    for name, members in study.study.ensembles.items():
        cells = [Cell(task, label) for label in members]
        if all(cell in answers for cell in cells):
            answers[Cell(task, name)] = [
                averaged([answers[cell][k] for cell in cells], [study.config(finals[cell][k]) for cell in cells])
                for k in range(len(study.study.seeds))
            ]
    if not answers:
        return []
    values = _values(study, answers)
    base = values.get(Cell(task, study.baseline))
    sign = 1 if study.higher else -1
    against = {
        cell: difference(sign * (own - base))
        for cell, own in values.items()
        if base is not None and cell.label != study.baseline and study.study.intervals
    }
    p = dict(zip(against, holm([d.p if d.seeds >= 5 else math.nan for d in against.values()])))
    found = [
        _line(study, cell, values[cell][:, 0].tolist(), finals.get(cell), costs.get(str(cell)), against.get(cell), p.get(cell))
        for cell in answers
    ]
    return sorted(found, key=lambda line: -sign * line.mean)


def _values(study: Ablation, answers: dict[Cell, list[Predictions]]) -> dict[Cell, np.ndarray]:
    """By cell (S, 1 + R): every seed's value over all test rows, then over resamples of them, the same for all."""
    metric: Any = study.parts.find("metrics", study.metric)()
    many = [one for some in answers.values() for one in some]
    if any(one.table["id"] != many[0].table["id"] for one in many):
        raise ConfigError(
            [("data", f"the runs in {study.study.run} were tested on different rows: delete it, or give run=OTHER")]
        )
    drawn = resampled_alike(many, study.task, metric, study.study.resamples)
    found, place = {}, 0
    for cell, some in answers.items():
        found[cell] = drawn[place : place + len(some)]
        place += len(some)
    return found


def _line(
    study: Ablation,
    cell: Cell,
    values: list[float],
    keys: Sequence[Key] | None,
    cost: Cost | None,
    against: Difference | None,
    p: float | None,
) -> Line:
    shown = spread(values) if study.study.intervals else (float(np.mean(values)), math.nan, math.nan, math.nan)
    rest: Any = (cost, against, math.nan if p is None else p)
    if keys is None:
        return Line(cell, math.nan, False, values, *shown, {}, {}, {}, *rest)
    rates = study.rates(cell)
    edge = len(rates) > 1 and keys[0].lr in (rates[0], rates[-1])
    curves = [_curve(study, key) for key in keys]
    steps = sorted(set.intersection(*(set(curve) for curve in curves)))
    curve = {step: float(np.mean([curve[step] for curve in curves])) for step in steps}
    return Line(cell, keys[0].lr, edge, values, *shown, study.scores(cell), curve, _subsets(study, keys), *rest)


def _curve(study: Ablation, key: Key) -> dict[int, float]:
    name, found = f"validation/{study.task}/{study.metric}", {}
    for text in (study.folder(key) / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
        line = json.loads(text)
        if name in line:
            found[line["step"]] = line[name]
    return found


def _subsets(study: Ablation, keys: Sequence[Key]) -> dict[str, float]:
    found: dict[str, list[float]] = {}
    for key in keys:
        file = settle(study.folder(key) / "best") / f"evaluation-{study.test}" / "subsets.jsonl"
        for row in report.read(file) if file.is_file() else ():
            if (row.task, row.metric, row.group) == (study.task, study.metric, "all"):
                found.setdefault(row.modalities, []).append(row.value)
    return {name: float(np.mean(values)) for name, values in found.items() if len(values) == len(keys)}


def _ranks(study: Ablation, lines: dict[Task, list[Line]]) -> Ranks | None:
    """Where there are two tasks or more, on which the same two labels or more have ended."""
    tasks = list(lines)
    means = {task: {line.cell.label: line.mean for line in some} for task, some in lines.items()}
    labels = [label for label in [*study.labels, *study.study.ensembles] if all(label in means[task] for task in tasks)]
    if len(tasks) < 2 or len(labels) < 2:
        return None
    values = np.array([[means[task][label] for label in labels] for task in tasks])
    found = friedman(values, study.higher)
    return Ranks(labels, tasks, values, found, nemenyi(len(labels), len(tasks)), win_rates(values, study.higher))


def pareto(lines: Sequence[Line]) -> list[Line]:
    """Lines that none beats in quality and time of a step at once; ``lines`` are sorted, best first."""
    found: list[Line] = []
    for line in lines:
        if line.cost and (not found or line.cost.step < found[-1].cost.step):  # type: ignore[union-attr]
            found.append(line)
    return found
