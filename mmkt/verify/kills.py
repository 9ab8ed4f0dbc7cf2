"""Where a kill can fall, and how it comes: a process notes the moments it goes through, and ends at one of them."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from safetensors.torch import save
from torch.optim.optimizer import register_optimizer_step_pre_hook

from mmkt import checkpoint, distributed
from mmkt.run import Run
from mmkt.telemetry import Meter

KINDS = ("step", "write", "sync", "between renames", "renamed", "pruning", "update", "log", "keeping")


class Moment(NamedTuple):
    """Of a run's process."""

    rank: int
    number: int  # among all of its process
    kind: str  # of KINDS
    words: str


class Trail:
    """What a process goes through.

    Args:
        run: the folder whose files count.
        file: gets a line a moment; None to note nothing.
        fatal: the number of the moment at which the process ends as ``kill -9`` ends it; None for none.
    """

    def __init__(self, run: Path, file: Path | None = None, fatal: int | None = None):
        self.run, self.file, self.fatal = run, file, fatal
        self.count, self.step = 0, 0

    def ends(self, kind: str, words: str) -> bool:
        """Note a moment; whether it is the last."""
        if self.file:
            moment = Moment(distributed.rank(), self.count, kind, words)
            with self.file.open("a", encoding="utf-8") as file:
                file.write(json.dumps(moment) + "\n")
        self.count += 1
        return self.count - 1 == self.fatal

    def name(self, path: Path | str) -> str:
        """A path within the run, as it will be called; empty for one that lies elsewhere."""
        path = Path(path)
        if not path.is_relative_to(self.run):
            return ""
        return "/".join(part.removesuffix(".new") for part in path.relative_to(self.run).parts)


def noted(files: Iterable[Path]) -> list[Moment]:
    """What processes have noted."""
    return [Moment(*json.loads(line)) for file in files for line in file.read_text(encoding="utf-8").splitlines()]


def choose(moments: Sequence[Moment], kills: int, seed: int) -> list[Moment]:
    """Moments to kill at: one kill falls before the second half of the steps; several are drawn, of every kind in turn.

    Args:
        moments: of the run that nobody killed.
        kills: how many.
        seed: of the draw.
    """
    if kills == 1:
        steps = [moment for moment in moments if moment.kind == "step" and moment.rank == 0]
        return [steps[len(steps) // 2]]
    draw, by_kind = random.Random(seed), defaultdict[str, list[Moment]](list)
    for moment in moments:
        by_kind[moment.kind].append(moment)
    for some in by_kind.values():
        draw.shuffle(some)
    found: list[Moment] = []
    while len(found) < min(kills, len(moments)):
        found += [by_kind[kind].pop() for kind in KINDS if by_kind[kind]]
    return found[:kills]


def watch(trail: Trail) -> None:
    """Have this process note what it goes through, and end where it should; for good."""
    _watch_steps(trail)
    _watch_files(trail)
    _watch_folders(trail)


def _end() -> NoReturn:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("SIGKILL cannot be caught")


def _around(owner: Any, name: str, made: Callable[[Callable], Callable]) -> None:
    setattr(owner, name, made(getattr(owner, name)))


def _watch_steps(trail: Trail) -> None:
    def take(plain: Callable) -> Callable:
        def found(*arguments: Any, **named: Any) -> Any:
            trail.step += 1
            if trail.ends("step", f"at the start of step {trail.step}"):
                _end()
            return plain(*arguments, **named)

        return found

    def update(*_: Any) -> None:
        if trail.ends("update", f"in step {trail.step}, before the weights move"):
            _end()

    def log(plain: Callable) -> Callable:
        def found(run: Run, values: dict[str, Any]) -> None:
            if distributed.rank() == 0 and trail.ends("log", f"half a line of metrics.jsonl written after step {trail.step}"):
                line = json.dumps(values)
                with (run.folder / "metrics.jsonl").open("a", encoding="utf-8") as file:
                    file.write(line[: len(line) // 2])
                _end()
            plain(run, values)

        return found

    _around(Meter, "take", take)
    register_optimizer_step_pre_hook(update)
    _around(Run, "log", log)


def _watch_files(trail: Trail) -> None:
    def write(plain: Callable) -> Callable:
        def found(tensors: dict[str, Any], file: Path) -> None:
            name = trail.name(file)
            if name and trail.ends("write", f"half of {name} written after step {trail.step}"):
                whole = save(tensors)
                Path(file).write_bytes(whole[: len(whole) // 2])
                _end()
            plain(tensors, file)

        return found

    def sync(plain: Callable) -> Callable:
        def found(path: Path) -> None:
            name = trail.name(path)
            if name and trail.ends("sync", f"before {name} is flushed to the disk after step {trail.step}"):
                _end()
            plain(path)

        return found

    _around(checkpoint, "save_file", write)
    _around(checkpoint, "_sync", sync)


def _watch_folders(trail: Trail) -> None:
    def rename(plain: Callable) -> Callable:
        def found(path: Path, target: Path) -> Path:
            name, when, old = trail.name(target), f"after step {trail.step}", Path(f"{target}.old")
            new = name and path.name.endswith(".new")
            if new and old.exists() and trail.ends("between renames", f"{name} moved away, the new one not yet there {when}"):
                _end()
            if name.startswith("kept/") and path.name.endswith(".old") and trail.ends("keeping", f"before {name} is put there"):
                _end()
            moved = plain(path, target)
            if new and trail.ends("renamed", f"{name} in its place, the old one still there {when}"):
                _end()
            return moved

        return found

    def remove(plain: Callable) -> Callable:
        def found(path: Path, *arguments: Any, **named: Any) -> None:
            files = [file for file in sorted(Path(path).rglob("*")) if file.is_file()] if trail.name(path) else []
            if files and trail.ends("pruning", f"half of {trail.name(path)} removed after step {trail.step}"):
                for file in files[: max(1, len(files) // 2)]:
                    file.unlink()
                _end()
            plain(path, *arguments, **named)

        return found

    _around(Path, "rename", rename)
    _around(shutil, "rmtree", remove)
