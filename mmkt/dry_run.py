"""What a training would do, without doing it."""

from __future__ import annotations

import time
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from mmkt import optim
from mmkt.experiment import Train
from mmkt.feed import Feed
from mmkt.learner import Learner
from mmkt.types import Encoded, Phase


def dry_run(
    learner: Learner, feed: Feed, plan: list[Phase], train: Train, console: Console, device: torch.device
) -> dict[str, Any]:
    """Print shapes, parameters by part, what trains, and estimated memory and time; the learner is changed by two steps.

    Returns:
        The same as plain data.
    """
    learner.to(device)
    trains = learner.begin(plan[0])
    optimizer = optim.optimizer(learner, trains, train, plan[0].lr)
    batch = next(feed.training(0, 1)).to(device)
    stored = 0

    def note(x: torch.Tensor) -> torch.Tensor:
        nonlocal stored
        stored += x.untyped_storage().nbytes() if not isinstance(x, torch.nn.Parameter) else 0
        return x

    seconds = []
    for _ in range(2):
        start, stored = time.perf_counter(), 0
        with torch.autograd.graph.saved_tensors_hooks(note, lambda x: x):
            loss, _ = learner(batch, learner.counts([batch]))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(time.perf_counter() - start)
    steps = sum(phase.steps for phase in plan)
    numbers = sum(p.numel() for p in learner.parameters())
    trained = sum(p.numel() for p in trains.values())
    kept = sum(x.nbytes for state in optimizer.state.values() for x in state.values() if isinstance(x, torch.Tensor))
    averaged = 4 * trained if train.average else 0
    found = {
        "shapes": _shapes(learner, batch),
        "parameters": {part: {"all": n, "trained": k} for part, (n, k) in learner.sizes().items()},
        "phases": [{"name": p.name, "steps": p.steps, "trains": len(learner.trained_in(p))} for p in plan],
        "steps": steps,
        "memory_gb": (4 * (numbers + trained) + kept + averaged + stored) / 1e9,
        "minutes": steps * train.accumulate * seconds[-1] / 60,
    }
    _show(found, console)
    return found


def _shapes(learner: Learner, batch: Any) -> dict[str, list[int]]:
    shapes = {f"input {m}.{k}": list(x.shape) for m, d in batch.inputs.items() if isinstance(d, dict) for k, x in d.items()}
    with torch.no_grad():
        encoded = learner.model.encode(batch)
        outputs = learner.model.fuse(encoded)
    named: dict[str, Encoded] = {f"encoded {m}": e for m, e in encoded.items()} | {"fused": outputs.fused}
    shapes |= {name: list(encoded.tokens.shape) for name, encoded in named.items()}
    return shapes | {f"logits {task}": list(x.shape) for task, x in outputs.logits.items()}


def _show(found: dict[str, Any], console: Console) -> None:
    shapes = Table("tensor", "shape", title="one batch (this process)", title_justify="left")
    for name, shape in found["shapes"].items():
        shapes.add_row(name, " × ".join(map(str, shape)))
    parameters = Table("part", "parameters", "trained", title="parameters in the first phase", title_justify="left")
    for name, part in found["parameters"].items():
        parameters.add_row(name, f"{part['all']:,}", f"{part['trained']:,}")
    console.print(shapes, parameters)
    for phase in found["phases"]:
        console.print(f"phase {phase['name']}: {phase['steps']} steps, trains {phase['trains']} tensors")
    memory, minutes = found["memory_gb"], found["minutes"]
    console.print(
        f"about {memory:.2f} GB for weights, gradients, optimiser and activations; about {minutes:.1f} minutes, evaluation aside"
    )
