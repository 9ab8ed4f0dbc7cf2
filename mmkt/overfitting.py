"""Catastrophic overfitting, watched while training goes on: what withstands one step falls to several."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from mmkt import distributed
from mmkt.parts import Parts
from mmkt.threat import Threat
from mmkt.types import Attack
from mmkt.victim import Victim

if TYPE_CHECKING:
    from mmkt.feed import Feed
    from mmkt.learner import Learner

STEPS = 10  # of PGD
HALF = 0.5  # of what is right as it comes, and of what withstands FGSM
ROBUST = "robust", "robust fgsm", "robust clean"  # accuracies: under PGD, under FGSM, and of the same rows as they come


class Overfitting:
    """Accuracy of validation rows as they come, under FGSM and under PGD of ten steps, at every evaluation.

    Wong et al. (2020): a model trained on single steps may lose all of its accuracy under PGD, or never gain any, while that
    under FGSM stays high. It is said where half of what is right as it comes withstands FGSM, and less than half of that PGD.

    Args:
        task: of a head ``classify``.
        threats: by modality, all of them at once.
        count: of rows, spread evenly over those that validate; 0: nothing is measured.
    """

    def __init__(self, task: str, threats: Mapping[str, Threat], count: int):
        self.task, self.threats, self.count = task, dict(threats), count

    def watched(self, learner: Learner, feed: Feed, rows: np.ndarray) -> dict[str, float]:
        """Measure, and say what is to be said; all processes take part, and have the same figures.

        Args:
            learner: on its device.
            feed: its rows.
            rows: numbers of those that validate.

        Returns:
            ``robust`` (PGD), ``robust fgsm`` and ``robust clean``: shares of the labelled rows that have one of the modalities
            and are answered rightly as they come, and also when attacked; ``overfitted``, 1.0 where it is catastrophic. None of
            them where there are no such rows.
        """
        if not self.count:
            return {}
        some = np.sort(rows)[np.unique(np.linspace(0, len(rows) - 1, min(self.count, len(rows))).round().astype(np.int64))]
        device = next(learner.parameters()).device
        right, parts = torch.zeros(4, device=device), Parts()
        attacks = parts.find("attacks", "fgsm")(), parts.find("attacks", "pgd")(steps=STEPS)
        for batch in feed.evaluation(some):
            victim = Victim(learner.model, batch.to(device), self.task, self.threats)
            if victim.modalities:
                right += _right(victim, attacks)
        counts = distributed.total(right).tolist()
        if not counts[0]:
            return {}
        clean, fgsm, pgd = (x / counts[0] for x in counts[1:])
        single = fgsm >= HALF * clean and pgd < HALF * fgsm
        if single:
            distributed.say(
                f"{self.task}: catastrophic overfitting: of {counts[0]:.0f} validation rows {pgd:.1%} withstand PGD of {STEPS} "
                f"steps, {fgsm:.1%} FGSM. Start from a random place (attack={{name: fgsm, start: true, size: 1.25}}), make more "
                "steps (attack=pgd), raise the rate more slowly (train.warmup), or lower eps"
            )
        return dict(zip(ROBUST, (pgd, fgsm, clean))) | {"overfitted": float(single)}


def _right(victim: Victim, attacks: Sequence[Attack]) -> Tensor:
    """Rows that can be attacked, and of these the right ones: as they come, under one attack, under the other, (4,)."""
    right = victim.attackable & ~victim.goal.reached(victim.logits(victim.clean))
    found = [right & ~victim.goal.reached(victim.logits(attack(victim))) for attack in attacks]
    return torch.stack([victim.attackable, right, *found]).sum(1).float()
