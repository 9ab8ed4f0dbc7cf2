"""The optimiser's groups and the learning rate as a pure function of the step."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import nn

from mmkt.learner import Learner


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


def factor(step: int, steps: int, schedule: str, warmup: float) -> float:
    """Share of the highest rate at a step (from 0): linear warm-up, then cosine, linear or constant."""
    climb = round(steps * warmup)
    if step < climb:
        return (step + 1) / (climb + 1)
    done = (step - climb) / max(1, steps - climb)
    if schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * done))
    return 1 - done if schedule == "linear" else 1.0


def set_rate(optimizer: torch.optim.Optimizer, share: float) -> None:
    """Give every group its share of its highest rate."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak"] * share
