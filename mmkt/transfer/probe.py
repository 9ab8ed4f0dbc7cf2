"""Linear probe."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mmkt.types import Phase, Transfer

if TYPE_CHECKING:
    from mmkt.learner import Learner


class Probe(Transfer):
    """Probing: the encoders stay as they are; shared space, fusion, heads and objectives train."""

    def phases(self, learner: Learner, steps: int) -> list[Phase]:
        """One."""
        return [Phase("probe", steps, frozen=["encoders"])]
