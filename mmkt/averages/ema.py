"""Exponential moving average."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from mmkt.types import Average


class Ema(Average):
    """Exponential moving average (Polyak and Juditsky, 1992; Tarvainen and Valpola, 2017): later weights count more.

    After t steps the average keeps the share min(``decay``, (1 + t) / (10 + t)) of itself, so that the weights drawn at random
    soon count for nothing: it reaches about a ninth of the steps back, and at the most 1 / (1 - ``decay``) of them.
    """

    def __init__(self, *, decay: Annotated[float, Field(ge=0, lt=1)] = 0.999):
        """Remember the settings.

        Args:
            decay: what the average keeps of itself at a step, at the most.
        """
        self.decay = decay

    def move(self, step: int, steps: int) -> float:
        """1 - min(decay, (1 + t) / (10 + t)), t counted from 0."""
        return 1 - min(self.decay, (1 + step) / (10 + step))
