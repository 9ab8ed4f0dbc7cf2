"""A transfer study's figures: cells, gains, what a sweep changes, what was needed for it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mmkt.checkpoint import read_json, settle, write_json
from mmkt.model import Model
from mmkt.parts import Parts
from mmkt.score import resampled, spread
from mmkt.statistics import Difference, difference, holm
from mmkt.stored import load
from mmkt.studies.runs import cost
from mmkt.studies.transfer_gain import Cell, Key, Transfer, of_method


class Line(NamedTuple):
    """A cell over its seeds."""

    cell: Cell
    lr: float
    edge: bool  # the rate is the lowest or the highest of several: the best one may lie beyond
    values: list[float]  # on test, by seed
    mean: float
    deviation: float
    low: float  # the mean's 95 % interval over seeds
    high: float
    validation: dict[float, float]  # by rate, of the sweep
    curve: dict[int, float]  # validation by step, the mean over seeds
    reached: dict[float, list[int | None]]  # threshold → by seed, the first evaluated step at which it was reached
    trained: int  # numbers that trained in the last phase
    numbers: int  # of the whole model
    step: float  # seconds
    memory: int  # bytes, the most
    delta: int | None  # bytes of a save without what was only referred to


class Gain(NamedTuple):
    """Of the pretrained source over the baseline, by one method with one share of the labels."""

    method: str
    fraction: float
    swept: Difference  # each source with its own rate
    p: float  # corrected (Holm) over all of these comparisons
    fixed: Difference | None  # both with the study's one rate
    change: Difference | None  # the second minus the first: what leaving the sweep out would have claimed too much

    def __str__(self) -> str:
        return self.method + ("" if self.fraction == 1 else f", {self.fraction:.3g} of the labels")

    @property
    def verdict(self) -> str:
        """On the gain with own rates."""
        return self.swept.verdict(self.p)

    @property
    def hypothesis(self) -> str | None:
        """Whether the gap shrinks with a sweep (Rothermel et al., 2021)."""
        if self.change is None:
            return None
        if self.change.seeds < 5:
            return "sighting"
        found = self.change.verdict()
        return {"gain": "consistent", "loss": "inconsistent"}.get(found, "cannot tell")


class Results(NamedTuple):
    """Of what has ended."""

    transfer: Transfer
    lines: list[Line]
    gains: list[Gain]
    unfinished: list[Cell]


def gather(transfer: Transfer) -> Results:
    """Read every cell whose seeds have ended; gains of pairs of them."""
    lines, unfinished = [], []
    for cell in transfer.grids:
        keys = transfer.finals(cell)
        if keys and all(_tested(transfer, key) for key in keys):
            lines.append(_line(transfer, cell, keys))
        else:
            unfinished.append(cell)
    return Results(transfer, lines, _gains(transfer, [line.cell for line in lines]), unfinished)


def _tested(transfer: Transfer, key: Key) -> bool:
    return (settle(transfer.folder(key) / "best") / f"evaluation-{transfer.config.data.test}" / "metrics.jsonl").is_file()


def _line(transfer: Transfer, cell: Cell, keys: Sequence[Key]) -> Line:
    values = [transfer.value(key, transfer.config.data.test) for key in keys]
    curves = [_curve(transfer, key) for key in keys]
    steps = sorted(set.intersection(*(set(curve) for curve in curves)))
    better = (lambda x, t: x >= t) if transfer.higher else (lambda x, t: x <= t)
    reached = {
        t: [next((s for s, x in curve.items() if better(x, t)), None) for curve in curves] for t in transfer.study.thresholds
    }
    costs = [cost(transfer.folder(key)) for key in keys]
    rates = sorted(transfer.grids[cell].lr)
    return Line(
        cell,
        keys[0].lr,
        len(rates) > 1 and keys[0].lr in (rates[0], rates[-1]),
        values,
        *spread(values),
        {key.lr: transfer.value(key, transfer.validation) for key in transfer.sweep(cell)},
        {step: float(np.mean([curve[step] for curve in curves])) for step in steps},
        reached,
        costs[0]["trained"],
        costs[0]["numbers"],
        float(np.median([_seconds(transfer, key) for key in keys])),
        max(one["peak memory"] for one in costs),
        _delta(transfer.folder(keys[0])),
    )


def _log(transfer: Transfer, key: Key) -> list[dict[str, Any]]:
    text = (transfer.folder(key) / "metrics.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def _curve(transfer: Transfer, key: Key) -> dict[int, float]:
    name = f"validation/{transfer.task}/{transfer.metric}"
    return {line["step"]: line[name] for line in _log(transfer, key) if name in line}


def _seconds(transfer: Transfer, key: Key) -> float:
    rates = [line["rows/s"] for line in _log(transfer, key) if "rows/s" in line]
    return transfer.config.data.rows * transfer.config.train.accumulate / float(np.median(rates))


def _delta(run: Path) -> int | None:
    """Bytes of the best checkpoint as a delta; measured once."""
    note = run / "delta.json"
    if not note.is_file():
        model, folder = Model.from_pretrained(run / "best"), run / "delta"
        model.save_pretrained(folder, delta=True)
        size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
        for file in folder.iterdir():
            file.unlink()
        folder.rmdir()
        write_json(note, {"bytes": size})
    return read_json(note)["bytes"]


# ---------------------------------------------------------------- gains


def _gains(transfer: Transfer, ended: Sequence[Cell]) -> list[Gain]:
    study = transfer.study
    found: list[tuple[str, float, Difference, Difference | None, Difference | None]] = []
    for method, fraction in dict.fromkeys((cell.method, cell.fraction) for cell in ended):
        pair = of_method(ended, method, fraction)
        if study.pretrained not in pair or study.baseline not in pair:
            continue
        own, fixed = (
            [transfer.finals(pair[name], alike) for name in (study.pretrained, study.baseline)] for alike in (False, True)
        )
        swept = _differences(transfer, *own)
        plain = _differences(transfer, *fixed) if all(k and all(_tested(transfer, x) for x in k) for k in fixed) else None
        rest = (None, None) if plain is None else (difference(plain), difference(plain - swept))
        found.append((method, fraction, difference(swept), *rest))
    corrected = holm([swept.p if swept.seeds >= 5 else math.nan for _, _, swept, *_ in found])
    return [Gain(*one[:3], p, *one[3:]) for one, p in zip(found, corrected)]


def _differences(transfer: Transfer, first: Sequence[Key], second: Sequence[Key]) -> np.ndarray:
    """(S, 1 + R), paired by seed and by row; positive where the first is better."""
    seeds = [key.seed for key in first if key.seed in {other.seed for other in second}]
    values: Mapping[int, np.ndarray]
    both = []
    for keys in (first, second):
        values = {key.seed: _resampled(transfer, key) for key in keys if key.seed in seeds}
        both.append(np.stack([values[seed] for seed in seeds]))
    return (both[0] - both[1]) * (1 if transfer.higher else -1)


def _resampled(transfer: Transfer, key: Key) -> np.ndarray:
    metric: Any = Parts().find("metrics", transfer.metric)()
    predictions = load(transfer.folder(key), transfer.config.data.test)
    return resampled(predictions, transfer.task, metric, transfer.study.resamples)
