"""What the launcher and the machine give a run, and what of it mmkt refuses."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Sequence

import torch
from accelerate import Accelerator, DistributedType, PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import parse_flag_from_env

from mmkt import distributed
from mmkt.parts import ConfigError

FSDP2 = "accelerate launch --config_file configs/accelerate/fsdp2.yaml"
LAUNCHED = {  # what a launcher tells its processes
    *("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"),
    *(f"{of}_{what}" for of in ("LOCAL", "GROUP", "ROLE") for what in ("RANK", "WORLD_SIZE", "NAME")),
}
ONLY = {  # settings of FSDP, as accelerate launch hands them on: the only value, and why
    "FSDP_VERSION": ("2", "FSDP1 flattens parameters, which then have no names to save them by"),
    "FSDP_AUTO_WRAP_POLICY": ("no_wrap", "mmkt wraps each encoder's layers itself"),
    "FSDP_CPU_RAM_EFFICIENT_LOADING": ("false", "encoders are built with their weights in every process"),
    "FSDP_IGNORED_MODULES": ("none", "every parameter is sharded"),
    "FSDP_ACTIVATION_CHECKPOINTING": ("false", "train.checkpointing: true does it, in the experiment"),
}


def use_threads(accelerator: Accelerator, threads: int | None) -> None:
    """Give a process that is alone on a CPU its threads; several processes keep what their launcher set."""
    if accelerator.device.type == "cpu" and accelerator.num_processes == 1:
        torch.set_num_threads(threads or os.cpu_count() or 1)


def forget_precision() -> None:
    """Let the next Accelerator of this process have another precision than the one before, whose state would refuse it."""
    AcceleratorState._reset_state()


def lead() -> int:
    """How many processes were launched, on the first of them, which leads a study and is then a process by itself; else 0.

    A study's trainings are spread over devices one by one, none over several: its other processes have nothing to do.

    Raises:
        ConfigError: they are on several machines.
    """
    world, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    if world != int(os.environ.get("LOCAL_WORLD_SIZE", world)):
        raise ConfigError(
            "a study on several machines is launched on each by itself, with --part 1/2, --part 2/2 … and one folder"
        )
    for name in [name for name in os.environ if name in LAUNCHED or name.startswith("TORCHELASTIC_")]:
        del os.environ[name]
    return 0 if rank else world


def join() -> None:
    """Find the other processes before there is an Accelerator.

    PartialState by itself does not read what a launcher says of CPUs. It would tell the Accelerator that there is one process,
    and several would train apart.
    """
    PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"))


def refuse_apart(accelerator: Accelerator) -> None:
    """Refuse several processes that would each train by itself.

    Raises:
        ConfigError: they were started without a word on the devices they have.
    """
    if distributed.world_size() > 1 and accelerator.distributed_type == DistributedType.NO:
        words = f"{distributed.world_size()} processes were started, but each would train by itself"
        raise ConfigError(f"{words}: start them with accelerate launch --config_file configs/accelerate/cpu.yaml (or ddp.yaml)")


def refuse_sharding() -> None:
    """Refuse launchers that split the model in another way than mmkt does, before they do anything.

    Raises:
        ConfigError: it is not FSDP2, or FSDP2 with settings for what mmkt does itself.
    """
    for name in ("DEEPSPEED", "MEGATRON_LM", "PARALLELISM_CONFIG"):
        if _asked(name):
            words = f"the launcher's config asks for {name}, which mmkt train does not support: to split the model over processes"
            zero = " (as ZeRO-3; as ZeRO-2 with fsdp_reshard_after_forward: false)" if name == "DEEPSPEED" else ""
            raise ConfigError(f"{words}, give {FSDP2}{zero}; to keep it whole, ddp.yaml beside it")
    if _asked("FSDP"):
        problems = []
        for name, (only, why) in ONLY.items():
            found = os.environ.get(name, "1" if name == "FSDP_VERSION" else only).lower()
            if found != only:
                problems.append((f"fsdp_config.{name.lower()}", f"is {found}: set {only} ({why})"))
        if problems:
            raise ConfigError([*problems, ("", f"{FSDP2} has it so")])


def say_if_whole(accelerator: Accelerator) -> None:
    """Say so where FSDP was asked for and Accelerate makes DDP of it."""
    if _asked("FSDP") and not accelerator.is_fsdp2:
        distributed.say("FSDP needs GPUs: on CPUs every process keeps the whole model (DDP)")


def _asked(name: str) -> bool:
    return os.environ.get(f"ACCELERATE_USE_{name}", "false").lower() in ("true", "1")


def refuse_absent(trackers: Sequence[str]) -> None:
    """Refuse trackers whose package is not installed (Accelerate would leave them out in silence)."""
    for name in trackers:
        packages = ("tensorboard", "tensorboardX") if name == "tensorboard" else (name,)
        if not any(importlib.util.find_spec(package) for package in packages):
            raise ConfigError([("trackers", f"{name} is not installed: pip install {name}, or leave it out (trackers=[])")])
