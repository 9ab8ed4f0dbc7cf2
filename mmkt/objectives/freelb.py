"""Cross-entropy along the way of an attack."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Annotated

import torch
from pydantic import Field
from torch import Tensor

from mmkt import adversary
from mmkt.crafting import Crafting
from mmkt.overfitting import Overfitting
from mmkt.threat import Threat
from mmkt.types import Batch, Outputs

if TYPE_CHECKING:
    from mmkt.learner import Learner
    from mmkt.model import Model


class Freelb(Crafting):
    """FreeLB (Zhu et al., 2020): (1/K) Σ_k CE(f(x + δ_k), y), δ_0 random, δ_{k+1} = Π(δ_k + α g_k / ‖g_k‖).

    Made for token embeddings (a threat of ``norm: l2``), which move and learn. The way is walked in evaluation mode before the
    step; the K points are then forwards of one backward, whose gradient is the mean of those at the points. (The paper takes
    both gradients from one pass, which would save K − 1 passes of 2K − 1.) Clean rows are no part of it: their forward is the
    step's own, for objectives beside this one.

    In evaluation nothing is crafted: the loss is that of the rows as they come.
    """

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
        super().__init__(adversary.Adversary(task, threats, modalities, jointly=jointly), Overfitting(task, threats, watch))
        self.steps = steps
        self.size = 2.5 / steps if size is None else size
        self.keys = [f"{self.key} {k}" for k in range(steps)]

    def craft(self, learner: Learner, batch: Batch) -> Batch:
        """Walk uphill, and keep every point."""
        victim = self.adversary.victim(learner.model, batch)
        if not victim.modalities:
            return batch
        points = adversary.climb(victim, victim.anywhere(0), partial(victim.goal.loss, "ce"), self.steps - 1, self.size)
        return adversary.carry(batch, {key: adversary.moved(victim, x) for key, x in zip(self.keys, points, strict=True)})

    def forward(self, model: Model, batch: Batch, outputs: Outputs) -> Tensor:
        """Sum over the labelled rows, ()."""
        each, crafted = [outputs.logits[self.task]], [adversary.carried(batch, key) for key in self.keys]
        if crafted[0]:
            each = self.adversary.answers(model, batch, crafted)
        return torch.stack([self.supervised(logits, batch) for logits in each]).mean(0).sum()
