"""A training in processes of its own, which may be killed: each is the fork of a server that has imported everything once."""

from __future__ import annotations

import gc
import multiprocessing
import os
import random
import signal
import socket
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from multiprocessing import connection
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from mmkt import launch
from mmkt.config import read
from mmkt.experiment import Experiment
from mmkt.verify import kills

FRESH: BaseContext = multiprocessing.get_context("spawn")  # started as a person would: Python's hashes have another seed


class Job(NamedTuple):
    """What the processes train."""

    config: str  # the file
    settings: tuple[str, ...]  # key=value
    resume: bool = False
    notes: Path | None = None  # a folder where each process notes its moments
    fatal: tuple[int, int] | None = None  # rank and number of the moment at which a process ends


def forking(config: Experiment) -> BaseContext:
    """Whose processes start within milliseconds: the server imports what the experiment's encoders need."""
    context = multiprocessing.get_context("forkserver")
    names = [f"mmkt.encoders.{spec['name']}" for spec in config.model.encoders.values()]  # of plugins: not found, and left out
    context.set_forkserver_preload(["mmkt.verify.processes", "pandas", *names])  # pyarrow looks for pandas
    return context


def carry_out(job: Job, processes: int, said: Path, context: BaseContext) -> list[int]:
    """Train; where one process ends badly, the others are killed, as launchers do.

    Args:
        job: what.
        processes: how many.
        said: a file for what they print.
        context: how processes are started.

    Returns:
        Their exit codes; of what a signal ended, its number below zero.
    """
    ranks: list[BaseProcess] = []
    method = multiprocessing.get_start_method()
    try:
        for told in environments(processes):
            ranks.append(context.Process(target=_work, args=(job, told, said, method)))  # type: ignore[attr-defined]
            ranks[-1].start()
        while (running := [rank for rank in ranks if rank.exitcode is None]) and not any(rank.exitcode for rank in ranks):
            connection.wait([rank.sentinel for rank in running])
            time.sleep(0.01)  # the code follows
    finally:
        for rank in ranks:
            _sweep(rank)
    return [rank.exitcode if rank.exitcode is not None else -signal.SIGKILL for rank in ranks]


def _sweep(rank: BaseProcess) -> None:
    """End a process that is still at work, and the data workers that a killed one leaves behind."""
    if rank.pid is not None:
        if rank.exitcode is None:
            rank.kill()
        rank.join()
        with suppress(ProcessLookupError, PermissionError):  # nobody is left
            os.killpg(rank.pid, signal.SIGKILL)


def environments(processes: int) -> list[dict[str, str]]:
    """What each process would find in its environment, had torchrun started it."""
    if processes == 1:
        return [{}]
    with socket.socket() as place:
        place.bind(("127.0.0.1", 0))
        port = place.getsockname()[1]
    shared = {"WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    if torch.cuda.device_count() < processes:
        shared["ACCELERATE_USE_CPU"] = 1
    return [
        {name: str(value) for name, value in (shared | {"RANK": rank, "LOCAL_RANK": rank}).items()} for rank in range(processes)
    ]


def _work(job: Job, environment: dict[str, str], said: Path, method: str) -> None:
    os.setpgid(0, 0)  # with its data workers: see _sweep
    multiprocessing.set_start_method(method, force=True)  # of data workers; else they would be started as this process was
    os.environ.update(environment)
    with said.open("ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    if environment:
        torch.set_num_threads(1)
    gc.freeze()  # what was imported is no garbage: looking through it takes longer than a small training
    random.seed()  # a fork would draw what its server draws, a process that somebody starts does not
    np.random.seed()
    _watch(job, int(environment.get("RANK", "0")))
    try:
        launch.train(read(Experiment, job.config, job.settings), resume=job.resume)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


def _watch(job: Job, rank: int) -> None:
    fatal = job.fatal[1] if job.fatal and job.fatal[0] == rank else None
    if job.notes is None and fatal is None:
        return
    run = Path(read(Experiment, job.config, job.settings).run)
    kills.watch(kills.Trail(run, job.notes / f"moments-{rank}.jsonl" if job.notes else None, fatal))


def last_words(said: Path) -> str:
    """The last line that says something."""
    lines: Sequence[Any] = [line.strip() for line in said.read_text(encoding="utf-8", errors="replace").splitlines()]
    return next((line for line in reversed(lines) if line), "nothing was said")
