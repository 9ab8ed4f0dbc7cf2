"""What a run says while it runs: losses, gradients, rates, waiting time, memory, one progress bar."""

from __future__ import annotations

import contextlib
import json
import math
import resource
import sys
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from mmkt import distributed
from mmkt.learner import Learner
from mmkt.peaks import peak_of
from mmkt.run import Run
from mmkt.types import Batch

CLOCK = frozenset({"rows/s", "data wait", "memory GB", "MFU"})
"""Figures of the machine, not of the training: the same training logs others the next time."""


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

    Beside losses and the rate: ``gradient norm`` before clipping; ``gradient share/M``, a modality's share (its encoder's and its
    projection's) of the squared gradients of all modalities, at the logged step; ``rows/s`` of all processes; ``data wait``, the
    share of this process's time; ``memory GB``, its peak so far (of the GPU, or of the process); on GPUs that are in
    ``peaks``, with a model that is not sharded, ``MFU``: the FLOPs of forward and backward, counted once a phase on one batch,
    over the card's peak (what checkpointing computes again counts too).

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
        self.squares: dict[str, Tensor] = {}
        self.seen, self.steps, self.data, self.spent, self.waited = 0, 0, 0.0, 0.0, 0.0
        self.peak, self.flops = None if distributed.is_sharded(learner) else peak_of(accelerator), 0.0
        self.since: float | None = None  # the clock; None while no steps are made

    def take(self, batches: Iterator[Batch], n: int) -> list[Batch]:
        """The next n batches on the device; the time they take is counted as waiting."""
        start = time.perf_counter()
        self.since = start if self.since is None else self.since
        found = [next(batches).to(self.accelerator.device) for _ in range(n)]
        self.waited += time.perf_counter() - start
        self.seen += sum(batch.size for batch in found) * distributed.world_size()
        return found

    def add(self, step: int, batch: Batch, loss: Tensor, means: Tensor) -> None:
        """Note a batch of a step (from 0)."""
        self.losses.append(loss.detach())
        self.means.append(means)
        self.rows.append((step, batch.row))

    @contextlib.contextmanager
    def counting(self, batch: Batch) -> Iterator[None]:
        """While a forward and a backward of a batch are made: count their FLOPs, where the card's peak is known."""
        if self.peak is None:
            yield
            return
        from torch.utils.flop_counter import FlopCounterMode

        # what is compiled runs as it was written: kernels that the compiler makes are not counted
        with torch.compiler.set_stance("force_eager"), FlopCounterMode(display=False) as counter:
            yield
        self.flops = counter.get_total_flops() / batch.size

    def graded(self) -> None:
        """Before clipping, in a step that is logged: note whose gradients they are."""
        grads = {m: [p.grad for p in some if p.grad is not None] for m, some in self.learner.by_modality().items()}
        grads = {m: some for m, some in grads.items() if some}
        if len(grads) > 1:  # one alone has all of them
            self.squares = {m: distributed.whole(torch.nn.utils.get_total_norm(some)).square() for m, some in grads.items()}

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
        values |= self._shares() | {"data wait": self.waited / max(gone, 1e-9), "memory GB": peak_memory() / 1e9}
        if self.peak is not None and self.flops:
            values["MFU"] = self.flops * rate / (self.peak * distributed.world_size())
        self.run.log({"step": step, **values})
        self.accelerator.log(values, step=step)
        self.steps += steps
        self.losses, self.means, self.seen, self.since, self.spent = [], [], 0, now, self.spent + gone
        self.data, self.waited, self.squares = self.data + self.waited, 0.0, {}
        self.rows.clear()
        return values

    def _shares(self) -> dict[str, float]:
        """By modality; none where no gradient is finite and above zero."""
        squares = {m: float(x) for m, x in self.squares.items()}
        whole = sum(squares.values())
        return {f"gradient share/{m}": x / whole for m, x in squares.items()} if 0 < whole < math.inf else {}

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


def peak_memory() -> int:
    """Bytes: of the GPU where there is one, else of this process, libraries included."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM"):
                return int(line.split()[1]) * 1024
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


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
