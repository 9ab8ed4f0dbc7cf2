"""Squares of random colour, kept where they make things worse: no gradient is needed."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from mmkt.ball import stretch
from mmkt.generators import seed_of
from mmkt.types import Attack
from mmkt.victim import Victim
from mmkt.worst import Worst

HALVES = (0.001, 0.005, 0.02, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8)  # shares of the queries after which the window's share is halved


class Square(Attack):
    """Square attack (Andriushchenko et al., 2020, L∞): a window becomes x ± ε, a sign a channel; it stays if that helps.

    In a picture the window is a square, in a sound a stretch of time, in a text or a sequence of vectors a stretch of tokens
    with one sign a number. Of several modalities each has its turn. It starts at stripes: a sign for each column of a picture
    (and each of its channels), each sample, each number of each token.
    """

    norms = ("linf",)
    gradients = False

    def __init__(self, *, queries: Annotated[int, Field(ge=1)] = 1000, share: Annotated[float, Field(gt=0, le=1)] = 0.8):
        """Remember the settings.

        Args:
            queries: forwards.
            share: of an item that the first windows cover.
        """
        self.queries, self.share = queries, share

    def __call__(self, victim: Victim) -> dict[str, Tensor]:
        """The best that was found."""
        worst = Worst(victim)
        chance = {
            m: [torch.Generator().manual_seed(seed_of(victim.seed, "square", *key)) for key in ball.keys]
            for m, ball in victim.balls.items()
        }
        start = {m: self._stripes(victim, m, chance[m]) for m in victim.balls}
        worst.offer(start, victim.logits(start))
        for query in range(self.queries):
            m = victim.modalities[query % len(victim.modalities)]
            points = worst.points | {m: self._window(victim, m, worst.points[m], self._share(query), chance[m])}
            worst.offer(points, victim.logits(points))
        return worst.points

    def _share(self, query: int) -> float:
        return self.share / 2 ** sum(query / self.queries > share for share in HALVES)

    def _stripes(self, victim: Victim, m: str, chance: list[torch.Generator]) -> Tensor:
        ball, across = victim.balls[m], -2 if len(victim.along(m)) == 2 else None
        found = ball.centre.clone()
        for k, (random, extent) in enumerate(zip(chance, ball.extents(), strict=True)):
            shape = list(extent)
            if across is not None:
                shape[across] = 1
            found[k][tuple(map(slice, extent))] += ball.eps[k] * _signs(shape, random, ball.centre)
        return ball.project(found)

    def _window(self, victim: Victim, m: str, points: Tensor, share: float, chance: list[torch.Generator]) -> Tensor:
        ball, along, found = victim.balls[m], victim.along(m), points.clone()
        for k, (random, extent) in enumerate(zip(chance, ball.extents(), strict=True)):
            place, shape = stretch(extent, along, share, random), list(extent)
            for d in along:
                shape[d] = 1
            found[k][place] = ball.centre[k][place] + ball.eps[k] * _signs(shape, random, ball.centre)
        return ball.project(found)


def _signs(shape: list[int], random: torch.Generator, like: Tensor) -> Tensor:
    return (2.0 * torch.randint(2, tuple(shape), generator=random) - 1).to(like)
