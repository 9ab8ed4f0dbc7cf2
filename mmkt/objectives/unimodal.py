"""Cross-entropy of every modality's own logits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from mmkt.layers.unimodal import UnimodalLogits, classes_of, labels_of, note_of
from mmkt.types import Batch, Objective, Outputs

if TYPE_CHECKING:
    from mmkt.model import Model


class Unimodal(Objective):
    """Σ over labelled rows and their present modalities of CE(ℓ_m, y): each modality is trained to answer by itself.

    For fusions that give each modality's logits (``late``, ``dynamic``), beside the loss of what is fused; without it the
    stronger modality can leave the others untrained (Wang et al., 2020, who call for such losses; part of QMF, 2023). With
    ``own: true`` a linear layer a modality, which training throws away, gives them instead: then any fusion will do.
    """

    def __init__(
        self,
        dim: int,
        modalities: Sequence[str],
        outputs: Mapping[str, int],
        domains: Sequence[str],
        *,
        task: str,
        own: bool = False,
    ):
        """Remember the classification task; build the layers, where they are its own."""
        super().__init__()
        self.task, self.modalities = task, tuple(modalities)
        self.each = UnimodalLogits(dim, modalities, classes_of(outputs, task)) if own else None

    def forward(self, model: Model, batch: Batch, outputs: Outputs) -> Tensor:
        """Sum over the labelled rows, ()."""
        if self.each is not None:
            (logits, _), y = self.each(outputs.encoded), labels_of(batch, self.task)
        else:
            logits, y = note_of(outputs, batch, "logits", self.task)
        present = torch.stack([batch.present[m] for m in self.modalities], 1)  # (B, M)
        loss = F.cross_entropy(logits.flatten(0, 1), y.repeat_interleave(present.shape[1]), reduction="none").view_as(present)
        return loss.masked_fill(~(present & batch.labelled[self.task][:, None]), 0.0).sum()

    def count(self, batch: Batch) -> Tensor:
        """The labelled rows."""
        return batch.labelled[self.task].sum()
