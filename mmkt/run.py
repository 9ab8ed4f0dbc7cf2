"""A run's folder: what it was started with, its log, its checkpoints. It is never overwritten in silence."""

from __future__ import annotations

import json
import platform
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from mmkt import checkpoint, distributed
from mmkt.checkpoint import CheckpointError, read_json, settle, write_json, write_text
from mmkt.config import dump, revive
from mmkt.experiment import Experiment

PACKAGES = ("mmkt", "torch", "torchaudio", "torchvision", "transformers", "timm", "accelerate", "pyarrow", "numpy")


# what a run leaves that ended before its first logged step: there is nothing to lose, another may take its place
BEFORE_A_STEP = {"config.json", "environment.json", "bad_rows.jsonl", "tensorboard"}


class Run:
    """``FOLDER/{config.json, environment.json, metrics.jsonl, best/, last/, kept/, tensorboard/}``.

    A run that was cut off before anything was saved starts again from its first step when it is resumed: whoever submits the
    same command again and again need not know how far it came. ``resumed`` says whether there is a state to continue from.

    Args:
        folder: where it is.
        config: the resolved experiment.
        fingerprint: of the manifest.
        resume: continue what is there; otherwise the folder has to be new, or of a run that made no step.

    Raises:
        CheckpointError: the folder has something and ``resume`` is off; or it is resumed with other settings or data.
    """

    def __init__(self, folder: Path | str, config: Experiment, fingerprint: str, *, resume: bool = False):
        self.folder = Path(folder)
        problem = distributed.from_first(self._problem(config, fingerprint, resume))
        if problem:
            raise CheckpointError(problem)
        self.resumed = distributed.from_first(resume and (self.last.exists() or (self.folder / "kept").exists()))
        if distributed.rank() == 0:
            self.folder.mkdir(parents=True, exist_ok=True)
            if resume:
                checkpoint.tidy(self.folder / "best")
            if resume and not self.resumed:
                distributed.say(f"nothing was saved in {self.folder}: it starts again from its first step")
                shutil.rmtree(self.folder / "best", ignore_errors=True)
                self.rewind(0)
            write_json(self.folder / "environment.json", environment() | {"seed": config.seed, "data": fingerprint})
            if not resume:  # last: where it lies, a run can be resumed
                write_text(self.folder / "config.json", dump(config))
        distributed.wait()

    def _problem(self, config: Experiment, fingerprint: str, resume: bool) -> str | None:
        there = {file.name.removesuffix(".new") for file in self.folder.iterdir()} if self.folder.exists() else set()
        if there <= BEFORE_A_STEP and not (resume and (self.folder / "config.json").is_file()):
            return f"there is no run to resume in {self.folder}: leave --resume out" if resume else None
        if not resume:
            return f"{self.folder} has a run already: --resume continues it, run=OTHER starts another, or delete the folder"
        if problem := changed(self.folder, config):
            return problem
        if read_json(self.folder / "environment.json")["data"] != fingerprint:
            return f"the manifest has changed since {self.folder} was started: give run=OTHER"
        return None

    @property
    def best(self) -> Path:
        """The checkpoint that validation chose."""
        return settle(self.folder / "best")

    @property
    def last(self) -> Path:
        """The state to resume from."""
        return settle(self.folder / "last")

    def log(self, values: dict[str, Any]) -> None:
        """Add a line to metrics.jsonl (rank 0)."""
        if distributed.rank() == 0:
            with (self.folder / "metrics.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps(values) + "\n")

    def rewind(self, step: int) -> None:
        """Drop what was logged after a step that training continues from (rank 0)."""
        path = self.folder / "metrics.jsonl"
        if distributed.rank() == 0 and path.exists():
            lines = [line for line in path.read_text(encoding="utf-8").splitlines() if _step(line) <= step]
            write_text(path, "".join(f"{line}\n" for line in lines))


def stage(folder: Path, split: str) -> Literal["new", "begun", "saved", "ended"]:
    """Where a run stands: nothing there, nothing saved yet, a state to resume from, or its best evaluated on a split.

    A checkpoint of an unfinished run can be evaluated too, but only a training's end writes the card beside it.
    """
    best = settle(folder / "best")
    if (best / "README.md").is_file() and (best / f"evaluation-{split}" / "metrics.jsonl").is_file():
        return "ended"
    if (settle(folder / "last") / "state.json").is_file():
        return "saved"
    return "begun" if (folder / "config.json").is_file() else "new"


def changed(folder: Path, config: Experiment) -> str | None:
    """What sets a config apart from the one that a run was started with, in words; None if nothing does."""
    # settings that did not exist when it was started have their defaults
    before = flat(json.loads(dump(revive(Experiment, read_json(folder / "config.json"), config.plugins))))
    now = flat(json.loads(dump(config)))
    names = [name for name, value in now.items() if before.get(name) != value and name != "threads"]  # of the machine
    return f"{folder} was started with another {', '.join(names[:5])}: resume it unchanged, or give run=OTHER" if names else None


def _step(line: str) -> float:
    """The step of a log line; a line that a kill cut short counts as late."""
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError):
        return float("inf")


def flat(value: Any, path: str = "") -> dict[str, Any]:
    """Settings by their dotted path."""
    if isinstance(value, dict) and value:
        return {k: v for key, inner in value.items() for k, v in flat(inner, f"{path}.{key}" if path else key).items()}
    return {path: value}


def environment() -> dict[str, Any]:
    """Versions, machine, git state and command line."""

    def git(*arguments: str) -> str | None:
        done = subprocess.run(["git", *arguments], capture_output=True, text=True, cwd=Path(__file__).parent, check=False)
        return done.stdout.strip() if done.returncode == 0 else None

    versions = {name: metadata.version(name) for name in PACKAGES}
    state = {"commit": git("rev-parse", "HEAD"), "changed": bool(git("status", "--porcelain", "--untracked-files=no"))}
    machine = {"python": platform.python_version(), "machine": platform.platform(), "processes": distributed.world_size()}
    return {"versions": versions, "git": state, **machine, "command": sys.argv}
