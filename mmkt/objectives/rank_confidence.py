"""Confidence in the order of losses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mmkt.distributed import gather
from mmkt.layers.unimodal import note_of
from mmkt.types import Batch, Objective, Outputs

if TYPE_CHECKING:
    from mmkt.model import Model


class RankConfidence(Objective):
    """A modality's confidence w should rank rows as being right does (Moon et al., 2020; the regulariser of QMF, 2023).

    For rows i, j that are labelled and have modality m: max(0, |c_i − c_j| − sign(c_i − c_j)(w_i − w_j)), c the probability
    that m gives to the true class, without gradient. Mean over j, of the batches of all processes; sum over i and m. QMF
    takes for c a row's history over epochs and compares neighbours; here it is the present value and all pairs, so that
    there is no memory a row.
    """

    contrasts = True

    def __init__(self, dim: int, modalities: Sequence[str], outputs: Mapping[str, int], domains: Sequence[str], *, task: str):
        """Remember the classification task."""
        super().__init__()
        self.task, self.modalities = task, tuple(modalities)

    def forward(self, model: Model, batch: Batch, outputs: Outputs) -> Tensor:
        """Sum over this rank's labelled rows, ()."""
        logits, y = note_of(outputs, batch, "logits", self.task)  # (B, M, K)
        w, _ = note_of(outputs, batch, "confidence", self.task)  # (B, M)
        right = logits.detach().softmax(2).gather(2, y[:, None, None].expand(-1, logits.shape[1], 1))[..., 0]  # (B, M)
        there = torch.stack([batch.present[m] & batch.labelled[self.task] for m in self.modalities], 1)
        all_w, all_right, all_there = gather(w), gather(right), gather(there.to(w.dtype))  # (world·B, M)
        gap = right[:, None] - all_right  # (B, world·B, M)
        hinge = (gap.abs() - gap.sign() * (w[:, None] - all_w)).clamp(min=0)
        counted = there[:, None] * all_there
        return ((hinge * counted).sum(1) / all_there.sum(0).clamp(min=1)).sum()

    def count(self, batch: Batch) -> Tensor:
        """The labelled rows."""
        return batch.labelled[self.task].sum()
