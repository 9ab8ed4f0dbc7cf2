"""Right on rows as they come, and the same near them."""

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
from mmkt.victim import precise

if TYPE_CHECKING:
    from mmkt.learner import Learner
    from mmkt.model import Model


class Trades(Crafting):
    """TRADES (Zhang et al., 2019): Σ over labelled rows of CE(f(x), y) + β · max_{δ ∈ threat} KL(f(x) ‖ f(x + δ)).

    The maximum is sought by signed steps (in L2 along the gradient) from a random place near the row, where the divergence has no
    gradient. Both sides of the divergence learn, as in the authors' code. The clean forward is the step's own, which other
    objectives share.

    In evaluation nothing is crafted: the loss is the cross-entropy.
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
        beta: Annotated[float, Field(ge=0)] = 6.0,
        steps: Annotated[int, Field(ge=1)] = 10,
        size: Annotated[float, Field(gt=0)] | None = None,
        start: Annotated[float, Field(gt=0, le=1)] = 0.01,
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
            beta: 1/λ of the paper; 1 and 6 are its.
            steps: of the inner attack.
            size: of a step, as a share of ε; by default 2.5 / steps.
            start: how far from the row it begins, as a share of a random place within the threat.
            jointly: in all of these modalities at once; otherwise each row draws one of those that it has.
            watch: validation rows whose accuracy under FGSM and PGD is logged with every evaluation.
        """
        super().__init__(adversary.Adversary(task, threats, modalities, jointly=jointly), Overfitting(task, threats, watch))
        self.beta, self.steps, self.start = beta, steps, start
        self.size = 2.5 / steps if size is None else size

    def craft(self, learner: Learner, batch: Batch) -> Batch:
        """Seek what is answered most differently."""
        victim = self.adversary.victim(learner.model, batch)
        if not victim.modalities:
            return batch
        far, clean = victim.anywhere(0), victim.clean
        points = {m: torch.lerp(clean[m], far[m], self.start) for m in far}
        loss = partial(adversary.divergence, victim.logits(clean))
        points = adversary.climb(victim, points, loss, self.steps, self.size)[-1]
        return adversary.carry(batch, {self.key: adversary.moved(victim, points)})

    def forward(self, model: Model, batch: Batch, outputs: Outputs) -> Tensor:
        """Sum over the labelled rows, ()."""
        clean, crafted = precise(outputs.logits[self.task]), adversary.carried(batch, self.key)
        loss = self.supervised(clean, batch)
        if crafted:
            (moved,) = self.adversary.answers(model, batch, [crafted])
            loss = loss + self.beta * adversary.divergence(clean, moved).masked_fill(~batch.labelled[self.task], 0.0)
        return loss.sum()
