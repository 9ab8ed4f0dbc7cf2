"""The worst that an attack has come by, row by row."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mmkt.victim import Symbols, Victim


class Worst:
    """The points of the largest margin that were found so far, by row; the first are those that came (a forward)."""

    def __init__(self, victim: Victim):
        self.victim = victim
        self.points: dict[str, Any] = victim.clean
        self.margin = victim.goal.loss("margin", victim.logits(victim.clean))  # (B,)

    def offer(self, points: Symbols, logits: Tensor) -> None:
        """Keep what is worse than before, by the margin of its logits (B, C)."""
        margin = self.victim.goal.loss("margin", logits)
        better = margin > self.margin
        kept = {m: x.detach() if isinstance(x, Tensor) else x for m, x in points.items()}
        self.points = self.victim.choose(better, kept, self.points)
        self.margin = torch.where(better, margin, self.margin)
