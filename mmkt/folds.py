"""Cross-validation: an experiment trained once a fold, and the spread of its figures over folds."""

from __future__ import annotations

import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table
from rich.text import Text

from mmkt import distributed, launch, report
from mmkt.checkpoint import CheckpointError
from mmkt.data import splits
from mmkt.experiment import Experiment
from mmkt.launcher import join
from mmkt.parts import ConfigError, Parts
from mmkt.preparation import open_manifest
from mmkt.run import changed, stage
from mmkt.score import spread
from mmkt.types import Row


class Figure(NamedTuple):
    """One metric of one task over all folds."""

    task: str
    metric: str
    folds: dict[str, float]  # by fold, in their order
    mean: float
    deviation: float
    low: float  # the 95 % interval of the mean
    high: float


def folds(config: Experiment) -> list[Figure]:
    """Train an experiment once for each fold of ``data.fold``, in ``RUN/fold-NAME``.

    A fold that has ended is read, one that was cut off is continued: the same call goes on where it was stopped.

    Args:
        config: with ``data.fold``, whose ``test`` is set here.

    Raises:
        ConfigError: the config says nothing of folds, or there are fewer than two.
        CheckpointError: a fold's folder holds a run of other settings.
    """
    if config.data.fold is None:
        raise ConfigError([("data.fold", "is missing: it says which column's values are the folds")])
    join()  # before the first look at the data
    plain = config.data.model_copy(update={"fold": None, "fractions": {config.data.train: 1.0}})
    names = set(splits.folds_of(open_manifest(plain, config.seed, Parts(config.plugins)), *_by(config)))
    order = sorted(names, key=lambda name: (not name.isdigit(), int(name) if name.isdigit() else 0, name))
    if len(order) < 2:
        raise ConfigError([("data.fold.by", f"the column {config.data.fold.by!r} has one value alone; folds are two or more")])
    places = {name: "".join(c if c.isalnum() or c in "-_." else "_" for c in name) for name in order}
    if len(set(places.values())) < len(order):
        raise ConfigError(
            [("data.fold.by", f"folds are told apart by letters, digits, - _ and . alone; found {', '.join(order)}")]
        )
    every = {}
    for k, name in enumerate(order, 1):
        distributed.say(f"fold {name} ({k} of {len(order)})")
        every[name] = [row for row in _one(_of(config, name, places[name])) if row.group == "all"]
    first = {(row.task, row.metric): row for row in every[order[0]]}
    values = {key: {name: _value(rows, *key) for name, rows in every.items()} for key in first}
    return [Figure(*key, by_fold, *spread(list(by_fold.values()))) for key, by_fold in values.items()]


def _by(config: Experiment) -> tuple[str, int | None, int]:
    fold = config.data.fold
    assert fold is not None
    return fold.by, fold.k, config.seed


def _of(config: Experiment, name: str, place: str) -> Experiment:
    """The experiment with one fold as its test split, which its figures are of."""
    fold = config.data.fold
    assert fold is not None
    data = config.data.model_copy(update={"fold": fold.model_copy(update={"test": name})})
    evaluate = config.evaluate.model_copy(update={"split": data.test})
    return config.model_copy(update={"run": str(Path(config.run) / f"fold-{place}"), "data": data, "evaluate": evaluate})


def _one(config: Experiment) -> list[Row]:
    """A fold's figures: read where it has ended, else trained from where it stands."""
    run = Path(config.run)
    state = distributed.from_first(stage(run, config.evaluate.split))
    if state != "new" and (problem := changed(run, config)):
        raise CheckpointError(problem)
    if state == "ended":
        return report.read(run / "best" / f"evaluation-{config.evaluate.split}" / "metrics.jsonl")
    if state == "begun" and distributed.rank() == 0 and not (run / "best").exists():
        shutil.rmtree(run)  # killed before its first saved step: there is nothing to continue
    distributed.wait()
    found = launch.train(config, resume=(run / "config.json").is_file())
    assert isinstance(found, list)
    return found


def _value(rows: Sequence[Row], task: str, metric: str) -> float:
    return next((row.value for row in rows if (row.task, row.metric) == (task, metric)), math.nan)


def as_json(figures: Sequence[Figure]) -> dict[str, Any]:
    """``{"figures": [...]}``; what is not a finite number is null, which JSON requires."""

    def number(x: float) -> float | None:
        return x if math.isfinite(x) else None

    return {
        "figures": [
            {name: number(x) if isinstance(x, float) else x for name, x in figure._asdict().items()}
            | {"folds": {name: number(x) for name, x in figure.folds.items()}}
            for figure in figures
        ]
    }


def table(figures: Sequence[Figure], console: Console) -> None:
    """Print a line a metric: the figure of each fold, the mean, the deviation, the 95 % interval of the mean."""
    shown = Table(box=None, pad_edge=False)
    many = len({figure.task for figure in figures}) > 1
    for heading in ("metric", *figures[0].folds, "mean", "deviation", "95 % interval"):
        shown.add_column(Text(heading, "bold"), justify="left" if heading == "metric" else "right")
    for f in figures:
        numbers = [*f.folds.values(), f.mean, f.deviation]
        name = f"{f.task}/{f.metric}" if many else f.metric
        shown.add_row(Text(name), *(f"{x:.3f}" for x in numbers), f"{f.low:.3f} to {f.high:.3f}")
    console.print(shown)
