"""Gradual unfreezing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from mmkt.transfer._layerwise import rates
from mmkt.types import Phase, Transfer

if TYPE_CHECKING:
    from mmkt.learner import Learner


class Thaw(Transfer):
    """Gradual unfreezing (ULMFiT, Howard and Ruder, 2018): encoders thaw from the top down, a group of stages a phase.

    The first phase trains what is on top of the encoders, the last one everything; all phases are equally long.
    """

    def __init__(
        self,
        *,
        groups: Annotated[int, Field(ge=1)] = 4,
        lr: dict[str, Annotated[float, Field(gt=0)]] = {},  # noqa: B006 - never changed
        layer_decay: Annotated[float, Field(gt=0, le=1)] = 1.0,
    ):
        """Remember the settings.

        Args:
            groups: that every encoder's stages are divided into; one of fewer stages is thawed sooner.
            lr: pattern → factor on ``train.lr``.
            layer_decay: each stage of an encoder has this share of the rate of the one above it.
        """
        self.groups, self.lr, self.layer_decay = groups, lr, layer_decay

    def phases(self, learner: Learner, steps: int) -> list[Phase]:
        """One more than there are groups.

        Raises:
            ValueError: there are more phases than steps.
        """
        number = self.groups + 1
        if steps < number:
            raise ValueError(f"groups: {self.groups} makes {number} phases of {steps} steps: lower it, or raise train.steps")
        ends = [round(steps * k / number) for k in range(number + 1)]
        lr = rates(learner, self.layer_decay, self.lr)
        return [
            Phase(f"thaw {k} of {self.groups}", ends[k + 1] - ends[k], frozen=self._frozen(learner, k), lr=lr)
            for k in range(number)
        ]

    def _frozen(self, learner: Learner, k: int) -> list[str]:
        """Names that are still frozen when k groups are thawed."""
        found = []
        for m, encoder in learner.model.encoders.items():
            stages = encoder.stages()
            left = len(stages) - -(-len(stages) * k // self.groups)
            found += [f"encoders.{m}.{name}" for names in stages[:left] for name in names]
        return found
