"""Cross-entropy of rows made as bad as a threat allows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated

from pydantic import Field
from torch import Tensor

from mmkt import adversary
from mmkt.crafting import Crafting
from mmkt.overfitting import Overfitting
from mmkt.threat import Threat
from mmkt.types import Attack, Batch, Outputs, Phase

if TYPE_CHECKING:
    from mmkt.learner import Learner
    from mmkt.model import Model


class Adversarial(Crafting):
    """Adversarial training (Goodfellow et al., 2015; Madry et al., 2018): min_θ Σ max_{δ ∈ threat} CE(f(x + δ), y).

    ``attack: pgd`` is Madry et al.'s, ``{name: fgsm, start: true, size: 1.25}`` the fast one of Wong et al. (2020), and plain
    ``fgsm`` that of Goodfellow et al. Attacked rows take the clean ones' place before the forward, so that every objective of
    the phase sees them, and a step has one forward beside the attack's own. With ``beside: true`` they are a forward of their
    own, and other objectives see clean rows: ``classify`` with weight α and this with 1 − α is Goodfellow et al.'s mixture.

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
        attack: Attack,
        jointly: bool = True,
        share: Annotated[float, Field(gt=0, le=1)] = 1.0,
        beside: bool = False,
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
            attack: what moves them.
            jointly: in all of these modalities at once; otherwise each row draws one of those that it has.
            share: of the labelled rows that are attacked in a step, drawn anew; the others stay as they are.
            beside: attacked rows stand beside clean ones, not in their place.
            watch: validation rows whose accuracy under FGSM and PGD is logged with every evaluation.
        """
        limits = adversary.Adversary(task, threats, modalities, jointly=jointly, share=share)
        limits.refuse_attack(attack)
        super().__init__(limits, Overfitting(task, threats, watch))
        self.attack, self.beside = attack, beside

    def begin(self, learner: Learner, phase: Phase) -> None:
        """Before a phase.

        Raises:
            ValueError: the model is sharded, or another objective would craft from rows that are no longer clean.
        """
        super().begin(learner, phase)
        others = self.others(learner)
        if others and not self.beside:
            raise ValueError(f"adversarial: {others[0]} crafts from the same rows, which are attacked already: set beside: true")

    def craft(self, learner: Learner, batch: Batch) -> Batch:
        """Attack the rows: in their place, or beside them."""
        victim = self.adversary.victim(learner.model, batch)
        if not victim.modalities:
            return batch
        found = adversary.moved(victim, self.attack(victim))  # type: ignore[arg-type]
        return adversary.carry(batch, {self.key: found}) if self.beside else adversary.put(learner.model, batch, found)

    def forward(self, model: Model, batch: Batch, outputs: Outputs) -> Tensor:
        """Sum over the labelled rows, ()."""
        logits, crafted = outputs.logits[self.task], adversary.carried(batch, self.key)
        if crafted:
            (logits,) = self.adversary.answers(model, batch, [crafted])
        return self.supervised(logits, batch).sum()
