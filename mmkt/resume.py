"""The state to resume from: safetensors and JSON, no pickle. Frozen pretrained weights are referred to by their hash."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmkt import checkpoint, distributed, generators, kept
from mmkt.checkpoint import CheckpointError
from mmkt.distributed import placed_like
from mmkt.learner import Learner


@dataclass
class Progress:
    """Where training stands."""

    phase: int = 0
    step: int = 0  # of the phase
    total: int = 0  # of all phases
    best: float | None = None
    best_step: int = 0
    waited: int = 0  # evaluations since the best one
    done: bool = False
    taken: tuple[int, ...] = ()  # steps of the phases that have ended, of those that ended early fewer than planned
    lowest: float | None = None  # loss of this phase's logs, where it may end early
    stuck: int = 0  # logs since the loss was clearly lower than that


def save(
    folder: Path,
    learner: Learner,
    optimizer: Any,
    scaler: Any,
    progress: Progress,
    frozen: Collection[str],
    mean: Mapping[str, Tensor],
    keep: int = 1,
) -> None:
    """Write the state (rank 0 writes, all take part): the same files whether the learner is sharded or not.

    Args:
        folder: takes its place in one step.
        learner: not wrapped.
        optimizer: of the phase at hand; its groups carry ``names``.
        scaler: of fp16, or None.
        progress: where training stands.
        frozen: names of parameters that no phase trains: kept as a hash.
        mean: averaged weights, by the learner's names; none where nothing is averaged.
        keep: how many states there are at most: this one, and those before it in ``kept/``, beside ``folder``.
    """
    drawn, hashed = distributed.everyone(generators.state()), digest(learner, frozen)
    own = {name: x for name, x in learner.state_dict().items() if name.removeprefix("model.") not in frozen}
    weights, moments = distributed.collected(own), distributed.collected(_moments(optimizer))
    averaged = distributed.collected(mean)
    if distributed.rank() == 0:
        with checkpoint.atomic(folder, kept.retire(keep)) as new:
            checkpoint.write_tensors(new / "learner.safetensors", weights)
            checkpoint.write_tensors(new / "optimizer.safetensors", moments)
            if averaged:
                checkpoint.write_tensors(new / "average.safetensors", averaged)
            checkpoint.write_tensors(
                new / "generators.safetensors",
                {f"{rank}/{name}": x for rank, states in enumerate(drawn) for name, x in states.items()},
            )
            trained = sum(p.numel() for group in optimizer.param_groups for p in group["params"])
            state = {"progress": asdict(progress), "frozen": hashed, "trained": trained}
            checkpoint.write_json(new / "state.json", state | {"scaler": scaler.state_dict() if scaler else None})
    distributed.wait()


def load_learner(folder: Path, learner: Learner, frozen: Collection[str]) -> Progress:
    """Restore weights and say where training stood.

    Raises:
        CheckpointError: the state or the best checkpoint is damaged, or the frozen weights are not those it was saved with.
    """
    kept.refuse_damaged(folder)
    state = checkpoint.read_json(folder / "state.json")
    if state["frozen"] != digest(learner, frozen):
        raise CheckpointError(f"the frozen pretrained weights are not those that {folder} was trained with")
    load_weights(folder, learner, frozen)
    progress = Progress(**state["progress"] | {"taken": tuple(state["progress"].get("taken", ()))})
    if progress.best is not None:  # missed at the end of training, the last step would be taken for the best
        checkpoint.names_of(folder.with_name("best") / "model.safetensors")
    return progress


def load_weights(folder: Path, learner: Learner, frozen: Collection[str]) -> None:
    """Restore the learner's tensors, but for those that no phase trains."""
    own = learner.state_dict()
    optional = frozenset(name for name in own if name.removeprefix("model.") in frozen)
    path = folder / "learner.safetensors"
    checkpoint.load_strict(learner, checkpoint.read_tensors(path), path, optional)


def load_optimizer(folder: Path, optimizer: Any, scaler: Any) -> None:
    """Restore the optimiser's moments and the scaler."""
    tensors = checkpoint.read_tensors(folder / "optimizer.safetensors")
    for group in optimizer.param_groups:
        for name, parameter in zip(group["names"], group["params"]):
            own = {key.rpartition("/")[2]: x for key, x in tensors.items() if key.rpartition("/")[0] == name}
            together = bool(group.get("fused") or group.get("capturable"))
            optimizer.state[parameter] = {key: _placed(key, x, parameter, together=together) for key, x in own.items()}
    state = checkpoint.read_json(folder / "state.json")
    if scaler and state["scaler"]:
        scaler.load_state_dict(state["scaler"])


def _placed(key: str, x: Tensor, parameter: Tensor, *, together: bool) -> Tensor | int:
    """A part of an optimiser's state, where the optimiser has it; ``together``: one kernel moves all parameters."""
    if x.dtype == torch.int64:  # it was a Python number
        return int(x)
    if key == "step":  # a counter lies on the CPU, unless a kernel reads it
        return x.to(parameter.device) if together else x
    return placed_like(x, parameter)


def load_average(folder: Path, mean: Mapping[str, Tensor]) -> None:
    """Restore averaged weights in place."""
    if mean:
        for name, x in checkpoint.read_tensors(folder / "average.safetensors").items():
            mean[name].copy_(placed_like(x, mean[name]))


def load_generators(folder: Path) -> None:
    """Restore this rank's random generators; a rank that was not there keeps what it was seeded with."""
    states, own = checkpoint.read_tensors(folder / "generators.safetensors"), f"{distributed.rank()}/"
    generators.restore({name.removeprefix(own): x for name, x in states.items() if name.startswith(own)})


def digest(learner: Learner, names: Collection[str]) -> str:
    """SHA-256 over named parameters, the same on every process; of those that the model refers to it is known."""
    named, (referred, known) = learner.named(), learner.model.referred
    found = checkpoint.digest(
        [name for name in names if name not in referred], lambda name: distributed.whole(named[name].detach())
    )
    return f"{found} {known}".strip()


def _moments(optimizer: Any) -> dict[str, Tensor]:
    """What an optimiser keeps, as ``PARAMETER/KEY``."""
    found: dict[str, Tensor] = {}
    seen: set[int] = set()
    for group in optimizer.param_groups:
        for name, parameter in zip(group["names"], group["params"]):
            for key, value in optimizer.state.get(parameter, {}).items():
                value = torch.as_tensor(value)
                # safetensors takes no tensor twice; bitsandbytes shares one table of quantiles between all parameters
                found[f"{name}/{key}"] = value.clone() if id(value) in seen else value
                seen.add(id(value))
    return found
