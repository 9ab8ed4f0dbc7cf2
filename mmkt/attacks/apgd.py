"""Gradient steps whose size is found by itself."""

from __future__ import annotations

import math
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from mmkt.goal import Loss
from mmkt.types import Attack
from mmkt.victim import Points, Victim
from mmkt.worst import Worst

MOMENTUM, RISES = 0.75, 0.75  # α and ρ of the paper


class Apgd(Attack):
    """Auto-PGD (Croce and Hein, 2020, algorithm 1): momentum, and a step of 2ε that halves where the loss stops rising.

    A row whose step is halved goes on from its best place. Every row has its own step.
    """

    def __init__(
        self,
        *,
        steps: Annotated[int, Field(ge=2)] = 100,
        restarts: Annotated[int, Field(ge=1)] = 1,
        loss: Loss = "ce",
        targets: Annotated[int, Field(ge=0)] = 0,
    ):
        """Remember the settings.

        Args:
            steps: of each start.
            restarts: from so many random places.
            loss: what is climbed; ``dlr`` does not vanish where the model is sure of itself.
            targets: of each start, climb towards so many of the likeliest other classes, one after the other (with ``dlr`` the
                targeted form of the paper); 0: away from the label.
        """
        self.steps, self.restarts, self.loss, self.targets = steps, restarts, loss, targets

    def __call__(self, victim: Victim) -> dict[str, Tensor]:
        """The worst of all restarts."""
        worst = Worst(victim)
        for restart in range(self.restarts):
            for towards in self._towards(victim):
                self._climb(towards, victim.anywhere(restart), worst)
        return worst.points

    def _towards(self, victim: Victim) -> list[Victim]:
        """Who is climbed on: the victim, or one for each target."""
        if not self.targets:
            return [victim]
        logits = victim.logits(victim.clean)
        others = logits.scatter(1, victim.goal.labels[:, None], -torch.inf).argsort(1, descending=True)[:, :-1]  # (B, C − 1)
        return [victim.aimed(others[:, k]) for k in range(min(self.targets, others.shape[1]))]

    def _climb(self, victim: Victim, points: Points, worst: Worst) -> None:
        slope = victim.slope(points, self.loss)
        worst.offer(points, slope.logits)
        before, losses = points, slope.losses
        best, top, gradients = points, losses, slope.gradients  # of the best place: where it lies, its loss, its gradient
        share = torch.full_like(losses, 2.0)
        rises = torch.zeros_like(losses)  # steps since the last check that led higher
        halved = torch.ones_like(losses, dtype=torch.bool)  # at the last check
        top_then, since = top, 0
        checks = _checks(self.steps)
        here = slope.gradients
        for step in range(1, self.steps + 1):
            ahead = victim.moved(points, here, share)
            if step > 1:
                ahead = {
                    m: ball.project(points[m] + MOMENTUM * (ahead[m] - points[m]) + (1 - MOMENTUM) * (points[m] - before[m]))
                    for m, ball in victim.balls.items()
                }
            before, points = points, ahead
            if step == self.steps:
                worst.offer(points, victim.logits(points))
                return
            slope = victim.slope(points, self.loss)
            worst.offer(points, slope.logits)
            rises, since = rises + (slope.losses > losses), since + 1
            higher = slope.losses > top
            best, gradients = victim.choose(higher, points, best), victim.choose(higher, slope.gradients, gradients)
            losses, top, here = slope.losses, torch.maximum(top, slope.losses), slope.gradients
            if step in checks:
                stuck = (rises < RISES * since) | (~halved & (top <= top_then))
                share = torch.where(stuck, share / 2, share)
                points, here = victim.choose(stuck, best, points), victim.choose(stuck, gradients, here)
                before, losses = victim.choose(stuck, best, before), torch.where(stuck, top, losses)
                halved, top_then, rises, since = stuck, top, torch.zeros_like(rises), 0


def _checks(steps: int) -> set[int]:
    """Steps after which it is asked whether the loss still rises: p₀ = 0, p₁ = 0.22, p ← p + max(p − p₋₁ − 0.03, 0.06)."""
    found, before, now = set(), 0.0, 0.22
    while now <= 1:
        found.add(math.ceil(round(now * steps, 6)))  # 0.41 + 0.16 is a little more than 0.57
        before, now = now, now + max(now - before - 0.03, 0.06)
    return found
