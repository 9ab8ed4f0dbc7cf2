"""A checkpoint's answers calibrated on validation; what is fitted is saved with it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from accelerate import Accelerator
from rich.console import Console
from rich.text import Text
from scipy.special import softmax

from mmkt import checkpoint, distributed, report
from mmkt.calibration import temperature, threshold
from mmkt.evaluate import feed_of, revived
from mmkt.metrics.ece import Ece
from mmkt.metrics.nll import Nll
from mmkt.parts import ConfigError, Parts
from mmkt.predictions import predict
from mmkt.types import Predictions

NOTE = "On the rows that it was fitted on, which also chose the checkpoint: mmkt evaluate, to be run again, says more."


class Calibrated(NamedTuple):
    """Of a task."""

    task: str
    rows: int  # labelled ones
    temperature: float
    nll: list[float]  # before and after, on the same rows
    ece: list[float]
    coverage: float
    least: float  # the probability that lets a class into a set
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
        raise ConfigError(f"there is no folder {path}: what is fitted is saved with the checkpoint, so it has to be here")
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
    feed, _ = feed_of(model, config, split, parts)
    answers = predict(model, feed, feed.rows(split), device=accelerator.device, autocast=accelerator.autocast)
    found = []
    for task in tasks:
        one = _fitted(answers, task, coverage)
        found.append(one)
        known = {"temperature": one.temperature, "coverage": coverage, "least": one.least, "rows": one.rows}
        model.heads[task].vocabulary["calibration"] = known
    if distributed.rank() == 0:
        checkpoint.write_json(folder / "vocabularies.json", model.vocabularies)
    distributed.wait()
    return found


def _fitted(answers: Predictions, task: str, coverage: float) -> Calibrated:
    labelled = answers._replace(table=answers.table.filter(pc.is_valid(answers.table[f"{task}.label"])))
    column = labelled.table[f"{task}.label"]
    if not len(column):
        raise ConfigError(f"no row of the validation split has a label of {task}: name another split in data.validation")
    labels = pc.index_in(column, value_set=pa.array(answers.vocabularies[task]["classes"]).cast(column.type)).to_numpy()
    logits = np.stack(labelled.table[f"{task}.logits"].to_numpy())
    t = temperature(logits.astype(np.float64), labels)
    after = logits / np.float32(t)  # rounded as answers are
    probabilities = softmax(after.astype(np.float64), axis=1)
    least = threshold(probabilities, labels, coverage)
    place = labelled.table.column_names.index(f"{task}.logits")
    tempered = labelled._replace(table=labelled.table.set_column(place, f"{task}.logits", pa.array(list(after))))
    every = np.ones((1, len(labels)))
    nll, ece = ([float(metric(some, task, every)["all"][0]) for some in (labelled, tempered)] for metric in (Nll(), Ece()))
    return Calibrated(task, len(labels), t, nll, ece, coverage, least, float((probabilities >= least).sum(1).mean()))


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
    report.columns("fitted on validation", {"task": [one.task for one in found]}, numbers, console)
    for one in found:
        if not one.least:
            few = f"{one.task}: {one.rows} rows are too few for a coverage of {one.coverage:g}: its sets hold every class"
            console.print(Text(few))
    console.print(Text(NOTE))
