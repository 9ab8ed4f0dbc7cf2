"""The same answer near every row, labelled or not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Annotated

import torch
from pydantic import Field
from torch import Tensor

from mmkt import adversary
from mmkt.crafting import Crafting
from mmkt.threat import Threat
from mmkt.types import Batch, Outputs
from mmkt.victim import precise

if TYPE_CHECKING:
    from mmkt.learner import Learner
    from mmkt.model import Model


class Vat(Crafting):
    """Virtual adversarial training (Miyato et al., 2018): Σ KL(f(x) ‖ f(x + r)), r = ε d, d the direction that changes f most.

    d is found by power iteration: d ← ∇_r KL(f(x) ‖ f(x + r)) at r = ξ ε d, divided by its length, from a random one. f(x) is
    held still. It needs no labels and goes beside ``classify``; every row that has one of the modalities counts. The paper's
    norm is L2; under ``linf`` d is a sign. In evaluation nothing is crafted, and the loss is zero.
    """

    serves = False  # alone it would teach a constant

    def __init__(
        self,
        dim: int,
        modalities: Sequence[str],
        outputs: Mapping[str, int],
        domains: Sequence[str],
        *,
        task: str,
        threats: dict[str, Threat],
        iterations: Annotated[int, Field(ge=1)] = 1,
        xi: Annotated[float, Field(gt=0)] = 0.1,
        jointly: bool = True,
    ):
        """Remember the settings.

        Args:
            dim: unused.
            modalities: of the model.
            outputs: unused.
            domains: unused.
            task: a classification, whose answers are to stay.
            threats: by modality, how far rows are moved.
            iterations: of the power method.
            xi: ξ, as a share of ε.
            jointly: in all of these modalities at once; otherwise each row draws one of those that it has.
        """
        super().__init__(adversary.Adversary(task, threats, modalities, jointly=jointly, labelled=False))
        self.modalities, self.iterations, self.xi = tuple(threats), iterations, xi

    def craft(self, learner: Learner, batch: Batch) -> Batch:
        """Seek the direction."""
        victim = self.adversary.victim(learner.model, batch)
        if not victim.modalities:
            return batch
        loss = partial(adversary.divergence, victim.logits(victim.clean))
        ways = {m: ball.steepest(ball.noise(victim.seed, 0, torch.randn)) for m, ball in victim.balls.items()}
        for _ in range(self.iterations):
            # not into the bounds: cut there, the step would have another direction
            near = {m: ball.centre + self.xi * ball.eps * ways[m] for m, ball in victim.balls.items()}
            gradients = victim.slope(near, loss).gradients
            ways = {m: ball.steepest(gradients[m]) for m, ball in victim.balls.items()}
        points = victim.moved(victim.clean, ways, 1.0)
        return adversary.carry(batch, {self.key: adversary.moved(victim, points)})

    def forward(self, model: Model, batch: Batch, outputs: Outputs) -> Tensor:
        """Sum over the rows that have one of the modalities, ()."""
        clean, crafted = precise(outputs.logits[self.task]), adversary.carried(batch, self.key)
        moved = self.adversary.answers(model, batch, [crafted])[0] if crafted else clean
        return adversary.divergence(clean.detach(), moved).masked_fill(~self._there(batch), 0.0).sum()

    def count(self, batch: Batch) -> Tensor:
        """The rows that have one of the modalities."""
        return self._there(batch).sum()

    def _there(self, batch: Batch) -> Tensor:
        return torch.stack([batch.present[m] for m in self.modalities]).any(0)
