"""Cross-entropy along the way of an attack."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Annotated

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from mmkt import adversary
from mmkt.overfitting import Overfitting
from mmkt.threat import Threat
from mmkt.types import Batch, Objective, Outputs, Phase, Resources
from mmkt.victim import precise

if TYPE_CHECKING:
    from mmkt.feed import Feed
    from mmkt.learner import Learner
    from mmkt.model import Model


class Freelb(Objective):
    """FreeLB (Zhu et al., 2020): (1/K) Σ_k CE(f(x + δ_k), y), δ_0 random, δ_{k+1} = Π(δ_k + α g_k / ‖g_k‖).

    Made for token embeddings (a threat of ``norm: l2``), which move and learn. The way is walked in evaluation mode before the
    step; the K points are then forwards of one backward, whose gradient is the mean of those at the points. (The paper takes
    both gradients from one pass, which would save K − 1 passes of 2K − 1.) Clean rows are no part of it: their forward is the
    step's own, for objectives beside this one.

    In evaluation nothing is crafted: the loss is that of the rows as they come.
    """

    raw = True

    def __init__(
        self,
        dim: int,
        modalities: Sequence[str],
        outputs: Mapping[str, int],
        domains: Sequence[str],
        *,
        task: str,
        threats: dict[str, Threat],
        steps: Annotated[int, Field(ge=1)] = 3,
        size: Annotated[float, Field(gt=0)] | None = None,
        jointly: bool = True,
        watch: Annotated[int, Field(ge=0)] = 200,
    ):
        """Remember the settings.

        Args:
            dim: unused.
            modalities: of the model.
            outputs: unused.
            domains: unused.
            task: a classification.
            threats: by modality, how far rows may be moved.
            steps: K, points that count.
            size: α, as a share of ε; by default 2.5 / steps.
            jointly: in all of these modalities at once; otherwise each row draws one of those that it has.
            watch: validation rows whose accuracy under FGSM and PGD is logged with every evaluation.
        """
        super().__init__()
        self.adversary = adversary.Adversary(task, threats, modalities, jointly=jointly)
        self.overfitting = Overfitting(task, threats, watch)
        self.task, self.steps = task, steps
        self.size = 2.5 / steps if size is None else size
        self.keys = [f"crafted {id(self)} {k}" for k in range(steps)]

    def prepare(self, learner: Learner, resources: Resources) -> None:
        """Draw the seed."""
        self.adversary.prepare(learner.model)

    def begin(self, learner: Learner, phase: Phase) -> None:
        """Before a phase; a sharded model is refused."""
        self.adversary.refuse_sharded(learner)

    def craft(self, learner: Learner, batch: Batch) -> Batch:
        """Walk uphill, and keep every point."""
        victim = self.adversary.victim(learner.model, batch)
        if not victim.modalities:
            return batch
        points = adversary.climb(victim, victim.anywhere(0), partial(victim.goal.loss, "ce"), self.steps - 1, self.size)
        return adversary.carry(batch, {key: adversary.moved(victim, x) for key, x in zip(self.keys, points, strict=True)})

    def forward(self, model: Model, batch: Batch, outputs: Outputs) -> Tensor:
        """Sum over the labelled rows, ()."""
        each, crafted = [precise(outputs.logits[self.task])], [adversary.carried(batch, key) for key in self.keys]
        if crafted[0]:
            each = self.adversary.answers(model, batch, crafted)
        y = batch.labels[self.task]
        loss = torch.stack([F.cross_entropy(logits, y, reduction="none") for logits in each]).mean(0)
        return loss.masked_fill(~batch.labelled[self.task], 0.0).sum()

    def count(self, batch: Batch) -> Tensor:
        """The labelled rows."""
        return batch.labelled[self.task].sum()

    def stepped(self, learner: Learner, progress: float) -> None:
        """Other random numbers from now on."""
        self.adversary.stepped()

    def watched(self, learner: Learner, feed: Feed, rows: np.ndarray) -> dict[str, float]:
        """Accuracy under attack."""
        return self.overfitting.watched(learner, feed, rows)
