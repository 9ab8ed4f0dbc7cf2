"""What the launcher and the machine give a run, and what of it mmkt refuses."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Sequence

import torch
from accelerate import Accelerator

from mmkt.parts import ConfigError


def use_threads(accelerator: Accelerator, threads: int | None) -> None:
    """Give a process that is alone on a CPU its threads; several processes keep what their launcher set."""
    if accelerator.device.type == "cpu" and accelerator.num_processes == 1:
        torch.set_num_threads(threads or os.cpu_count() or 1)


def refuse_sharding() -> None:
    """Refuse launchers that split the model over processes, before they do anything.

    Saving, resuming and evaluating read whole tensors by name; under these each process holds a part of them.
    """
    for name in ("FSDP", "DEEPSPEED", "MEGATRON_LM", "PARALLELISM_CONFIG"):
        if os.environ.get(f"ACCELERATE_USE_{name}", "false").lower() in ("true", "1"):
            words = (
                f"the launcher's config asks for {name}, which splits the model over processes; mmkt train does not support it"
            )
            raise ConfigError(
                f"{words}. Give accelerate launch --config_file configs/accelerate/ddp.yaml, or single.yaml, or cpu.yaml"
            )


def refuse_absent(trackers: Sequence[str]) -> None:
    """Refuse trackers whose package is not installed (Accelerate would leave them out in silence)."""
    for name in trackers:
        packages = ("tensorboard", "tensorboardX") if name == "tensorboard" else (name,)
        if not any(importlib.util.find_spec(package) for package in packages):
            raise ConfigError([("trackers", f"{name} is not installed: pip install {name}, or leave it out (trackers=[])")])
