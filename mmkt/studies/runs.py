"""The trainings of a study: one after another or several at once, each resumed where it was cut off."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open

from mmkt import launch
from mmkt.checkpoint import CheckpointError, read_json, settle, write_json
from mmkt.config import read
from mmkt.evaluate import evaluate
from mmkt.experiment import Experiment
from mmkt.parts import ConfigError, Parts
from mmkt.run import changed, stage
from mmkt.score import metric_of
from mmkt.search_file import Search
from mmkt.stop import Stopped
from mmkt.study import Ablation, Study
from mmkt.telemetry import NotFinite, peak_memory
from mmkt.workshop import Workshop

WORKSHOP = Workshop()  # of this process, for one training after another


class Training(NamedTuple):
    """One run of a study."""

    experiment: str  # the file
    settings: tuple[str, ...]  # key=value; they say the run's folder too
    test: bool = False  # whether its best checkpoint is evaluated on the test split as well
    subsets: bool = False  # and there with every subset of its modalities

    def config(self, threads: int | None = None) -> Experiment:
        """Checked; figures are first made on validation alone.

        Args:
            threads: of the process, where the experiment says none.
        """
        config = read(Experiment, self.experiment, self.settings)
        split = config.data.validation
        assert split is not None, "a study refuses experiments without a validation split"
        evaluate = config.evaluate.model_copy(update={"split": split})
        return config.model_copy(update={"evaluate": evaluate, "threads": config.threads or threads})


def carry_out(training: Training, threads: int | None = None) -> None:
    """Train to the end, evaluate, note the cost; nothing where that was done before.

    ``threads`` are this process's, where the experiment says none.

    A training whose loss is not finite has an end too: ``failed.json`` says why, and it has no figures.

    Raises:
        CheckpointError: the folder holds a run of other settings.
        Stopped: by SIGTERM or Ctrl-C; the state to resume from is saved.
    """
    config = training.config(threads)
    run, test = Path(config.run), config.data.test
    state, problem = stands(config)
    if problem:
        raise CheckpointError(problem)
    if (run / "failed.json").is_file():
        return
    if state != "ended":
        _reset_peak()
        try:
            launch.train(config, resume=state == "saved", workshop=WORKSHOP)
        except NotFinite as error:
            write_json(run / "failed.json", {"why": str(error)})
            return
        _note_cost(run)
    elif not (run / "cost.json").is_file():
        _note_cost(run)
    if training.test and stage(run, test) != "ended":
        if config.data.features is None:
            subsets = "null" if training.subsets else "false"
            asked = [f"evaluate.split={test}", f"evaluate.subsets={subsets}", "evaluate.page=false", "evaluate.missing=[]"]
            evaluate(str(run / "best"), asked, plugins=config.plugins)
        else:
            launch.evaluate_best(config, test, WORKSHOP, subsets=training.subsets)


def stands(config: Experiment) -> tuple[str, str | None]:
    """Where a study's run stands (see ``run.stage``), and what keeps it from being continued; one without a save is cleared."""
    run = Path(config.run)
    if (run / "failed.json").is_file():
        return "ended", changed(run, config)
    state = stage(run, config.evaluate.split)
    problem = changed(run, config) if state != "new" else None
    if state == "begun" and not problem:
        shutil.rmtree(run)  # killed before its first saved step: there is nothing to continue
    return state, problem


def forget_state(run: Path) -> None:
    """Remove the tensors to resume from of a run that has ended: only resuming reads them."""
    shutil.rmtree(run / "kept", ignore_errors=True)
    for file in settle(run / "last").glob("*.safetensors"):
        file.unlink()


def _note_cost(run: Path) -> None:
    """What trained and how much memory it took; then the optimiser's state, which only resuming reads, goes."""
    last = settle(run / "last")
    with safe_open(settle(run / "best") / "model.safetensors", "pt") as tensors:
        numbers = sum(_size(tensors.get_slice(key).get_shape()) for key in tensors.keys())  # noqa: SIM118 - no mapping
    cost = {"trained": read_json(last / "state.json")["trained"], "numbers": numbers, "peak memory": peak_memory()}
    write_json(run / "cost.json", cost)
    forget_state(run)


def _size(shape: Sequence[int]) -> int:
    size = 1
    for number in shape:
        size *= number
    return size


def _reset_peak() -> None:
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    with contextlib.suppress(OSError):  # Linux alone
        Path("/proc/self/clear_refs").write_text("5")


# ---------------------------------------------------------------- several at once


class Crew:
    """Carries trainings out, ``jobs`` at a time; with several, each has a process, its share of threads and a GPU.

    Args:
        jobs: how many at once; one runs in this process.
    """

    def __init__(self, jobs: int):
        self.pool, self.threads = None, max(1, (os.cpu_count() or 1) // jobs)
        if jobs > 1:
            context = multiprocessing.get_context("spawn")
            places: Any = context.SimpleQueue()
            for place in range(jobs):
                places.put(place)
            self.pool = ProcessPoolExecutor(jobs, mp_context=context, initializer=_begin, initargs=(places, os.getpid()))

    def __enter__(self) -> Crew:
        return self

    def __exit__(self, kind: Any, *_: Any) -> None:
        if self.pool:
            self.pool.shutdown(wait=True, cancel_futures=kind is not None)

    def run(self, jobs: Sequence[tuple[Any, Training]], done: Callable[[Any], Sequence[tuple[Any, Training]]]) -> None:
        """Carry out trainings, and those that the end of others brings.

        Args:
            jobs: each with a key.
            done: is told the key of each one that has ended; returns further ones.
        """
        waiting = list(jobs)
        if self.pool is None:
            while waiting:
                key, training = waiting.pop(0)
                carry_out(training)
                waiting += done(key)
            return
        futures: dict[Future, Any] = {}
        while waiting or futures:
            futures |= {self.pool.submit(_logged, training, self.threads): key for key, training in waiting}
            waiting = []
            ended, _ = wait(futures, return_when=FIRST_COMPLETED)
            for future in ended:
                key = futures.pop(future)
                future.result()
                waiting += done(key)


def _begin(places: Any, parent: int) -> None:
    """A worker's start: which GPU it has, and that it ends with its parent."""
    place, named = places.get(), os.environ.get("CUDA_VISIBLE_DEVICES")
    visible = named.split(",") if named else [str(k) for k in range(torch.cuda.device_count())]
    if visible:
        os.environ["CUDA_VISIBLE_DEVICES"] = visible[place % len(visible)]

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)  # the study was killed: whoever continues it must find nobody at work in its folders

    threading.Thread(target=watch, daemon=True).start()


@contextlib.contextmanager
def _into(file: Path) -> Iterator[None]:
    """What is said on standard output and error goes to a file."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a", encoding="utf-8") as log, contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
        yield


def _logged(training: Training, threads: int) -> None:
    run = Path(training.config().run)
    with _into(run.with_name(f"{run.name}.log")):
        try:
            carry_out(training, threads)
        except Stopped as stopped:  # it cannot cross processes: its arguments are not its message
            raise KeyboardInterrupt(str(stopped)) from None


def figure(run: Path, split: str, task: str, metric: str) -> float:
    """A figure of a run's best checkpoint, over all rows; NaN where the training failed."""
    from mmkt import report

    file = settle(run / "best") / f"evaluation-{split}" / "metrics.jsonl"
    if (run / "failed.json").is_file():
        return float("nan")
    rows = [row for row in report.read(file) if (row.task, row.metric, row.group) == (task, metric, "all")]
    if not rows:
        raise ValueError(f"{file} has no {task}/{metric}")
    return rows[0].value


def cost(run: Path) -> dict[str, Any]:
    """What ``carry_out`` noted."""
    return read_json(run / "cost.json")


def judged(study: Study | Ablation | Search) -> tuple[str, str, bool]:
    """The task and the metric that a study is about, and whether higher is better."""
    config = read(Experiment, study.experiment, study.settings)
    parts = Parts(config.plugins)
    tasks = {task: spec["name"] for task, spec in config.model.heads.items()}
    if not tasks:
        raise ConfigError([("experiment", f"{study.experiment} has no head to be judged by")])
    try:
        task, name, metric = metric_of(study.metric, tasks, parts)
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError([("metric", str(error))]) from error
    return task, name, metric.higher_is_better


def part(text: str) -> tuple[int, int]:
    """``2/4`` as (2, 4).

    Raises:
        ValueError: it is not of that form.
    """
    found = re.fullmatch(r"([1-9]\d*)/([1-9]\d*)", text)
    if not found or int(found[1]) > int(found[2]):
        raise ValueError(f"--part takes I/N with I from 1 to N, such as 2/4, found {text!r}")
    return int(found[1]), int(found[2])
