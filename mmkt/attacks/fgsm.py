"""One step along the gradient's sign."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from torch import Tensor

from mmkt.types import Attack
from mmkt.victim import Victim


class Fgsm(Attack):
    """The fast gradient sign method (Goodfellow et al., 2015): x + ε · sign ∇ CE; in L2 along the gradient (FGM).

    With ``start`` the step is made from a random place (Wong et al., 2020), whose usual ``size`` is 1.25. As in the authors' code
    bounds cut where it leads, not where it starts: from a start that is cut first black pixels would only ever become 0 or ε.
    """

    def __init__(self, *, start: bool = False, size: Annotated[float, Field(gt=0)] = 1.0):
        """Remember the settings.

        Args:
            start: from a random place within the threat, not from the input.
            size: of the step, as a share of ε.
        """
        self.start, self.size = start, size

    def __call__(self, victim: Victim) -> dict[str, Tensor]:
        """One forward and one backward."""
        points = victim.uniform(0) if self.start else victim.clean
        return victim.moved(points, victim.slope(points, "ce").gradients, self.size)
