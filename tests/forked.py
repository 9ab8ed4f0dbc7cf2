"""Processes for tests, without the seconds that importing takes each: a server imports once, every process is its fork.

What a launcher does, a test with a launcher tests; here the processes have what torchrun's would find in their environment.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import socket
import sys
import time
from collections.abc import Callable
from multiprocessing import connection, forkserver
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from unittest import mock

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    [
        "worker",
        "mmkt.encoders.borrow",
        "mmkt.encoders.hf_text",
        "mmkt.encoders.spectrogram",
        "mmkt.encoders.table",
        "mmkt.encoders.timm_image",
        "mmkt.verify.processes",
        "pandas",
        "torch.distributed.fsdp",
        "transformers.models.bert.modeling_bert",
        "transformers.models.auto.tokenization_auto",
    ]
)


def context() -> BaseContext:
    """Of the server, which runs by then."""
    with mock.patch.dict(os.environ, PYTHONPATH=os.pathsep.join(sys.path)):  # the server finds what this process finds
        forkserver.ensure_running()
    return CONTEXT


def begun(function: Callable[..., None], *arguments: object, said: Path, **environment: str) -> BaseProcess:
    """A process at work on a function; what it prints goes to the file ``said``."""
    process = context().Process(target=_work, args=(function, arguments, environment, said))
    process.start()
    return process


def together(world: int, function: Callable[..., None], *arguments: object, said: Path, timeout: float = 300) -> None:
    """So many processes at work on a function, until all have ended well; what they print goes to the folder ``said``."""
    with socket.socket() as place:
        place.bind(("127.0.0.1", 0))
        port = place.getsockname()[1]
    processes, files = [], [said / f"{function.__name__}-{world}-{rank}.said" for rank in range(world)]
    for rank in range(world):
        where = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world, "MASTER_PORT": port}
        told = {name: str(value) for name, value in where.items()} | {"MASTER_ADDR": "127.0.0.1"} if world > 1 else {}
        processes.append(begun(function, *arguments, said=files[rank], ACCELERATE_USE_CPU="1", **told))
    deadline = time.monotonic() + timeout
    while (running := [p for p in processes if p.is_alive()]) and time.monotonic() < deadline:
        connection.wait([p.sentinel for p in running], deadline - time.monotonic())
        if any(p.exitcode for p in processes):
            break
    codes = [p.exitcode for p in processes]
    for process in processes:
        process.kill()
        process.join()
    assert codes == [0] * world, "\n".join(file.read_text()[-3000:] for file in files)


def _work(function: Callable[..., None], arguments: tuple, environment: dict[str, str], said: Path) -> None:
    import torch

    os.environ.update(environment)
    with said.open("wb") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    torch.set_num_threads(1)
    gc.freeze()
    function(*arguments)
