"""The modalities that a row can least do without are taken from it."""

from __future__ import annotations

from itertools import combinations
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from mmkt.queries import TIED
from mmkt.types import Attack
from mmkt.victim import Victim


class Absent(Attack):
    """Missing modalities at their worst: of each row, those go without which the answer is worst; the last one always stays.

    Every choice is looked at, so that no attacker who may drop as many does better (Ma et al., 2022, drop the same ones from all
    rows). Encoders run once, what comes after them once a choice. Of choices that are equally bad fewer go.
    """

    moves = "presence"
    norms = ()
    gradients = False
    keeps = False

    def __init__(self, *, most: Annotated[int, Field(ge=1)] = 1):
        """Remember the setting.

        Args:
            most: modalities of a row that may go.
        """
        self.most = most

    @torch.no_grad()
    def __call__(self, victim: Victim) -> dict[str, Tensor]:
        """A fusion for each choice of up to ``most`` of the victim's modalities."""
        encoded, found, worst = victim.encoded(victim.clean), victim.clean, None
        for count in range(min(self.most, len(victim.modalities)) + 1):
            for gone in combinations(victim.modalities, count):
                points = {m: x & (m not in gone) for m, x in victim.clean.items()}
                some = {m: x._replace(present=x.present & points[m]) if m in points else x for m, x in encoded.items()}
                margin = victim.goal.loss("margin", victim.fused(some))
                if worst is None:
                    worst = margin
                    continue
                left = torch.stack(list((victim.batch.present | points).values())).any(0)  # (B,) something is
                better = (margin > worst + TIED * worst.abs().clamp(min=1.0)) & left & victim.goal.known
                found, worst = victim.choose(better, points, found), torch.where(better, margin, worst)
        return found
