"""From predictions and metrics to rows: each figure with its bootstrap interval, overall and by domain and group."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
import pyarrow.compute as pc

from mmkt.parts import Parts, nearest
from mmkt.types import Metric, Predictions, Row

CELLS = 1_000_000  # weights drawn at once: 8 MB an array


class About(NamedTuple):
    """What a set of rows has in common (see ``Row``)."""

    run: str = ""
    study: str = ""
    seed: int = 0
    split: str = ""
    modalities: str = ""
    condition: str = "clean"

    def row(
        self, task: str, metric: str, value: float, n: int, low: float = math.nan, high: float = math.nan, group: str = "all"
    ) -> Row:
        """A figure of it."""
        about = self.run, self.study, self.seed, self.split, task, self.modalities, self.condition
        return Row(*about, metric, group, float(value), n, low, high)


def score(
    predictions: Predictions,
    metrics: Mapping[str, Sequence[tuple[str, Metric]]],
    *,
    about: About,
    resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
    cluster: str | None = None,
) -> list[Row]:
    """Every metric of every task over its labelled rows, then by domain and by group where there are two or more.

    The interval is the percentile bootstrap over rows (Efron, 1979). Resamples in which a metric is undefined are left
    out of it; it is NaN where nothing can be resampled: a single row (or cluster), ``resamples=0``, a metric without
    intervals. A report by class is made overall, not by domain and group; rows without a domain (or group) count in
    "all" alone.

    Args:
        predictions: a model's answers.
        metrics: by task, each metric with the name its rows carry.
        about: what the rows have in common.
        resamples: how many bootstrap draws; 0 for none.
        level: coverage of the interval.
        seed: of the bootstrap. Equal row counts get equal draws, so runs over the same rows are resampled alike.
        cluster: a column of the table whose groups of rows are resampled whole (a speaker, a patient).

    Raises:
        ValueError: a task that is unknown or has no labelled row, a metric that cannot judge a task's head, a cluster
            column that is missing or has empty cells.
    """
    rows = []
    for task, judges in metrics.items():
        known = labelled(predictions, task)
        _refuse_other_heads(predictions.tasks[task], task, judges)
        for where, part in [("all", known), *_slices(known)]:
            figures = _figures(part, task, judges, draws(_units(part, cluster), resamples, seed))
            for (metric, group), (value, drawn) in figures.items():
                if "all" in (where, group):
                    place = where if group == "all" else group
                    rows.append(about.row(task, metric, value, part.table.num_rows, *interval(drawn, level), group=place))
    return rows


def resampled(predictions: Predictions, task: str, metric: Metric, resamples: int, seed: int = 0) -> np.ndarray:
    """A metric's value over all labelled rows, then over ``resamples`` draws of them: (1 + resamples,).

    Equally many rows get equal draws, so differences of two of these are paired by row.

    Raises:
        ValueError: as ``score``.
    """
    return resampled_alike([predictions], task, metric, resamples, seed)[0]


def resampled_alike(many: Sequence[Predictions], task: str, metric: Metric, resamples: int, seed: int = 0) -> np.ndarray:
    """As ``resampled``, of several answers to the same rows, whose draws are made once for all: (len(many), 1 + resamples).

    Raises:
        ValueError: as ``score``.
    """
    parts = [labelled(predictions, task) for predictions in many]
    n = parts[0].table.num_rows
    values = [
        np.stack([metric(part, task, weights)["all"] for part in parts])
        for weights in chain([np.ones((1, n))], draws(np.arange(n), resamples, seed))
    ]
    return np.concatenate(values, axis=1)


def leading(judges: Mapping[str, Sequence[tuple[str, Metric]]]) -> Iterator[tuple[str, str, Metric]]:
    """Of every task its first metric that gives one figure and can be resampled, with its name: task, name, metric."""
    for task, metrics in judges.items():
        for name, metric in metrics:
            if metric.resamples and metric.overall:
                yield task, name, metric
                break


def metric_of(word: str | None, tasks: Mapping[str, str], parts: Parts) -> tuple[str, str, type[Metric]]:
    """``task/metric`` as the task, the metric's name and its class; by default the first task's, its head's first.

    Args:
        word: ``task/metric``, or a task alone.
        tasks: task → the name of its head.
        parts: where they are looked up.

    Raises:
        ValueError: there is no such task, or no such metric that judges its head by one figure that can be resampled.
    """
    task, _, name = (word or next(iter(tasks))).partition("/")
    if task not in tasks:
        raise ValueError(f"there is no task {task!r}{nearest(task, tasks)}; allowed: {', '.join(tasks)}")
    head: Any = parts.find("heads", tasks[task])
    every: dict[str, Any] = {known: parts.find("metrics", known) for known in parts.files("metrics")}
    known = [other for other, cls in every.items() if tasks[task] in cls.heads and cls.resamples and cls.overall]
    name = name or head.metrics[0]
    if name not in known:
        raise ValueError(f"{name!r} does not judge {task}{nearest(name, known)}; allowed: {', '.join(known)}")
    return task, name, every[name]


def spread(values: Sequence[float], level: float = 0.95) -> tuple[float, float, float, float]:
    """Mean, standard deviation, and the ends of the mean's interval by Student's t; NaN where one value leaves none.

    Args:
        values: a figure a seed or fold. Folds share training rows, so theirs is an approximation (Bengio and
            Grandvalet, 2004: no unbiased estimate exists).
        level: coverage of the interval.
    """
    from scipy import stats

    n, mean = len(values), float(np.mean(values))
    if n < 2:
        return mean, np.nan, np.nan, np.nan
    deviation = float(np.std(values, ddof=1))
    half = float(stats.t.ppf((1 + level) / 2, n - 1)) * deviation / n**0.5
    return mean, deviation, mean - half, mean + half


def draws(units: np.ndarray, resamples: int, seed: int) -> Iterator[np.ndarray]:
    """Bootstrap weights of n rows, some resamples at a time, (r, n) each.

    Args:
        units: (n,) long, which unit each row belongs to, numbered from 0; units are drawn, with replacement, as many as
            there are. ``arange(n)`` draws rows. A single unit has no draws.
        resamples: how many in all.
        seed: with the number of units it fixes the draws, whatever the machine.
    """
    n = int(units.max()) + 1
    # Integers rather than a multinomial: no floating point, so the same on every machine, and much faster.
    generator = np.random.default_rng([seed, n])
    step = max(1, CELLS // max(n, len(units)))
    for i in range(0, resamples if n > 1 else 0, step):
        r = min(step, resamples - i)
        picked = generator.integers(n, size=(r, n)) + n * np.arange(r)[:, None]
        yield np.bincount(picked.ravel(), minlength=r * n).reshape(r, n)[:, units].astype(np.float64)


def shares(parts: Sequence[tuple[np.ndarray, np.ndarray]], resamples: int) -> list[tuple[float, float, float]]:
    """How many of some of n rows are among others: each share, and its interval by the bootstrap over all n rows.

    Args:
        parts: (n,) bool each, which rows count, and among which; draws are the same for all, so that shares are paired.
        resamples: how many bootstrap draws; 0 for none.

    Returns:
        Value, low and high; NaN where there is no row to be among.
    """
    hits, among = (np.stack(x, 1) for x in zip(*((of & rows, rows) for of, rows in parts), strict=True))  # (n, K) each
    n = len(hits)
    counted = [(w @ hits, w @ among) for w in chain([np.ones((1, n))], draws(np.arange(n), resamples, 0))]
    some, every = (np.concatenate(x) for x in zip(*counted, strict=True))  # (1 + R, K) each
    values = np.divide(some, every, out=np.full(every.shape, np.nan), where=every > 0)
    return [(float(x[0]), *interval(x[1:])) for x in values.T]


def labelled(predictions: Predictions, task: str) -> Predictions:
    """The rows that have a label for a task.

    Raises:
        ValueError: there is no such task, or no such row.
    """
    if task not in predictions.tasks:
        raise ValueError(f"no task {task!r} in the predictions; there are: {', '.join(predictions.tasks)}")
    table = predictions.table.filter(pc.is_valid(predictions.table[f"{task}.label"]))
    if not table.num_rows:
        count = predictions.table.num_rows
        raise ValueError(f"column '{task}.label' is empty in all {count} rows: task {task!r} has nothing to score")
    return predictions._replace(table=table)


def _refuse_other_heads(head: str, task: str, judges: Sequence[tuple[str, Metric]]) -> None:
    for name, metric in judges:
        if head not in metric.heads:
            raise ValueError(f"metric {name!r} judges {' and '.join(metric.heads)}, but task {task!r} has a {head} head")


def _slices(predictions: Predictions) -> Iterator[tuple[str, Predictions]]:
    """The rows of each domain and each group, where there are at least two; in the order of their names."""
    for column in ("domain", "group"):
        values = predictions.table[column]
        names = sorted(pc.unique(values.drop_null()).to_pylist())
        for name in names if len(names) > 1 else ():
            yield f"{column}={name}", predictions._replace(table=predictions.table.filter(pc.equal(values, name)))


def _units(predictions: Predictions, cluster: str | None) -> np.ndarray:
    """Which unit of resampling each row belongs to, (n,), numbered from 0."""
    table = predictions.table
    if cluster is None:
        return np.arange(table.num_rows)
    if cluster not in table.column_names:
        raise ValueError(f"no column {cluster!r} to resample by; there are: {', '.join(table.column_names)}")
    if empty := table[cluster].null_count:
        raise ValueError(f"column {cluster!r} is empty in {empty} of {table.num_rows} rows; to resample by it, all must have it")
    return table[cluster].combine_chunks().dictionary_encode().indices.to_numpy()


def _figures(
    predictions: Predictions, task: str, judges: Sequence[tuple[str, Metric]], weights: Iterator[np.ndarray]
) -> dict[tuple[str, str], tuple[float, np.ndarray]]:
    """By (metric, group), the value and its resamples (none for a metric without intervals)."""
    drawn = defaultdict(list)
    for some in weights:
        for name, metric in judges:
            if metric.resamples:
                for group, values in metric(predictions, task, some).items():
                    drawn[name, group].append(values)
    plain = np.ones((1, predictions.table.num_rows))
    return {
        (name, group): (float(values[0]), np.concatenate([np.empty(0), *drawn[name, group]]))
        for name, metric in judges
        for group, values in metric(predictions, task, plain).items()
    }


def interval(drawn: np.ndarray, level: float = 0.95) -> tuple[float, float]:
    """Percentiles of what is defined; NaN where nothing is."""
    defined = drawn[~np.isnan(drawn)]
    if not len(defined):
        return np.nan, np.nan
    low, high = np.quantile(defined, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
