"""One trial of a search: how it is trained, judged, stopped early, and how it ended."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from mmkt import distributed, launch
from mmkt.checkpoint import CheckpointError
from mmkt.experiment import Experiment
from mmkt.parts import ConfigError
from mmkt.stop import Stop, Stopped
from mmkt.studies.runs import figure, forget_state, stands
from mmkt.telemetry import TrainingError

if TYPE_CHECKING:
    from mmkt.studies.search_optuna import Trials


class Outcome(NamedTuple):
    """How a trial ended."""

    state: str  # complete, pruned, failed
    value: float = math.nan
    why: str = ""  # it failed


class Ended(NamedTuple):
    """A trial that has ended."""

    number: int
    outcome: Outcome
    settings: dict[str, Any]  # choices by how they are typed, numbers as numbers
    evaluations: int  # on validation
    twin: int | None  # an earlier trial of the same settings, whose outcome this one has without a training of its own


def ranked(trials: Sequence[Ended], higher: bool) -> list[Ended]:
    """Those that were trained to the end, the best first, the earlier one of equals."""
    complete = [one for one in trials if one.outcome.state == "complete" and one.twin is None]
    return sorted(complete, key=lambda one: (-one.outcome.value if higher else one.outcome.value, one.number))


class Judge:
    """Listens to a trial's training: notes what it reaches on validation, and stops it where that is hopeless.

    Args:
        run: the trial's folder.
        metric: ``task/metric``.
        trials: on rank 0, where listeners are told; None elsewhere.
        stop: whether someone asked the search to stop before the training could hear it.
    """

    def __init__(self, run: Path, metric: str, trials: Trials | None, stop: Stop):
        self.name, self.log = f"validation/{metric}", run / "metrics.jsonl"
        self.trials, self.stop, self.hopeless = trials, stop, False

    def __call__(self, step: int, steps: int, values: Mapping[str, float]) -> bool:
        """Of a logged step. The last one stops nothing: there is nothing left to save."""
        if self.trials and self.name in values:
            k = self.log.read_text(encoding="utf-8").count(f'"{self.name}"')  # those before it was resumed too
            self.hopeless = self.trials.hopeless(k, values[self.name], math.ceil(steps * k / step)) and step < steps
        return self.hopeless or self.stop.asked


def carry_out(config: Experiment, metric: str, judge: Judge, trained: bool) -> Outcome:
    """Train a trial from where it stands; every process calls this, and all get the same outcome.

    Args:
        config: evaluated on validation alone.
        metric: ``task/metric``.
        judge: listens.
        trained: whether any trial before it could be: then one that cannot be built has failed, and the search goes on.

    Raises:
        Stopped: by SIGTERM or Ctrl-C; the state is saved.
        CheckpointError: the folder holds a run of other settings.
        ConfigError: it cannot be built, and nor could any before it.
        TrainingError: another process is gone.
    """
    run, split = Path(config.run), config.evaluate.split
    first = distributed.rank() == 0
    state, problem = distributed.from_first(stands(config) if first else None)
    if problem:
        raise CheckpointError(problem)
    outcome = Outcome("complete")
    if state != "ended":
        outcome = _train(config, state == "saved", judge, trained)
    try:
        distributed.wait()
    except RuntimeError as error:
        if not distributed.is_lost(error):
            raise
        words = outcome.why or f"another process of this search is gone ({error}): type the same command again"
        raise TrainingError(words) from None  # the trial has not failed, it was cut off
    return distributed.from_first(_ended(run, split, metric, outcome) if first else None)


def _train(config: Experiment, resume: bool, judge: Judge, trained: bool) -> Outcome:
    try:
        launch.train(config, resume=resume, listener=judge)
    except Stopped as stopped:
        if not distributed.from_first(judge.hopeless):
            raise
        judge.stop.asked |= stopped.asked
        return Outcome("pruned")
    except ConfigError as error:
        if not trained:
            raise
        return Outcome("failed", why=str(error))
    except TrainingError as error:
        return Outcome("failed", why=str(error))
    except torch.OutOfMemoryError as error:
        if distributed.world_size() > 1:
            raise  # the others wait for this process
        return Outcome("failed", why=str(error))
    return Outcome("complete")


def _ended(run: Path, split: str, metric: str, outcome: Outcome) -> Outcome:
    """The outcome with its value; the optimiser's state, which only resuming reads, goes (rank 0)."""
    if outcome.state == "complete":
        task, _, name = metric.partition("/")
        value = figure(run, split, task, name)
        why = "" if math.isfinite(value) else f"{metric} is not a number on {split}"
        outcome = Outcome("failed" if why else "complete", value, why)
    forget_state(run)
    return outcome
