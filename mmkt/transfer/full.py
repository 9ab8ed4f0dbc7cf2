"""Full fine-tuning."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from mmkt.transfer._layerwise import rates
from mmkt.types import Phase, Transfer

if TYPE_CHECKING:
    from mmkt.learner import Learner


class Full(Transfer):
    """Full fine-tuning: everything trains at once, except what ``frozen`` names and what adapters hold still."""

    def __init__(
        self,
        *,
        frozen: list[str] = [],  # noqa: B006 - never changed
        lr: dict[str, Annotated[float, Field(gt=0)]] = {},  # noqa: B006
        layer_decay: Annotated[float, Field(gt=0, le=1)] = 1.0,
    ):
        """Remember the patterns.

        Args:
            frozen: patterns of parameter names (``encoders.text``, ``encoders.*.trunk.body.blocks.0``).
            lr: pattern → factor on ``train.lr``.
            layer_decay: each stage of an encoder has this share of the rate of the one above it.
        """
        self.frozen, self.lr, self.layer_decay = frozen, lr, layer_decay

    def phases(self, learner: Learner, steps: int) -> list[Phase]:
        """One."""
        return [Phase("full", steps, frozen=self.frozen, lr=rates(learner, self.layer_decay, self.lr))]
