"""The optimiser, its groups, and the learning rate as a pure function of the step."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import nn

from mmkt import distributed
from mmkt.experiment import Train
from mmkt.learner import Learner
from mmkt.parts import ConfigError


def groups(trains: Mapping[str, nn.Parameter], lr: float, decay: float, factors: Mapping[str, float]) -> list[dict]:
    """Parameter groups for AdamW (Loshchilov and Hutter, 2019): no decay on biases, norms and other vectors.

    Args:
        trains: what trains, by name.
        lr: the highest rate.
        decay: decoupled weight decay of matrices and kernels.
        factors: pattern → factor on ``lr``; the last that matches wins.
    """
    found: dict[tuple[float, float], dict] = {}
    for name, parameter in trains.items():
        factor = Learner.factor(name, factors)
        vector = parameter.ndim < 2 or ".ia3_l." in name  # (IA)³ keeps its vectors as (1, n); they start at one, not zero
        key = (factor, 0.0 if vector else decay)
        group = found.setdefault(key, {"params": [], "names": [], "lr": lr * factor, "peak": lr * factor, "weight_decay": key[1]})
        group["params"].append(parameter)
        group["names"].append(name)
    return list(found.values())


# ---------------------------------------------------------------- optimisers


def optimizer(
    learner: Learner, trains: Mapping[str, nn.Parameter], train: Train, factors: Mapping[str, float]
) -> torch.optim.Optimizer:
    """The optimiser of a phase; its groups carry ``names`` and the highest rate, ``peak``.

    Args:
        learner: whose layers say which matrices are embeddings.
        trains: what trains, by name.
        train: the loop's settings.
        factors: pattern → factor on ``train.lr``.

    Raises:
        ConfigError: it does not go with FSDP2 or with ``train.fused``, or its package is not installed.
    """
    name = train.optimizer
    if distributed.is_sharded(learner) and name not in ELEMENTWISE:
        words = f"{name} looks at more than one number at a time, of which FSDP2 leaves each process a share"
        raise ConfigError([("train.optimizer", f"{words}: take {' or '.join(ELEMENTWISE)}, or launch with ddp.yaml")])
    if train.fused and name not in ELEMENTWISE:
        raise ConfigError(
            [("train.fused", f"there is no such kernel for {name}: leave it out, or take {' or '.join(ELEMENTWISE)}")]
        )
    if name == "muon":
        return MuonBesideAdamW(learner, trains, train, factors)
    return OPTIMIZERS[name](groups(trains, train.lr, train.weight_decay, factors), train)


def refuse_unread(train: Train) -> None:
    """Refuse settings that the optimiser or the schedule does not read.

    Raises:
        ConfigError: one is set to something else than its default.
    """
    fresh = Train.model_fields
    read = {
        "momentum": train.optimizer in ("sgd", "muon"),
        "betas": train.optimizer in ("adamw", "muon", "adamw8bit"),
        "lr_end": train.schedule != "constant",
        "decay": train.schedule == "wsd",
    }
    for name, used in read.items():
        if not used and getattr(train, name) != fresh[name].default:
            of = f"schedule={train.schedule}" if name in ("lr_end", "decay") else f"optimizer={train.optimizer}"
            raise ConfigError([(f"train.{name}", f"train.{of} does not read it: leave it out")])


def _adamw(found: list[dict], train: Train) -> torch.optim.Optimizer:
    return torch.optim.AdamW(found, betas=train.betas, fused=train.fused is not False)


def _sgd(found: list[dict], train: Train) -> torch.optim.Optimizer:
    momentum = 0.9 if train.momentum is None else train.momentum
    return torch.optim.SGD(found, lr=train.lr, momentum=momentum, fused=train.fused is not False)


def _adafactor(found: list[dict], train: Train) -> torch.optim.Optimizer:
    """Shazeer and Stern, 2018: the rate is relative to each tensor's size, second moments are a row and a column."""
    return torch.optim.Adafactor(found, lr=train.lr)


def _adamw8bit(found: list[dict], train: Train) -> torch.optim.Optimizer:
    """Dettmers et al., 2022: moments of large tensors in eight bits, a scale for every 256 numbers."""
    try:
        from bitsandbytes.optim import AdamW8bit
    except ImportError as error:
        words = 'adamw8bit needs bitsandbytes: pip install "mmkt[8bit]", or take train.optimizer=adamw'
        raise ConfigError([("train.optimizer", f"{words} ({error})")]) from error
    return AdamW8bit(found, lr=train.lr, betas=train.betas)


OPTIMIZERS: dict[str, Callable[[list[dict], Train], torch.optim.Optimizer]] = {
    "adamw": _adamw,
    "sgd": _sgd,
    "adafactor": _adafactor,
    "adamw8bit": _adamw8bit,
}
ELEMENTWISE = ("adamw", "sgd")  # treat every number by itself, sharded or not


class MuonBesideAdamW(torch.optim.Optimizer):
    """Muon (Jordan et al., 2024) for matrices inside the model, AdamW for embeddings, heads, objectives, kernels and vectors.

    Its step is scaled to the size of AdamW's (Liu et al., 2025), so that one rate and one decay serve both.

    Args:
        learner: whose layers say which matrices are embeddings.
        trains: what trains, by name.
        train: the loop's settings.
        factors: pattern → factor on ``train.lr``.
    """

    def __init__(self, learner: Learner, trains: Mapping[str, nn.Parameter], train: Train, factors: Mapping[str, float]):
        embeddings = {id(layer.weight) for layer in learner.modules() if isinstance(layer, nn.Embedding)}
        inner = {
            name: p.ndim == 2 and id(p) not in embeddings and not name.startswith(("heads.", "objectives."))
            for name, p in trains.items()
        }
        some = [{n: p for n, p in trains.items() if inner[n] == matrices} for matrices in (True, False)]
        found = [groups(one, train.lr, train.weight_decay, factors) for one in some]
        momentum = 0.95 if train.momentum is None else train.momentum
        self.both: list[torch.optim.Optimizer] = []
        if found[0]:
            self.both.append(torch.optim.Muon(found[0], momentum=momentum, adjust_lr_fn="match_rms_adamw"))
        if found[1]:
            self.both.append(_adamw(found[1], train))
        super().__init__([group for one in self.both for group in one.param_groups], {})

    def step(self, closure: Any = None) -> None:
        """Move; each of the two finds its groups and its state here, where they may have been exchanged by loading."""
        start = 0
        for one in self.both:
            end = start + len(one.param_groups)
            one.param_groups, one.state, start = self.param_groups[start:end], self.state, end
            one.step()


# ---------------------------------------------------------------- schedules


class Place(NamedTuple):
    """Where a step lies once the rate has climbed."""

    step: int  # of the phase, from 0
    steps: int
    climb: int  # steps of the warm-up
    done: float  # share of the steps after the warm-up
    fall: int  # steps of the fall, where there is one at the end
    end: float  # share of the highest rate

    def down(self, share: float) -> float:
        """Between the end (0) and the highest rate (1)."""
        return self.end + (1 - self.end) * share


def _stable(at: Place) -> float:
    """1 - sqrt over the last steps (Hägele et al., 2024)."""
    late = at.step - (at.steps - at.fall)
    return at.down(1 - math.sqrt(max(0, late) / at.fall))


def _inverse_sqrt(at: Place) -> float:
    """Vaswani et al., 2017; without warm-up as after one of 10,000 steps, as transformers has it."""
    scale = at.climb or 10_000
    return at.down(math.sqrt(scale / (scale + at.step - at.climb)))


SCHEDULES: dict[str, Callable[[Place], float]] = {
    "cosine": lambda at: at.down(0.5 * (1 + math.cos(math.pi * at.done))),
    "linear": lambda at: at.down(1 - at.done),
    "constant": lambda _: 1.0,
    "wsd": _stable,
    "inverse_sqrt": _inverse_sqrt,
    "step": lambda at: at.down(0.01 if at.done >= 0.75 else 0.1 if at.done >= 0.5 else 1.0),  # He et al., 2016
    "exponential": lambda at: at.end**at.done,
}


def factor(step: int, steps: int, schedule: str, warmup: float, *, end: float | None = None, decay: float = 0.2) -> float:
    """Share of the highest rate at a step (from 0): linear warm-up, then as the schedule says.

    Args:
        step: of the phase.
        steps: of the phase.
        schedule: one of ``SCHEDULES``.
        warmup: share of the steps over which the rate climbs.
        end: share of the highest rate that the schedule falls towards; None: zero, for ``exponential`` a hundredth.
        decay: share of the steps over which ``wsd`` falls.
    """
    climb = round(steps * warmup)
    if step < climb:
        return (step + 1) / (climb + 1)
    if end is None:
        end = 0.01 if schedule == "exponential" else 0.0
    done = (step - climb) / max(1, steps - climb)
    return SCHEDULES[schedule](Place(step, steps, climb, done, max(1, round(steps * decay)), end))


def share(step: int, steps: int, train: Train) -> float:
    """``factor`` with the loop's settings."""
    return factor(step, steps, train.schedule, train.warmup, end=train.lr_end, decay=train.decay)


def set_rate(optimizer: torch.optim.Optimizer, share: float) -> None:
    """Give every group its share of its highest rate."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak"] * share
