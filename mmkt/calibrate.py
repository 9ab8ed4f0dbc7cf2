"""A checkpoint's answers calibrated on validation; what is fitted is saved with it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch
from accelerate import Accelerator
from rich.console import Console
from rich.text import Text

from mmkt import checkpoint, distributed, report
from mmkt.calibration import conformal_threshold, fit_temperature
from mmkt.evaluate import feed_of, revived
from mmkt.metrics._columns import labels, logits
from mmkt.metrics.ece import Ece
from mmkt.metrics.nll import Nll
from mmkt.parts import ConfigError, Parts
from mmkt.predictions import predict
from mmkt.score import labelled
from mmkt.types import Head, Predictions

NOTE = "On the rows that it was fitted on, which also chose the checkpoint: mmkt evaluate, to be run again, says more."


class Calibrated(NamedTuple):
    """Of a task."""

    task: str
    rows: int  # labelled ones
    temperature: float
    nll: list[float]  # before and after, on the same rows
    ece: list[float]
    coverage: float
    threshold: float  # the least probability of a class in a set
    size: float  # of the sets on these rows, the mean


def calibrate(
    path: str, overrides: Sequence[str] = (), *, coverage: float = 0.9, plugins: Sequence[str] = ()
) -> list[Calibrated]:
    """Fit a temperature and the threshold of prediction sets for every task with classes, and save them with the checkpoint.

    Both come from ``data.validation`` alone, so that test stays unread. Coverage is promised for rows like those that it was
    fitted on, and validation has also chosen the checkpoint (and the temperature): strictly it takes a split of its own,
    ``data.validation=calibration``. ``vocabularies.json`` takes what is found; what was fitted before is forgotten.

    Args:
        path: a checkpoint's folder.
        overrides: of ``data``.
        coverage: how often a set should hold the true class.
        plugins: folders or packages that the checkpoint's parts may come from.

    Raises:
        ConfigError: no validation split, no task with classes, none of its labels there, a Hub id, a coverage that is none.
    """
    if not 0 < coverage < 1:
        raise ConfigError(f"--coverage lies between 0 and 1, such as 0.9, found {coverage:g}")
    folder = checkpoint.settle(Path(path))
    if not folder.is_dir():
        raise ConfigError(f"there is no folder {path}: what is fitted is saved in the checkpoint, so name one here, as RUN/best")
    accelerator, parts = Accelerator(), Parts(plugins)
    model, config = revived(path, overrides, parts, accelerator, ("data",))
    split = config.data.validation
    if split is None:
        raise ConfigError([("data.validation", "is null: it is what calibration is fitted on, name a split")])
    tasks = [task for task, head in config.model.heads.items() if head["name"] == "classify"]
    if not tasks:
        raise ConfigError(f"{path} has no head classify, which calibration is of; its heads: {', '.join(model.heads) or 'none'}")
    for task in tasks:
        model.heads[task].vocabulary.pop("calibration", None)
    feed, _ = feed_of(model, config, [split], parts)
    answers = predict(model, feed, feed.rows(split), device=accelerator.device, autocast=accelerator.autocast)
    found = [_fit(model.heads[task], labelled(answers, task), task, coverage) for task in tasks]
    if distributed.rank() == 0:
        checkpoint.write_json(folder / "vocabularies.json", model.vocabularies)
    distributed.wait()
    return found


def _fit(head: Head, answers: Predictions, task: str, coverage: float) -> Calibrated:
    """Fit on labelled rows, and have the head answer so."""
    raw, places = logits(answers, task), labels(answers, task)
    t = fit_temperature(raw, places)
    known: dict[str, Any] = {"temperature": t, "threshold": 0.0, "coverage": coverage, "rows": len(places)}
    head.vocabulary["calibration"] = known
    scores = head.calibrated(torch.from_numpy(raw).float())  # rounded as answers are
    known["threshold"] = conformal_threshold(scores.double().softmax(1).numpy(), places, coverage)
    column = f"{task}.logits"
    place = answers.table.column_names.index(column)
    after = answers._replace(table=answers.table.set_column(place, column, pa.array(list(scores.numpy()))))
    every = np.ones((1, len(places)))
    nll, ece = ([float(metric(some, task, every)["all"][0]) for some in (answers, after)] for metric in (Nll(), Ece()))
    size = float(np.mean([len(some) for some in head.prediction_sets(scores)["set"]]))
    return Calibrated(task, len(places), t, nll, ece, coverage, known["threshold"], size)


def show(found: Sequence[Calibrated], console: Console) -> None:
    """Print what was fitted."""
    numbers = {
        "temperature": [f"{one.temperature:.3f}" for one in found],
        "nll": [f"{one.nll[0]:.3f} → {one.nll[1]:.3f}" for one in found],
        "ece": [f"{one.ece[0]:.3f} → {one.ece[1]:.3f}" for one in found],
        "coverage": [f"{one.coverage:g}" for one in found],
        "set size": [f"{one.size:.2f}" for one in found],
        "n": [str(one.rows) for one in found],
    }
    report.show([report.sheet("fitted on validation", {"task": [one.task for one in found]}, numbers)], console)
    for one in found:
        if not one.threshold:
            few = f"{one.task}: {one.rows} rows are too few for a coverage of {one.coverage:g}: its sets hold every class"
            console.print(Text(few))
    console.print(Text(NOTE))
