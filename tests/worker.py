"""Runs on one process or several: what tests/test_distributed.py compares."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from itertools import product
from pathlib import Path

import torch
from accelerate import Accelerator, DistributedType, FullyShardedDataParallelPlugin
from accelerate.state import AcceleratorState, PartialState
from torch import distributed as dist
from torch import nn
from torch.distributed.fsdp import CPUOffloadPolicy, OffloadPolicy
from torch.utils.checkpoint import checkpoint

from mmkt import distributed, launch, planning
from mmkt.config import check
from mmkt.experiment import Experiment
from mmkt.learner import Learner
from mmkt.parts import Parts
from mmkt.predictions import predict
from mmkt.run import Run
from mmkt.stop import Stopped
from mmkt.train import fit
from mmkt.types import Phase, Transfer


def curves(folder: Path, world: int, names: Sequence[str]) -> None:
    """Train experiments of the folder; the log of each is left in its run."""
    for file in (folder / f"{name}.json" for name in names):
        config = check(Experiment, json.loads(file.read_text()), Parts())
        config = config.model_copy(update={"run": str(folder / f"{file.stem}-{world}")})
        setup = launch.build(config)
        accelerator = Accelerator()
        assert accelerator.num_processes == world, (accelerator.num_processes, world)
        run = Run(config.run, config, "tiny")
        fit(setup.learner, setup.feed, launch.plan_of(setup, config), run, accelerator, config.train)
        accelerator.free_memory()


def trained(config: Experiment, world: int) -> None:
    """Train one experiment."""
    setup = launch.build(config)
    accelerator = Accelerator()
    assert accelerator.num_processes == world, (accelerator.num_processes, world)
    run = Run(config.run, config, "tiny")
    fit(setup.learner, setup.feed, launch.plan_of(setup, config), run, accelerator, config.train)


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
    if accelerator.is_fsdp2:  # one of them with shards that are kept apart from the device (here it is the CPU as well)
        accelerator.state.fsdp_plugin.cpu_offload = CPUOffloadPolicy(pin_memory=False) if file.stem == "long" else OffloadPolicy()
    plan = Thaw().phases(setup.learner, config.train.steps) if file.stem == "thawed" else launch.plan_of(setup, config)
    if config.train.checkpointing:
        planning.checkpoint_encoders(setup.learner, plan)
    run = Run(folder, config, "tiny", resume=stop == 0)
    plain = run.log

    def log(values: dict) -> None:
        plain(values)
        if stop and values["step"] == stop:
            accelerator.set_trigger()

    run.log = log
    fit(setup.learner, setup.feed, plan, run, accelerator, config.train, resumed=stop == 0)
    model = setup.learner.model
    assert distributed.is_sharded(model) == (accelerator.num_processes > 1)
    predictions = predict(model, setup.feed, setup.feed.rows("test"), device=accelerator.device)
    if distributed.rank() == 0:
        (folder / "logits.json").write_text(json.dumps(predictions.table["kind.logits"].to_pylist()))


def contrasted(folder: Path, world: int) -> None:
    """Gradients of contrastive objectives in float64, by what is asked; they go to a file.

    Rows are dealt as a batch is; what encodes them is read row by row, and computed again, where that is asked.
    """
    from mmkt.objectives.align import Align
    from mmkt.objectives.symile import Symile

    if world > 1:
        dist.init_process_group("gloo")
    found = {}
    forms: dict = {"plain": {}, "chunked": {"chunk": 2}, "ring": {"exchange": "ring"}, "gradcache": {}}
    ways = ("infonce", "sigmoid", "symile")
    for names, way, (form, settings), remote in product(("ab", "abc"), ways, forms.items(), (True, False)):
        if (way == "symile" and (form == "ring" or not remote)) or (not remote and form != "plain"):
            continue
        told = {"bias": -2.0} if way == "sigmoid" else {}
        part = Symile if way == "symile" else partial(Align, loss=way, temperature=0.2, remote=remote, **told)
        objective = part(5, list(names), {}, [], **settings).double()
        asked = json.dumps({"names": names, "way": way, "form": form, "remote": remote}, sort_keys=True)
        found[asked] = _contrasted(objective, names, world, again=form == "gradcache")
    if distributed.rank() == 0:
        (folder / f"contrast-{world}.out").write_text(json.dumps(found))
    if world > 1:
        dist.destroy_process_group()


def sized(folder: Path, world: int) -> None:
    """The batch size that is found where a process runs out of memory before the others do; every process's goes to a file."""
    from mmkt import batch_size
    from mmkt.objectives.classify import Classify

    config = check(Experiment, json.loads((folder / "experiment.json").read_text()), Parts())
    accelerator = Accelerator()
    setup = launch.build(config)
    plain, limit = Classify.forward, 5 if distributed.rank() == 1 else 8

    def forward(self, model, batch, outputs):
        if batch.size > limit:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")
        return plain(self, model, batch, outputs)

    Classify.forward = forward
    found = batch_size.find(setup.learner, setup.feed, launch.plan_of(setup, config), config.train, accelerator)
    (folder / f"{distributed.rank()}.size").write_text(str(found))
    distributed.wait()


def _contrasted(objective: nn.Module, names: str, world: int, *, again: bool) -> dict:
    from mmkt.types import Batch, Encoded, Outputs

    torch.manual_seed(0)
    every = {m: torch.randn(8, 5, dtype=torch.float64) for m in names}
    there = {m: torch.rand(8) > 0.3 for m in every}
    maps = {m: nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 5)).double() for m in names}
    mine = slice(distributed.rank(), None, world)
    leaves = {m: x[mine].clone().requires_grad_() for m, x in every.items()}
    row, present, made = torch.arange(8)[mine], {m: p[mine] for m, p in there.items()}, {}
    batch = Batch({}, present, {}, {}, {}, row, row, row, row)
    for m, x in leaves.items():
        parts = [checkpoint(maps[m], part, use_reentrant=False) for part in x.split(1)] if again else [maps[m](x)]
        made[m] = Encoded.of(torch.cat(parts), present[m])
    total = objective(None, batch, Outputs(made, made[names[0]], {}, {}, {}))
    total.backward()
    own = {f"{m}.{n}": p for m, net in maps.items() for n, p in net.named_parameters()} | dict(objective.named_parameters())
    # a process's rows have their gradient from all processes' losses; what is shared is summed by the wrapper
    summed = {n: distributed.total(torch.zeros_like(p) if p.grad is None else p.grad).tolist() for n, p in own.items()}
    rows = {m: distributed.everyone(x.grad.tolist()) for m, x in leaves.items()}
    dealt = {m: [parts[k % world][k // world] for k in range(8)] for m, parts in rows.items()}
    loss, count = float(total.detach()), int(objective.count(batch))
    return {"loss": sum(distributed.everyone(loss)), "grads": summed | dealt, "count": sum(distributed.everyone(count))}


class Named:
    """As much of a learner as a step of ``momentum`` without averages asks for."""

    def named(self) -> dict:
        return {}


def uneven(folder: Path, world: int) -> None:
    """Losses of seven rows in evaluation, of which processes have more or fewer, and a queue after a step; they go to a file."""
    from mmkt.objectives.align import Align
    from mmkt.objectives.momentum import Momentum
    from mmkt.objectives.symile import Symile
    from mmkt.types import Batch, Encoded, Outputs

    if world > 1:
        dist.init_process_group("gloo")
    names, found = list("abc"), {}
    parts = {
        "gather": Align(5, names, {}, []),
        "ring": Align(5, names, {}, [], exchange="ring", chunk=1),
        "sigmoid": Align(5, names, {}, [], loss="sigmoid"),
        "symile": Symile(5, names, {}, []),
        "momentum": Momentum(5, names, {}, [], queue=5),
    }
    for (name, objective), rows in product(parts.items(), (7, 8)):
        torch.manual_seed(0)
        every = {m: torch.randn(rows, 5, dtype=torch.float64) for m in names}
        there = {m: torch.rand(rows) > 0.2 for m in names}
        mine = slice(distributed.rank(), None, world)
        row, present = torch.arange(100, 100 + rows)[mine], {m: x[mine] for m, x in there.items()}
        batch = Batch({}, present, {}, {}, {}, row, row, row, row)
        encoded = {m: Encoded.of(x[mine], present[m]) for m, x in every.items()}
        outputs = Outputs(encoded, encoded["a"], {}, {}, {})
        objective.double().train(rows == 8)
        taught = ({m: x[mine].flip(1) for m, x in every.items()},) if name == "momentum" else ()
        loss = objective._summed(batch, outputs, *taught)
        found[f"{name} {rows}"] = sum(distributed.everyone(float(loss.detach())))
    momentum = parts["momentum"]
    momentum.stepped(Named(), 0.5)
    found["queue"] = [momentum.rows.tolist(), momentum.keys_a.tolist(), momentum.there_b.tolist()]
    if distributed.rank() == 0:
        (folder / f"uneven-{world}.out").write_text(json.dumps(found))
    if world > 1:
        dist.destroy_process_group()
