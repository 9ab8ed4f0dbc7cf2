"""Runs on one process or several (torchrun): what tests/test_distributed.py compares."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import distributed as dist

from mmkt import launch
from mmkt.config import check
from mmkt.experiment import Experiment
from mmkt.parts import Parts
from mmkt.run import Run
from mmkt.train import fit


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


def sharded(folder: Path, world: int) -> None:
    """Twenty steps of raw FSDP2 (or none, on one process); the losses go to a file."""
    from torch.distributed.fsdp import fully_shard

    config = check(Experiment, json.loads((folder / "fsdp.json").read_text()), Parts())
    if world > 1:
        dist.init_process_group("gloo")
        assert dist.get_world_size() == world
    setup = launch.build(config)
    learner = setup.learner
    learner.train()
    if world > 1:
        for encoder in learner.model.encoders.values():
            fully_shard(encoder)
        fully_shard(learner)
    optimizer = torch.optim.AdamW(learner.parameters(), lr=3e-4)  # as the curves: faster, rounding alone reaches 1e-5
    losses = []
    for batch in setup.feed.training(0, 20):
        counts = learner.counts([batch])
        loss, means = learner(batch, counts)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if world > 1:
            dist.all_reduce(means)
        losses.append(means.tolist())
    if world == 1 or dist.get_rank() == 0:
        (folder / f"fsdp-{world}.out").write_text(json.dumps(losses))
    if world > 1:
        dist.barrier()
        # everything is written; taking FSDP2 down on gloo aborts now and then ("terminate called without an active exception")
        os._exit(0)


def aligned(folder: Path, world: int) -> None:
    """One gradient of the contrastive objective, in float64; it goes to a file."""
    from mmkt import distributed
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
        "loss": distributed.everyone(float(total)),
        "scale": distributed.everyone(float(objective.log_scale.grad)),
        "grad": distributed.everyone({m: x.grad.tolist() for m, x in leaves.items()}),
        "count": distributed.everyone(int(objective.count(batch))),
    }
    if rank == 0:
        (folder / f"align-{world}.out").write_text(json.dumps(value))
    if world > 1:
        dist.destroy_process_group()


if __name__ == "__main__":
    torch.set_num_threads(1)
    {"curves": curves, "sharded": sharded, "aligned": aligned}[sys.argv[1]](Path(sys.argv[2]), int(sys.argv[3]))
