"""What objectives share that make rows worse before the forward."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch.nn.functional as F
from torch import Tensor

from mmkt.adversary import Adversary
from mmkt.overfitting import ROBUST, Overfitting
from mmkt.types import Batch, Objective, Phase, Resources
from mmkt.victim import precise

if TYPE_CHECKING:
    import numpy as np

    from mmkt.feed import Feed
    from mmkt.learner import Learner


class Crafting(Objective):
    """An objective with an adversary, which draws other random numbers in every step.

    Args:
        adversary: what may be done to which rows.
        overfitting: what is watched at every evaluation; None: nothing.
    """

    raw = True

    def __init__(self, adversary: Adversary, overfitting: Overfitting | None = None):
        super().__init__()
        self.adversary, self.overfitting, self.task = adversary, overfitting, adversary.task
        self.key = f"crafted {id(self)}"  # of ``Batch.views``
        self.selects = ROBUST if overfitting is not None and overfitting.count else ()

    def prepare(self, learner: Learner, resources: Resources) -> None:
        """Draw the seed, another one for each objective."""
        names = [name for name, objective in learner.objectives.items() if objective is self]
        self.adversary.prepare(learner.model, *names)

    def begin(self, learner: Learner, phase: Phase) -> None:
        """Before a phase; a sharded model is refused."""
        self.adversary.refuse_sharded(learner)

    def others(self, learner: Learner) -> list[str]:
        """Names of the phase's other objectives that craft."""
        return [n for n, other in learner.parts() if other is not self and type(other).craft is not Objective.craft]

    def supervised(self, logits: Tensor, batch: Batch) -> Tensor:
        """Cross-entropy of logits (B, C), zero for rows without a label, (B,)."""
        loss = F.cross_entropy(precise(logits), batch.labels[self.task], reduction="none")
        return loss.masked_fill(~batch.labelled[self.task], 0.0)

    def count(self, batch: Batch) -> Tensor:
        """The labelled rows."""
        return batch.labelled[self.task].sum()

    def stepped(self, learner: Learner, progress: float) -> None:
        """Other random numbers from now on."""
        self.adversary.stepped()

    def watched(self, learner: Learner, feed: Feed, rows: np.ndarray) -> dict[str, float]:
        """Accuracy under attack."""
        return {} if self.overfitting is None else self.overfitting.watched(learner, feed, rows)
