"""Linear probe."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from mmkt.types import Phase, Transfer

if TYPE_CHECKING:
    from mmkt.learner import Learner


class Probe(Transfer):
    """Probing: the encoders stay as they are; shared space, fusion, heads and objectives train."""

    def __init__(self, *, lr: dict[str, Annotated[float, Field(gt=0)]] = {}):  # noqa: B006 - never changed
        """Remember the patterns.

        Args:
            lr: pattern → factor on ``train.lr``.
        """
        self.lr = lr

    def phases(self, learner: Learner, steps: int) -> list[Phase]:
        """One."""
        return [Phase("probe", steps, frozen=["encoders"], lr=self.lr)]
