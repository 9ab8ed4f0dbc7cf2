"""Exponential moving average."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from mmkt.types import Average


class Ema(Average):
    """Exponential moving average (Polyak and Juditsky, 1992; Tarvainen and Valpola, 2017): later weights count more.

    It begins as a plain average, in which the weights drawn at random soon count for nothing: after t steps the weights of
    before keep the share min(``decay``, (1 + t) / (10 + t)). A short training takes a lower ``decay``: at 0.999 about the
    last thousand steps count.
    """

    def __init__(self, *, decay: Annotated[float, Field(ge=0, lt=1)] = 0.99):
        """Remember the settings.

        Args:
            decay: what the average keeps of itself at a step; it reaches about 1 / (1 - decay) steps back.
        """
        self.decay = decay

    def move(self, step: int, steps: int) -> float:
        """1 - min(decay, (1 + t) / (10 + t)), t counted from 0."""
        return 1 - min(self.decay, (1 + step) / (10 + step))
