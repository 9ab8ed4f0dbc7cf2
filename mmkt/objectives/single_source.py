"""Which modality was attacked, and the right answer all the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from mmkt import adversary
from mmkt.crafting import Crafting
from mmkt.layers.consistency import judged, refuse_two, scores_of
from mmkt.threat import Threat
from mmkt.types import Attack, Batch, Outputs
from mmkt.victim import Victim, precise

if TYPE_CHECKING:
    from mmkt.learner import Learner
    from mmkt.model import Model


class SingleSource(Crafting):
    """Training against single-source adversaries (Yang et al., 2021): CE(f(x*), y) − log q_m(x*), for the fusion ``odd_one_out``.

    x* is the row with one of its modalities m, drawn anew in every step, attacked through the whole model, check and all: what
    fools the answer without being noticed is what is trained against. It goes beside ``classify`` and ``odd_one_out``, which see
    rows as they come. Rows that have a label and one of the modalities count; those for which the attack finds nothing worse add
    nothing, and of those with fewer than three modalities no q_m is asked for. In evaluation nothing is attacked, and the loss is
    zero.
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

        Raises:
            ValueError: fewer than three modalities, or threats that cannot be carried out.
        """
        refuse_two(modalities)
        limits = adversary.Adversary(task, threats, modalities, jointly=False)
        limits.refuse_attack(attack)
        super().__init__(limits)
        self.attack, self.modalities = attack, tuple(modalities)

    def craft(self, learner: Learner, batch: Batch) -> Batch:
        """Attack one modality of every row, and note which."""
        victim = self.adversary.victim(learner.model, batch)
        if not victim.modalities:
            return batch
        points = self.attack(victim)
        found = adversary.moved(victim, points)  # type: ignore[arg-type]
        for m, numbers in found.items():
            numbers["turn"] = _turned(victim, m, points[m])  # type: ignore[arg-type]
        return adversary.carry(batch, {self.key: found})

    def forward(self, model: Model, batch: Batch, outputs: Outputs) -> Tensor:
        """Sum over the rows that were attacked, ().

        Raises:
            ValueError: the fusion does not say which modality is odd.
        """
        crafted = adversary.carried(batch, self.key)
        if not crafted:
            return scores_of(outputs)[:, 0].sum() * 0.0  # the others' may be the lowest numbers there are
        rest = model.encode(batch, [m for m in model.modalities if m not in crafted])
        answered = model.fuse(rest | model.encode(adversary.put(model, batch, crafted), [*crafted]))
        odd = torch.stack([(1 + self.modalities.index(m)) * numbers["turn"] for m, numbers in crafted.items()]).sum(0)
        attacked = odd > 0
        found = F.cross_entropy(scores_of(answered), odd, reduction="none").masked_fill(~(attacked & judged(batch.present)), 0.0)
        right = F.cross_entropy(precise(answered.logits[self.task]), batch.labels[self.task], reduction="none")
        return (found + right.masked_fill(~attacked, 0.0)).sum()

    def count(self, batch: Batch) -> Tensor:
        """The labelled rows that have one of the modalities."""
        there = torch.stack([batch.present[m] for m in self.adversary.threats]).any(0)
        return (there & batch.labelled[self.task]).sum()


def _turned(victim: Victim, m: str, x: Tensor) -> Tensor:
    """Rows of which this modality was moved, (B,) bool; what has no turn has no room to move."""
    far = victim.balls[m].far(x)  # (N,)
    return far.new_zeros(victim.batch.size).scatter_reduce(0, victim.rows[m], far, "amax") > 0
