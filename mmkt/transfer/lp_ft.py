"""Linear probing, then fine-tuning."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from mmkt.transfer._layerwise import rates
from mmkt.types import Phase, Transfer

if TYPE_CHECKING:
    from mmkt.learner import Learner


class LpFt(Transfer):
    """LP-FT (Kumar et al., 2022): first what is on top of the encoders, then everything.

    A head drawn at random would distort pretrained features in its first steps.
    """

    def __init__(
        self,
        *,
        share: Annotated[float, Field(gt=0, lt=1)] = 0.3,
        frozen: list[str] = [],  # noqa: B006 - never changed
        lr: dict[str, Annotated[float, Field(gt=0)]] = {},  # noqa: B006
        layer_decay: Annotated[float, Field(gt=0, le=1)] = 1.0,
    ):
        """Remember the settings.

        Args:
            share: of the steps that probe.
            frozen: patterns of parameter names that never train.
            lr: pattern → factor on ``train.lr``, once everything trains.
            layer_decay: each stage of an encoder has this share of the rate of the one above it.
        """
        self.share, self.frozen, self.lr, self.layer_decay = share, frozen, lr, layer_decay

    def phases(self, learner: Learner, steps: int) -> list[Phase]:
        """Two: probe, full.

        Raises:
            ValueError: the budget is one step.
        """
        if steps < 2:
            raise ValueError(f"two phases need two steps or more, found {steps}: raise train.steps")
        first = min(steps - 1, max(1, round(self.share * steps)))
        return [
            Phase("probe", first, frozen=["encoders", *self.frozen]),
            Phase("full", steps - first, frozen=self.frozen, lr=rates(learner, self.layer_decay, self.lr)),
        ]
