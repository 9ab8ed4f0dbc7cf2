"""Full fine-tuning."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from mmkt.types import Phase, Transfer

if TYPE_CHECKING:
    from mmkt.learner import Learner


class Full(Transfer):
    """Full fine-tuning: everything trains at once, except what ``frozen`` names."""

    def __init__(self, *, frozen: list[str] = [], lr: dict[str, Annotated[float, Field(gt=0)]] = {}):  # noqa: B006
        """Remember the patterns.

        Args:
            frozen: patterns of parameter names (``encoders.text``, ``encoders.*.trunk.body.blocks.0``).
            lr: pattern → factor on ``train.lr``.
        """
        self.frozen, self.lr = frozen, lr

    def phases(self, learner: Learner, steps: int) -> list[Phase]:
        """One."""
        return [Phase("full", steps, frozen=self.frozen, lr=self.lr)]
