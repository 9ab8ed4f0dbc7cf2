"""What a model reaches when its inputs get worse: one modality at a time, and all of them at once."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from mmkt import report
from mmkt.data.rows import Change
from mmkt.parts import ConfigError, Parts
from mmkt.report import Sheet
from mmkt.score import About, interval, leading, resampled_alike
from mmkt.types import Corruption, Metric, Predictions, Row

JOINT = "joint"


class Condition(NamedTuple):
    """``image.jpeg@3``; ``joint@3``."""

    modality: str  # ``joint`` for all of them
    corruption: str  # "" where each row has its own
    severity: int

    def __str__(self) -> str:
        return f"{self.family}@{self.severity}"

    @property
    def family(self) -> str:
        """Without its severity."""
        return f"{self.modality}.{self.corruption}" if self.corruption else self.modality

    @classmethod
    def of(cls, words: str) -> Condition:
        """From its name."""
        family, _, severity = words.rpartition("@")
        modality, _, corruption = family.partition(".")
        return cls(modality, corruption, int(severity))


def plan(
    kinds: Mapping[str, str], wanted: bool | Sequence[str], severities: Sequence[int], parts: Parts
) -> list[dict[str, dict[str, Change]]]:
    """Conditions to evaluate under, in groups that one pass over the rows takes: what each does, by modality.

    Of ``joint`` every modality of a row gets one of its corruptions, drawn by row.

    Args:
        kinds: of the model's modalities.
        wanted: names of corruptions, or True for all that there are.
        severities: 1 to 5.
        parts: where corruptions are looked up.

    Raises:
        ConfigError: an unknown name, one that fits no modality, or none that does.
    """
    names = list(parts.files("corruptions")) if wanted is True else list(dict.fromkeys(wanted or ()))
    built = {name: parts.build("corruptions", {"name": name}) for name in names}
    for name, corruption in built.items():
        if wanted is not True and corruption.kind not in kinds.values():
            found = ", ".join(f"{m} ({kind})" for m, kind in kinds.items())
            raise ConfigError([("evaluate.corruptions", f"{name} is of {corruption.kind}, and the model has {found}")])
    by = {m: {name: x for name, x in built.items() if x.kind == kind} for m, kind in kinds.items()}
    by = {m: some for m, some in by.items() if some}
    if not by:
        raise ConfigError([("evaluate.corruptions", f"there are none of {', '.join(sorted(set(kinds.values())))}: say false")])
    passes: list[dict[str, dict[str, Change]]] = [
        {str(Condition(m, name, s)): {m: partial(_corrupt, x, s)} for s in severities}
        for m, some in by.items()
        for name, x in some.items()
    ]
    if len(by) > 1:
        every = {m: list(some.values()) for m, some in by.items()}
        passes.append({str(Condition(JOINT, "", s)): {m: partial(_one_of, x, s) for m, x in every.items()} for s in severities})
    return passes


def _corrupt(corruption: Corruption, severity: int, item: Any, rate: int | None) -> Any:
    return corruption(item, corruption.levels[severity - 1], rate)


def _one_of(corruptions: Sequence[Corruption], severity: int, item: Any, rate: int | None) -> Any:
    return _corrupt(random.choice(corruptions), severity, item, rate)


def curves(
    clean: Predictions, worse: Mapping[str, Predictions], task: str, metric: Metric, resamples: int
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """The figure of clean rows and under every condition, each with resamples over the same draws of rows: (1 + R,)."""
    base, *values = resampled_alike([clean, *worse.values()], task, metric, resamples)
    return base, dict(zip(worse, values, strict=True))


def families(worse: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The mean over severities of every corruption, then of every modality (over its corruptions): (1 + R,)."""
    found, modalities = defaultdict(list), defaultdict(list)
    for condition, values in ((Condition.of(name), values) for name, values in worse.items()):
        found[condition.family].append(values)
        modalities[condition.modality].append(values)
    return {name: np.mean(some, 0) for name, some in (found | modalities).items()}


def relative(clean: np.ndarray, worse: np.ndarray, higher: bool) -> np.ndarray:
    """The share of the clean figure that is left (1 − MMI of Qiu et al., 2023); where lower is better, clean over corrupted."""
    of, by = (worse, clean) if higher else (clean, worse)
    return np.divide(of, by, out=np.full_like(by, np.nan), where=by != 0)


def measure(
    clean: Predictions,
    worse: Mapping[str, Predictions],
    judges: Mapping[str, Sequence[tuple[str, Metric]]],
    *,
    about: About,
    resamples: int = 1000,
) -> list[Row]:
    """Each task's first metric that can be resampled, under every condition, and its relative robustness.

    A row's condition is ``image.jpeg@3``; of ``METRIC.relative`` it is ``image.jpeg`` (over severities), ``image`` (over its
    corruptions too) and ``joint``: the mean under them over the clean figure.

    Args:
        clean: the plain answers.
        worse: the same rows, by condition.
        judges: by task, metrics with the names that rows carry.
        about: what the rows have in common, beside the condition.
        resamples: of the bootstrap over rows, which all conditions share.
    """
    found = []
    for task, name, metric in leading(judges):
        base, values = curves(clean, worse, task, metric, resamples)
        n = int(len(clean.table) - clean.table[f"{task}.label"].null_count)
        figures = [(name, condition, x) for condition, x in values.items()]
        figures += [
            (f"{name}.relative", family, relative(base, x, metric.higher_is_better)) for family, x in families(values).items()
        ]
        for kind, condition, x in figures:
            found.append(about._replace(condition=condition).row(task, kind, x[0], n, *interval(x[1:])))
    return found


def sheets(rows: Sequence[Row]) -> Iterator[Sheet]:
    """A line a corruption: severities side by side, and what is left of the clean figure."""
    for task, metric in dict.fromkeys((row.task, row.metric) for row in rows if not row.metric.endswith(".relative")):
        by = {(row.condition, row.metric): row for row in rows if row.task == task}
        known = [Condition.of(name) for name, kind in by if kind == metric]
        names = list(dict.fromkeys(c.family for c in known))
        severities = sorted({c.severity for c in known})
        numbers = {str(s): [report.number(by[f"{name}@{s}", metric].value) for name in names] for s in severities}
        numbers["left"] = [report.cell(by[name, f"{metric}.relative"]) for name in names]
        count = next(iter(by.values())).n
        yield report.sheet(f"{task}: {metric} by severity (n = {count})", {"corruption": names}, numbers)
