"""Checkpoints compared on the same rows: is one better than another there, or could the rows have said the opposite?"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console
from rich.text import Text

from mmkt import report
from mmkt.parts import ConfigError, Parts
from mmkt.robustness import JOINT, Condition, curves, families, relative
from mmkt.score import interval, labelled, metric_of, resampled
from mmkt.statistics import holm, mcnemar, permutation_test
from mmkt.stored import load, load_corrupted
from mmkt.types import Metric, Predictions

NOTE = (
    "Intervals: paired bootstrap over rows; p: in each row the two answers change places by a coin; both p corrected over all "
    "comparisons (Holm). It is about these weights, on rows like these: whether a method is better, other seeds have to say."
)
CHOICES = ("classify", "tag")  # heads whose answers are right or wrong


class Comparison(NamedTuple):
    """Of one checkpoint with the first, by one metric of one task."""

    task: str
    metric: str
    name: str
    n: int
    first: float
    other: float
    difference: float  # positive where the other is better
    low: float  # its 95 % interval: paired bootstrap over rows
    high: float
    p: float  # of the permutation test (``statistics.permutation_test``), corrected over all comparisons (Holm)
    only_first: int | None  # rows that the first alone answers right; None of numbers
    only_other: int | None
    mcnemar: float  # the p of McNemar's exact test, corrected likewise; NaN of numbers


def compare(
    paths: Sequence[str],
    *,
    split: str = "test",
    metrics: Sequence[str] = (),
    resamples: int = 10_000,
    plugins: Sequence[str] = (),
) -> list[Comparison]:
    """Every checkpoint with the first one, on the rows that all were evaluated on.

    It is about these very weights and rows like these. Whether a *method* is better, another seed may answer differently: a
    test over rows alone says so far too often.

    Args:
        paths: two or more: a run, a checkpoint or an evaluation's folder.
        split: of the evaluations, where a folder holds several.
        metrics: ``task/metric``; by default each task's first one.
        resamples: of the bootstrap and of the exchanges.
        plugins: folders or packages that metrics may come from.

    Raises:
        ConfigError: too few, no evaluation, other rows or labels, a metric that can't judge.
    """
    if resamples < 1:
        raise ConfigError(f"--resamples is 1 or more, such as 10000, found {resamples}")
    if len(paths) < 2:
        raise ConfigError(f"give two or more to compare, found {len(paths)}")
    names, found = _names(paths), [load(Path(path), split) for path in paths]
    for path, other in zip(paths[1:], found[1:]):
        _refuse_other(paths[0], found[0], path, other)
    lines = []
    for task, kind, metric in _judges(found[0].tasks, metrics, Parts(plugins)):
        first, *others = [labelled(some, task) for some in found]
        base = resampled(first, task, metric, resamples)
        for name, other in zip(names[1:], others):
            values = resampled(other, task, metric, resamples)
            gain = values - base if metric.higher_is_better else base - values
            p, right = permutation_test(first, other, task, metric, resamples), [_right(some, task) for some in (first, other)]
            alone = mcnemar(*right) if first.tasks[task] in CHOICES else (None, None, math.nan)
            figures = float(base[0]), float(values[0]), float(gain[0]), *interval(gain[1:])
            lines.append(Comparison(task, kind, name, first.table.num_rows, *figures, p, *alone))
    corrected = [holm(column) for column in ([line.p for line in lines], [line.mcnemar for line in lines])]
    return [line._replace(p=p, mcnemar=q) for line, p, q in zip(lines, *corrected)]


class Robustness(NamedTuple):
    """Of one checkpoint beside the first, under a corruption, a modality's, or all at once."""

    task: str
    metric: str
    name: str
    condition: str  # a family of ``robustness.families``
    n: int
    first: float  # relative robustness: the share of the clean figure that is left
    other: float
    effective: float  # positive where the other keeps more than the first's loss would have left it
    low: float  # its 95 % interval: paired bootstrap over rows
    high: float


def robustness(
    paths: Sequence[str],
    *,
    split: str = "test",
    metrics: Sequence[str] = (),
    resamples: int = 10_000,
    plugins: Sequence[str] = (),
) -> list[Robustness]:
    """Effective robustness (Taori et al., 2020) beside the first checkpoint, under the conditions that all were evaluated under.

    What a model reaches under corruption beyond what its clean figure lets expect. With one model to learn that from, the first,
    the expectation is to lose as much as it does: (worse − clean) of the other − (worse − clean) of the first.

    Args:
        paths: as ``compare`` takes them.
        split: of the evaluations.
        metrics: ``task/metric``; by default each task's first one.
        resamples: of the bootstrap over rows, which all share.
        plugins: folders or packages that metrics may come from.

    Returns:
        Nothing where one was not evaluated under corruption.
    """
    clean, worse = [load(Path(path), split) for path in paths], [load_corrupted(Path(path), split) for path in paths]
    shared = [name for name in worse[0] if all(name in some for some in worse)]
    if len({frozenset(Condition.of(name).family for name in some) for some in worse}) > 1:
        shared = [
            name for name in shared if Condition.of(name).modality != JOINT
        ]  # drawn from other corruptions, it is another condition
    found = []
    for task, kind, metric in _judges(clean[0].tasks, metrics, Parts(plugins)) if shared else ():
        sign, higher = 1 if metric.higher_is_better else -1, metric.higher_is_better
        figures = []
        for whole, some in zip(clean, worse):
            base, values = curves(whole, {name: some[name] for name in shared}, task, metric, resamples)
            figures.append((base, families(values)))
        n = labelled(clean[0], task).table.num_rows
        base, own = figures[0]
        for name, (other, theirs) in zip(_names(paths)[1:], figures[1:]):
            for condition, under in own.items():
                first, keeps = relative(base, under, higher), relative(other, theirs[condition], higher)
                gain = sign * ((theirs[condition] - other) - (under - base))
                shares = float(first[0]), float(keeps[0])
                found.append(Robustness(task, kind, name, condition, n, *shares, float(gain[0]), *interval(gain[1:])))
    return found


def _names(paths: Sequence[str]) -> list[str]:
    """What sets the paths apart."""
    parts = [[x for x in Path(path).parts if x != "best" and not x.startswith("evaluation-")] or ["."] for path in paths]
    depth = next((d for d in range(1, 10) if len({tuple(x[-d:]) for x in parts}) == len(paths)), 10)
    return ["/".join(x[-depth:]) for x in parts]


def _refuse_other(path: str, one: Predictions, other_path: str, two: Predictions) -> None:
    """Refuse predictions that are not of the same rows and tasks."""
    both = f"{path} and {other_path}"
    if one.tasks != two.tasks:
        raise ConfigError(f"{both} answer other tasks: {_words(one.tasks)}; {_words(two.tasks)}")
    ids, others = (some.table["id"].to_pylist() for some in (one, two))
    if ids != others:
        shared = len(set(ids) & set(others))
        raise ConfigError(
            f"{both} were not evaluated on the same rows: {len(ids)} and {len(others)}, of which {shared} have the same id. "
            "Evaluate both on one manifest and split: mmkt evaluate PATH data.manifest=FILE"
        )
    for task in one.tasks:
        if one.vocabularies[task].get("classes") != two.vocabularies[task].get("classes"):
            raise ConfigError(f"{both} have other classes of {task}, so their answers do not mean the same: train one again")
        if not one.table[f"{task}.label"].equals(two.table[f"{task}.label"]):
            raise ConfigError(f"{both} have other labels of {task} in the same rows: evaluate both on one manifest")


def _words(tasks: Mapping[str, str]) -> str:
    return ", ".join(f"{task} ({head})" for task, head in tasks.items()) or "none"


def _judges(tasks: Mapping[str, str], wanted: Sequence[str], parts: Parts) -> list[tuple[str, str, Metric]]:
    if not tasks:
        raise ConfigError("they answer no task, so there is nothing to compare: train them with a head")
    try:
        found = [metric_of(word, tasks, parts) for word in wanted or tasks]
    except ValueError as error:
        raise ConfigError(f"--metric: {error}") from error
    return [(task, name, kind()) for task, name, kind in found]


def _right(found: Predictions, task: str) -> np.ndarray:
    """Which rows are answered right, (n,); of tags, with exactly the right set."""
    label, answer = (found.table[f"{task}.{name}"].to_pylist() for name in ("label", "prediction"))
    if found.tasks[task] == "tag":
        label, answer = ([frozenset(x) for x in column] for column in (label, answer))
    return np.array([x == y for x, y in zip(label, answer)])


def as_json(lines: Sequence[Comparison], first: str, robust: Sequence[Robustness] = ()) -> dict[str, Any]:
    """``{"first": …, "comparisons": [...], "robustness": [...]}``."""
    found = {"first": first, "comparisons": [report.record(line) for line in lines]}
    return found | {"robustness": [report.record(line) for line in robust]}


def show(lines: Sequence[Comparison], first: str, console: Console, robust: Sequence[Robustness] = ()) -> None:
    """Print a table a task and metric, and one of their robustness."""
    for task, metric in dict.fromkeys((line.task, line.metric) for line in lines):
        own = [line for line in lines if (line.task, line.metric) == (task, metric)]
        numbers = {
            metric: [f"{line.other:.3f}" for line in own],
            "better by": [f"{line.difference:+.3f} [{line.low:+.3f}, {line.high:+.3f}]" for line in own],
            "p": [f"{line.p:.2g}" for line in own],
        }
        if own[0].only_first is not None:
            numbers["right alone"] = [f"{line.only_other} to {line.only_first}" for line in own]
            numbers["McNemar p"] = [f"{line.mcnemar:.2g}" for line in own]
        title = f"{task}: {metric}, against {first} with {own[0].first:.3f} (n = {own[0].n})"
        report.show([report.sheet(title, {"model": [line.name for line in own]}, numbers)], console)
    for task, metric in dict.fromkeys((line.task, line.metric) for line in robust):
        some = [line for line in robust if (line.task, line.metric) == (task, metric)]
        names = {"under": [line.condition for line in some], "model": [line.name for line in some]}
        figures = {
            "first keeps": [f"{line.first:.3f}" for line in some],
            "keeps": [f"{line.other:.3f}" for line in some],
            "effective": [f"{line.effective:+.3f} [{line.low:+.3f}, {line.high:+.3f}]" for line in some],
        }
        report.show([report.sheet(f"{task}: {metric} under corruption, beside {first}", names, figures)], console)
    console.print(Text(NOTE))
