"""A small region that may become anything."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from mmkt.attacks.pgd import Pgd
from mmkt.ball import Ball, stretch
from mmkt.generators import seed_of
from mmkt.parts import ConfigError
from mmkt.types import Attack
from mmkt.victim import Victim
from mmkt.worst import Worst


class Patch(Attack):
    """A patch in one place of each item (Karmon et al., 2018: LaVAN): within it anything that the bounds allow, else nothing.

    A square of a picture, a stretch of a sound, climbed by signed steps from a random filling, at several random places. Its
    budget is its area, not the threat's ε, so that it stands beside a norm's figures and not among them. Embeddings have no
    bounds: there is no patch of them.
    """

    keeps = False
    bounds = True

    def __init__(
        self,
        *,
        area: Annotated[float, Field(gt=0, le=1)] = 0.05,
        places: Annotated[int, Field(ge=1)] = 4,
        steps: Annotated[int, Field(ge=1)] = 40,
        size: Annotated[float, Field(gt=0)] | None = None,
    ):
        """Remember the settings.

        Args:
            area: of the patch, as a share of the item's.
            places: tried.
            steps: at each.
            size: of a step, as a share of the bounds' width; by default 2.5 / steps.
        """
        self.area, self.places, self.steps = area, places, steps
        self.size = 2.5 / steps if size is None else size

    def __call__(self, victim: Victim) -> dict[str, Tensor]:
        """The worst of all places.

        Raises:
            ConfigError: there is a modality without bounds.
        """
        worst, climb = Worst(victim), Pgd(steps=self.steps, size=self.size)
        for place in range(self.places):
            there = victim.within({m: self._patch(victim, m, place) for m in victim.modalities})
            points = climb(there)
            worst.offer(points, victim.logits(points))
        return worst.points

    def _patch(self, victim: Victim, m: str, place: int) -> Ball:
        """What may become anything, for one of the places."""
        ball = victim.balls[m]
        if ball.low is None or ball.high is None:
            words = f"{m} has no bounds, so that a patch of it could be anything: attack pictures and sounds with it"
            raise ConfigError([(f"threats.{m}", words)])
        free = torch.zeros(ball.centre.shape, dtype=torch.bool)
        for k, (key, extent) in enumerate(zip(ball.keys, ball.extents(), strict=True)):
            random = torch.Generator().manual_seed(seed_of(victim.seed, "patch", place, *key))
            free[k][stretch(extent, victim.along(m), self.area, random)] = True
        wide = (ball.high - ball.low).flatten(1).amax(1).view_as(ball.eps)
        return ball._replace(norm="linf", eps=wide, free=free.to(ball.centre.device))
