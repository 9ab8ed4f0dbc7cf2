"""Is a run that is killed and resumed the run that nobody killed? Any experiment is put to the test, to the bit."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console

from mmkt import distributed, report
from mmkt.checkpoint import read_json, settle, write_json
from mmkt.config import read
from mmkt.experiment import Experiment
from mmkt.parts import ConfigError
from mmkt.run import stage
from mmkt.telemetry import TrainingError
from mmkt.verify import processes as starting
from mmkt.verify.differences import differences
from mmkt.verify.kills import Moment, choose, noted

PAGE = "verify-resume.json"  # what was found; by it a folder is known as one of this command's


class Checked(NamedTuple):
    """A run that was killed once and resumed."""

    kill: str  # where it fell
    rank: int  # of the process that it fell into
    happened: str
    differences: list[str]  # from the run that nobody killed


class Proof(NamedTuple):
    """What came of it."""

    folder: Path
    steps: int
    processes: int
    checked: list[Checked]
    unstable: list[str]  # in what two runs differ that nobody killed; looked at where something differs
    seconds: float

    @property
    def equal(self) -> bool:
        """Whether nothing differs."""
        return not any(one.differences for one in self.checked)


def verify(
    file: str,
    overrides: Sequence[str] = (),
    *,
    kills: int = 1,
    seed: int = 0,
    processes: int = 1,
    steps: int = 12,
    out: str | None = None,
) -> Proof:
    """Train an experiment once as it is, and once for each kill: killed, and resumed to its end.

    Compared are every tensor and every JSON value of the last state (with all random generators), of those kept before it and
    of the best checkpoint, its figures, and every line of ``metrics.jsonl`` but for figures of the clock.

    Args:
        file: the experiment.
        overrides: its settings. Steps, evaluations and saves are few, trackers off, where they do not say otherwise.
        kills: one falls in the middle; several where ``seed`` says, into every kind of moment that there is.
        seed: of the moments.
        processes: of each training.
        steps: of each training.
        out: a folder for the runs; by default the experiment's with ``-verify`` behind it. Runs that differ stay there.

    Raises:
        ConfigError: the settings, or what was asked for, cannot be.
        TrainingError: the experiment does not even train to its end.
    """
    began = time.perf_counter()
    _refuse(kills, processes, steps)
    plain = read(Experiment, file, overrides)
    home = _cleared(Path(out or f"{plain.run}-verify"))
    settings = (*_few(plain, steps), *overrides, f"run={home / 'run'}")
    bench = _Bench(file, settings, processes, home)
    chosen = choose(bench.whole(), kills, seed)
    checked = []
    for k, moment in enumerate(chosen, start=1):
        checked.append(bench.killed(moment, home / f"kill-{k:02d}"))
        words = checked[-1].differences[0] if checked[-1].differences else "equal"
        distributed.say(f"{k} of {len(chosen)}: {moment.words}; {checked[-1].happened}: {words}")
    unstable = bench.repeated() if any(one.differences for one in checked) else []
    proof = Proof(home, bench.steps, processes, checked, unstable, time.perf_counter() - began)
    write_json(home / PAGE, as_json(proof))
    return proof


def _refuse(kills: int, processes: int, steps: int) -> None:
    for name, value, least in (("kills", kills, 1), ("processes", processes, 1), ("steps", steps, 2)):
        if value < least:
            raise ConfigError(f"--{name} takes {least} or more, found {value}")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError("verify-resume starts the processes itself: type it without a launcher, with --processes 2")
    if "forkserver" not in multiprocessing.get_all_start_methods():
        raise ConfigError("verify-resume kills processes as POSIX systems do, which this one is not")


def _few(plain: Experiment, steps: int) -> tuple[str, ...]:
    """Settings under which a short training evaluates and saves several times, not always together, and nobody else is told."""
    every = {"evaluate_every": max(1, steps // 3), "save_every": max(1, steps // 4), "log_every": 1}
    settings = [f"train.steps={steps}", "train.epochs=null", *(f"train.{name}={value}" for name, value in every.items())]
    if plain.data.validation:
        settings.append(f"evaluate.split={plain.data.validation}")  # nothing is chosen here: the test split is not for that
    return (*settings, "evaluate.resamples=0", "evaluate.page=false", "trackers=[]")


def _cleared(home: Path) -> Path:
    """The folder, empty; one that this command has filled before is emptied."""
    if home.exists() and any(home.iterdir()):
        if not (home / PAGE).is_file():
            raise ConfigError(f"{home} holds something else than runs of verify-resume: name another with --out")
        shutil.rmtree(home)
    home.mkdir(parents=True, exist_ok=True)
    write_json(home / PAGE, None)
    return home


class _Bench:
    """Trains the same run again and again, always in the folder ``run``, so that its path is the same in every file."""

    def __init__(self, file: str, settings: tuple[str, ...], count: int, home: Path):
        self.job, self.count, self.home, self.run = starting.Job(file, settings), count, home, home / "run"
        self.config = read(Experiment, file, settings)
        self.forking = starting.forking(self.config)
        self.steps = 0  # of the whole run

    def whole(self) -> list[Moment]:
        """Train as nobody stops it; returns the moments of its processes.

        Raises:
            TrainingError: it does not get to its end.
        """
        self._uncut("whole", self.job._replace(notes=self.home))
        self.steps = read_json(self.home / "whole/last/state.json")["progress"]["total"]
        return noted(sorted(self.home.glob("moments-*.jsonl")))

    def repeated(self) -> list[str]:
        """In what a second run that nobody killed differs from the first."""
        self._uncut("again", self.job)
        return differences(self.home / "whole", self.home / "again")

    def _uncut(self, name: str, job: starting.Job) -> None:
        said = self.home / f"{name}.log"
        codes = starting.carry_out(job, self.count, said, starting.FRESH)
        if any(codes):
            raise TrainingError(f"the run that nobody kills did not get to its end: {starting.last_words(said)} (see {said})")
        self.run.rename(self.home / name)

    def killed(self, moment: Moment, place: Path) -> Checked:
        """Train, kill at a moment, resume to the end, compare; what differs stays in ``place``."""
        said = place.with_suffix(".log")
        codes = starting.carry_out(self.job._replace(fatal=(moment.rank, moment.number)), self.count, said, self.forking)
        happened, found = "", [f"it ended by itself before (exit codes {codes}, see {said})"]
        if codes[moment.rank] == -signal.SIGKILL:
            happened, resume = self._stands()
            codes = starting.carry_out(self.job._replace(resume=resume), self.count, said, self.forking)
            failed = [f"resuming failed: {starting.last_words(said)} (see {said})"]
            found = failed if any(codes) else differences(self.home / "whole", self.run)
        if found and self.run.exists():
            self.run.rename(place)
        else:
            shutil.rmtree(self.run, ignore_errors=True)
            said.unlink()
        return Checked(moment.words, moment.rank, happened, found)

    def _stands(self) -> tuple[str, bool]:
        """What a person finds after the kill: in words, and whether ``--resume`` is to be typed."""
        if (settle(self.run / "last") / "state.json").is_file():
            return f"went on from step {read_json(self.run / 'last/state.json')['progress']['total']}", True
        begun = stage(self.run, self.config.evaluate.split) != "new"
        return "nothing was saved: started again", begun


def as_json(proof: Proof) -> dict[str, Any]:
    """Plain data."""
    kills = [one._asdict() | {"equal": not one.differences} for one in proof.checked]
    return proof._asdict() | {"folder": str(proof.folder), "equal": proof.equal, "checked": kills}


def show(proof: Proof, console: Console) -> None:
    """A line a kill: where it fell, what happened, whether all is equal or what differs first."""
    same = sum(not one.differences for one in proof.checked)
    names = {
        "killed": [f"{one.kill}{f' (process {one.rank})' if proof.processes > 1 else ''}" for one in proof.checked],
        "then": [one.happened for one in proof.checked],
        "compared with the run that nobody killed": [_result(one.differences) for one in proof.checked],
    }
    notes = [f"{same} of {len(proof.checked)} equal to the bit, in {proof.seconds:.0f} s"]
    if not proof.equal:
        notes.append(f"what differs is in {proof.folder}, all names of it in {proof.folder / PAGE}")
    if proof.unstable:
        notes.append(f"two runs that nobody killed differ as well ({_result(proof.unstable)}): it need not come from resuming")
    title = f"{proof.steps} steps, {proof.processes} process{'es' * (proof.processes > 1)}"
    report.show([report.sheet(title, names, {}, notes)], console)


def _result(found: Sequence[str]) -> str:
    more = f", and {len(found) - 1} more" if len(found) > 1 else ""
    return f"{found[0]}{more}" if found else "equal"
