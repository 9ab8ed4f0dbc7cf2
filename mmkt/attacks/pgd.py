"""Many small steps uphill, each brought back into the threat."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from torch import Tensor

from mmkt.goal import Loss
from mmkt.types import Attack
from mmkt.victim import Victim
from mmkt.worst import Worst


class Pgd(Attack):
    """Projected gradient descent (Madry et al., 2018): x ← Π(x + α · sign g), in L2 x ← Π(x + α · g / ‖g‖₂).

    A row keeps the worst of all points that it came by, its own among them. k steps take k forwards and backwards, and two
    forwards.
    """

    def __init__(
        self,
        *,
        steps: Annotated[int, Field(ge=1)] = 40,
        restarts: Annotated[int, Field(ge=1)] = 1,
        size: Annotated[float, Field(gt=0)] | None = None,
        start: bool = True,
        loss: Loss = "ce",
    ):
        """Remember the settings.

        Args:
            steps: of each start.
            restarts: from so many random places.
            size: of a step, as a share of ε; by default 2.5 / steps, so that every place can be reached.
            start: from a random place within the threat; otherwise from the input.
            loss: what is climbed.

        Raises:
            ValueError: restarts that all start at the input.
        """
        if restarts > 1 and not start:
            raise ValueError(f"restarts: {restarts} from the same place are one: set start: true, or restarts: 1")
        self.steps, self.restarts, self.start, self.loss = steps, restarts, start, loss
        self.size = 2.5 / steps if size is None else size

    def __call__(self, victim: Victim) -> dict[str, Tensor]:
        """The worst of all restarts."""
        worst = Worst(victim)
        for restart in range(self.restarts):
            points = victim.anywhere(restart) if self.start else victim.clean
            for _ in range(self.steps):
                slope = victim.slope(points, self.loss)
                worst.offer(points, slope.logits)
                points = victim.moved(points, slope.gradients, self.size)
            worst.offer(points, victim.logits(points))
        return worst.points
