"""The nearest input on which the model is wrong."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from mmkt.ball import Ball
from mmkt.types import Attack
from mmkt.victim import Points, Victim

INSIDE = 1 - 1e-6  # tanh reaches no bound: what lies on one starts a millionth inside it, else it could never move
PROGRESS, LOOKS, PATIENCE = 0.9999, 10, 2  # a row is done when at two of ten looks its loss was not lower by a ten-thousandth


class Cw(Attack):
    """Carlini and Wagner's L2 attack (2017): min_w Σ (x(w) − x)² + c · max(−margin, −κ), x(w) = ½(tanh w + 1) between bounds.

    c is found row by row by binary search; the nearest input that reached the goal is kept, and where none did, the row's own.
    Every search starts from the row's own, as in the paper, but the last one: it goes on from the nearest that was found.
    Without bounds (token embeddings) x(w) = w. The threat's ε limits nothing; between several modalities it is the unit that
    distances are summed in.
    """

    keeps = False

    def __init__(
        self,
        *,
        steps: Annotated[int, Field(ge=1)] = 1000,
        searches: Annotated[int, Field(ge=1)] = 9,
        lr: Annotated[float, Field(gt=0)] = 0.01,
        c: Annotated[float, Field(gt=0)] = 1e-3,
        confidence: Annotated[float, Field(ge=0)] = 0.0,
    ):
        """Remember the settings.

        Args:
            steps: of Adam, for each c.
            searches: how many c are tried.
            lr: of Adam.
            c: the first.
            confidence: κ, by how much the goal's logit has to lead.
        """
        self.steps, self.searches, self.lr, self.c, self.confidence = steps, searches, lr, c, confidence

    def __call__(self, victim: Victim) -> dict[str, Tensor]:
        """The nearest that was found."""
        found = victim.clean
        low = self._far(victim, found)  # zero, (B,)
        least = high = torch.full_like(low, torch.inf)
        c = torch.full_like(low, self.c)
        for search in range(self.searches):
            reached = torch.zeros_like(low, dtype=torch.bool)
            start = found if search == self.searches - 1 else victim.clean
            w = {m: _inverse(ball, start[m]).requires_grad_() for m, ball in victim.balls.items()}
            adam = torch.optim.Adam(list(w.values()), lr=self.lr)
            stuck, lowest = torch.zeros_like(low), torch.full_like(low, torch.inf)  # looks without progress, the loss before
            for step in range(self.steps):
                with torch.enable_grad():
                    points = {m: _point(ball, w[m]) for m, ball in victim.balls.items()}
                    logits = victim.answers(points)
                    far = self._far(victim, points)
                    short = (self.confidence - victim.goal.loss("margin", logits)).clamp(min=0)
                    losses = far + c * short
                    gradients = torch.autograd.grad(losses.sum(), list(w.values()), allow_unused=True)
                victim.passes["backward"] += 1
                there = victim.goal.reached(logits) & (short <= 0) & (stuck < PATIENCE)
                nearer = there & (far.detach() < least)
                reached |= there
                found = victim.choose(nearer, {m: x.detach() for m, x in points.items()}, found)
                least = torch.where(nearer, far.detach(), least)
                if step % -(-self.steps // LOOKS) == 0:
                    stuck += ~(losses.detach() <= PROGRESS * lowest) & (stuck < PATIENCE)
                    lowest = torch.minimum(lowest, losses.detach())
                    if bool((stuck >= PATIENCE).all()):
                        break
                for x, gradient in zip(w.values(), gradients, strict=True):
                    x.grad = gradient
                adam.step()
            high = torch.where(reached, torch.minimum(high, c), high)
            low = torch.where(reached, low, torch.maximum(low, c))
            c = torch.where(high.isinf(), c * 10, (low + high) / 2)
        return found

    def _far(self, victim: Victim, points: Points) -> Tensor:
        """The squared distance of every row, (B,); of several modalities in units of the first one's ε that the row has."""
        first = victim.balls[victim.modalities[0]]
        whole = torch.zeros(victim.batch.size, dtype=first.centre.dtype, device=first.centre.device)
        eps = {m: whole.scatter_reduce(0, victim.rows[m], b.eps.flatten(), "amax") for m, b in victim.balls.items()}
        unit = whole
        for own in eps.values():
            unit = torch.where(unit > 0, unit, own)
        for m, ball in victim.balls.items():
            squares = (points[m] - ball.centre).flatten(1).square().sum(1)  # (N,)
            weight = torch.where(eps[m] > 0, unit / eps[m].clamp(min=1e-12), 1.0).square()
            whole = whole.index_add(0, victim.rows[m], squares * weight[victim.rows[m]])
        return whole


def _point(ball: Ball, w: Tensor) -> Tensor:
    if ball.low is None or ball.high is None:
        return ball.still(w)
    return ball.still(ball.low + (ball.high - ball.low) * (torch.tanh(w) + 1) / 2)


def _inverse(ball: Ball, x: Tensor) -> Tensor:
    if ball.low is None or ball.high is None:
        return x.clone()
    return torch.atanh((2 * (x - ball.low) / (ball.high - ball.low) - 1) * INSIDE)
