"""Stochastic weight averaging."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from mmkt.types import Average


class Swa(Average):
    """Stochastic weight averaging (Izmailov et al., 2018): the plain mean of the weights at equal distances late in training.

    It wants a rate that stays high where it averages: ``train.schedule=constant``, or ``train.lr_end``. Until it begins,
    what is evaluated is the weights themselves.
    """

    def __init__(self, *, start: Annotated[float, Field(ge=0, lt=1)] = 0.75, every: Annotated[int, Field(ge=1)] = 1):
        """Remember the settings.

        Args:
            start: share of all steps after which averaging begins.
            every: steps between the weights that are averaged; about an epoch's in the paper.
        """
        self.start, self.every = start, every

    def move(self, step: int, steps: int) -> float:
        """1 up to the first weights averaged, then 1 / n at the n-th, and 0 between them."""
        late = step - min(int(self.start * steps), steps - 1)
        if late <= 0:
            return 1.0
        return 0.0 if late % self.every else 1 / (late // self.every + 1)
