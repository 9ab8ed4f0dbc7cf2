"""What a run says while it runs: losses, rates, waiting time, one progress bar."""

from __future__ import annotations

import json
import math
import time
from collections import deque
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from mmkt import distributed
from mmkt.learner import Learner
from mmkt.run import Run
from mmkt.types import Batch

CLOCK = frozenset({"rows/s"})  # figures of metrics.jsonl that the clock gives: all others are the same each time


class TrainingError(ValueError):
    """Training had to stop, and why."""


class NotFinite(TrainingError):
    """The loss was not finite: training with these settings ends so."""


class Speed(NamedTuple):
    """Where the time of this process's steps went, in seconds."""

    steps: int
    total: float
    data: float  # waiting for batches


class Meter:
    """Gathers what steps report without making a device wait, and writes it at the flushes.

    Args:
        learner: names the figures.
        run: gets the lines of ``metrics.jsonl``.
        accelerator: gets them for its trackers.
    """

    def __init__(self, learner: Learner, run: Run, accelerator: Accelerator):
        self.learner, self.run, self.accelerator = learner, run, accelerator
        self.losses: list[Tensor] = []
        self.means: list[Tensor] = []
        self.rows: deque[tuple[int, Tensor]] = deque()
        self.seen, self.steps, self.data, self.spent = 0, 0, 0.0, 0.0
        self.since: float | None = None  # the clock; None while no steps are made

    def take(self, batches: Iterator[Batch], n: int) -> list[Batch]:
        """The next n batches on the device; the time they take is counted as waiting."""
        start = time.perf_counter()
        self.since = start if self.since is None else self.since
        found = [next(batches).to(self.accelerator.device) for _ in range(n)]
        self.data += time.perf_counter() - start
        self.seen += sum(batch.size for batch in found) * distributed.world_size()
        return found

    def add(self, step: int, batch: Batch, loss: Tensor, means: Tensor) -> None:
        """Note a batch of a step (from 0)."""
        self.losses.append(loss.detach())
        self.means.append(means)
        self.rows.append((step, batch.row))

    def flush(self, step: int, lr: float, norm: Tensor | None) -> dict[str, float]:
        """Write the means since the last flush.

        Raises:
            NotFinite: a loss was not finite on some process; its rows are in ``nonfinite-RANK.json``.
        """
        losses, means = torch.stack(self.losses), torch.stack(self.means)  # (batches,), (batches, objectives + terms)
        self._refuse_nonfinite(losses)
        steps = len({place for place, _ in self.rows})
        names = [*self.learner.active, *self.learner.terms]
        figures = dict(zip(names, (distributed.total(means.sum(0)) / steps).tolist()))
        weighted = sum(self.learner.weight(name) * value for name, value in figures.items())
        now = time.perf_counter()
        assert self.since is not None, "a step was taken"
        gone = now - self.since
        rate = self.seen / max(gone, 1e-9)
        values = {"loss": weighted, **{f"loss/{name}": value for name, value in figures.items()}, "lr": lr, "rows/s": rate}
        if norm is not None:
            values["gradient norm"] = float(norm)
        self.run.log({"step": step, **values})
        self.accelerator.log(values, step=step)
        self.steps += steps
        self.losses, self.means, self.seen, self.since, self.spent = [], [], 0, now, self.spent + gone
        self.rows.clear()
        return values

    def _refuse_nonfinite(self, losses: Tensor) -> None:
        bad = ~losses.isfinite()
        if distributed.total(bad.sum().float()) == 0:
            return
        where = self.run.folder / f"nonfinite-{distributed.rank()}.json"
        if bad.any():
            step, rows = self.rows[int(bad.nonzero()[0])]
            where.write_text(json.dumps({"step": step, "rows": rows.tolist()}) + "\n", encoding="utf-8")
        raise NotFinite(
            f"the loss is not finite; the rows of the first such batch are in {where} (places in the manifest, from 0). "
            "Lower train.lr, set train.clip, or look at those rows; the last checkpoint is untouched"
        )

    def pause(self) -> None:
        """Stop the clock, after a flush, until the next step: evaluating and saving are no steps."""
        self.since = None

    def speed(self) -> Speed:
        """Of all steps up to the last flush."""
        return Speed(self.steps, self.spent, self.data)


class Watch:
    """The progress bar, on standard error of rank 0."""

    def __init__(self, steps: int, done: int):
        columns: list[Any] = [
            "training",
            BarColumn(None),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[words]}"),
        ]
        console = Console(stderr=True)
        self.bar = Progress(*columns, console=console, disable=distributed.rank() != 0 or not console.is_terminal)
        self.task = self.bar.add_task("train", total=steps, completed=done, words="")
        self.words: dict[str, str] = {}

    def __enter__(self) -> Watch:
        self.bar.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self.bar.stop()

    def show(self, step: int, values: dict[str, float]) -> None:
        """Move the bar and say loss and rate."""
        self.words |= {"loss": f"loss {values['loss']:.4f}", "rate": f"{values['rows/s']:.0f} rows/s"}
        self.bar.update(self.task, completed=step, words=" · ".join(self.words.values()))

    def evaluated(self, step: int, steps: int, name: str, value: float, best: bool) -> None:
        """One lasting line an evaluation."""
        self.words["metric"] = f"{name} {value:.4f}"
        line = f"step {step}/{steps} · {' · '.join(self.words.values())}{' (best so far)' if best else ''}"
        if self.bar.disable:
            distributed.say(line)
        else:
            self.bar.console.print(line, highlight=False)


def better(value: float, best: float | None, higher: bool) -> bool:
    """Whether a figure beats the best one; NaN never does."""
    return not math.isnan(value) and (best is None or (value > best if higher else value < best))
