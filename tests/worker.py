"""Runs on one process or several: what tests/test_distributed.py compares."""

from __future__ import annotations

import json
import os
import shutil
from contextlib import suppress
from pathlib import Path

import torch
from accelerate import Accelerator, DistributedType, FullyShardedDataParallelPlugin
from accelerate.state import AcceleratorState, PartialState
from torch import distributed as dist

from mmkt import distributed, launch
from mmkt.config import check
from mmkt.experiment import Experiment
from mmkt.learner import Learner
from mmkt.parts import Parts
from mmkt.predictions import predict
from mmkt.run import Run
from mmkt.stop import Stopped
from mmkt.train import fit
from mmkt.types import Phase, Transfer


def curves(folder: Path, world: int) -> None:
    """Train every experiment of the folder; the log of each is left in its run."""
    for file in sorted(folder.glob("*.json")):
        config = check(Experiment, json.loads(file.read_text()), Parts())
        config = config.model_copy(update={"run": str(folder / f"{file.stem}-{world}")})
        setup = launch.build(config)
        accelerator = Accelerator()
        assert accelerator.num_processes == world, (accelerator.num_processes, world)
        run = Run(config.run, config, "tiny")
        fit(setup.learner, setup.feed, setup.parts.build("transfer", config.transfer), run, accelerator, config.train)
        accelerator.free_memory()


def trained(config: Experiment, world: int) -> None:
    """Train one experiment."""
    setup = launch.build(config)
    accelerator = Accelerator()
    assert accelerator.num_processes == world, (accelerator.num_processes, world)
    run = Run(config.run, config, "tiny")
    fit(setup.learner, setup.feed, setup.parts.build("transfer", config.transfer), run, accelerator, config.train)


class Thaw(Transfer):
    """Encoders frozen for the first half of the steps."""

    def phases(self, learner: Learner, steps: int) -> list[Phase]:
        return [Phase("probe", steps // 2, frozen=["encoders"]), Phase("full", steps - steps // 2)]


def sharded(folder: Path, world: int) -> None:
    """Train every experiment of the folder under FSDP2 (or plainly, on one process), through the real loop."""
    accelerator = Accelerator()
    assert accelerator.num_processes == world, (accelerator.num_processes, world)
    if world > 1:  # as where there are GPUs; on CPUs Accelerate makes DDP of it
        accelerator.state.fsdp_plugin = FullyShardedDataParallelPlugin(fsdp_version=2)
        PartialState._shared_state["distributed_type"] = DistributedType.FSDP
        assert AcceleratorState().is_fsdp2
    for file in sorted(folder.glob("*.json")):
        _train_sharded(accelerator, file, folder / f"{file.stem}-{world}")
    stopped = folder / "deaf_rank-stopped"
    if world > 1:
        with suppress(Stopped):
            _train_sharded(accelerator, folder / "deaf_rank.json", stopped, stop=4)
        for name in ("resumed", "crossed") if distributed.rank() == 0 else ():
            shutil.copytree(stopped, folder / f"deaf_rank-{name}")
        distributed.wait()
    _train_sharded(accelerator, folder / "deaf_rank.json", folder / f"deaf_rank-{'resumed' if world > 1 else 'crossed'}", stop=0)
    if world > 1:
        distributed.wait()
        # everything is written; taking FSDP2 down on gloo aborts now and then ("terminate called without an active exception")
        os._exit(0)


def _train_sharded(accelerator: Accelerator, file: Path, folder: Path, stop: int | None = None) -> None:
    """One run, evaluated; ``stop`` is the step after which it stops, 0 to resume it."""
    config = check(Experiment, json.loads(file.read_text()), Parts())
    setup = launch.build(config)
    transfer = Thaw() if file.stem == "thawed" else setup.parts.build("transfer", config.transfer)
    if config.train.checkpointing:
        launch.checkpoint_encoders(setup.learner, transfer.phases(setup.learner, 2))
    run = Run(folder, config, "tiny", resume=stop == 0)
    plain = run.log

    def log(values: dict) -> None:
        plain(values)
        if stop and values["step"] == stop:
            accelerator.set_trigger()

    run.log = log
    fit(setup.learner, setup.feed, transfer, run, accelerator, config.train, resumed=stop == 0)
    model = setup.learner.model
    assert distributed.is_sharded(model) == (accelerator.num_processes > 1)
    predictions = predict(model, setup.feed, setup.feed.rows("test"), device=accelerator.device)
    if distributed.rank() == 0:
        (folder / "logits.json").write_text(json.dumps(predictions.table["kind.logits"].to_pylist()))


def aligned(folder: Path, world: int) -> None:
    """One gradient of the contrastive objective, in float64; it goes to a file."""
    from mmkt.objectives.align import Align
    from mmkt.types import Batch, Encoded, Outputs

    if world > 1:
        dist.init_process_group("gloo")
    torch.manual_seed(0)
    every = {m: torch.randn(8, 5, dtype=torch.float64) for m in ("a", "b", "c")}
    there = {m: torch.rand(8) > 0.3 for m in every}
    rank = distributed.rank()
    mine = slice(rank * 8 // world, (rank + 1) * 8 // world)
    leaves = {m: x[mine].clone().requires_grad_() for m, x in every.items()}
    present = {m: p[mine] for m, p in there.items()}
    row = torch.arange(8)[mine]
    batch = Batch({}, present, {}, {}, {}, row, row, row, row)
    objective = Align(5, list(every), {}, []).double()
    encoded = {m: Encoded.of(x, present[m]) for m, x in leaves.items()}
    total = objective(None, batch, Outputs(encoded, encoded["a"], {}, {}, {}))
    total.backward()
    # each process's rows have their gradient from all processes' losses; the scale's is summed by the wrapper
    value = {
        "loss": distributed.everyone(float(total.detach())),
        "scale": distributed.everyone(float(objective.log_scale.grad)),
        "grad": distributed.everyone({m: x.grad.tolist() for m, x in leaves.items()}),
        "count": distributed.everyone(int(objective.count(batch))),
    }
    if rank == 0:
        (folder / f"align-{world}.out").write_text(json.dumps(value))
    if world > 1:
        dist.destroy_process_group()
