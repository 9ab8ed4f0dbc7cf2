"""Binary cross-entropy of a multi-label task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from mmkt.types import Batch, Objective, Outputs

if TYPE_CHECKING:
    from mmkt.model import Model


class Tag(Objective):
    """Binary cross-entropy averaged over classes, with weights of the positives, smoothing and focal loss.

    ``class_weights: balanced`` weighs a class's positives by negatives / positives of the training split. Smoothing s
    moves targets to y(1 − s) + s/2. ``focal`` is γ of (1 − p_t)^γ (Lin et al., 2017).
    """

    def __init__(
        self,
        dim: int,
        modalities: Sequence[str],
        outputs: Mapping[str, int],
        domains: Sequence[str],
        *,
        task: str,
        class_weights: Literal["none", "balanced"] = "none",
        label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0,
        focal: Annotated[float, Field(ge=0)] = 0.0,
    ):
        """Remember the settings."""
        super().__init__()
        self.task, self.class_weights, self.label_smoothing, self.focal = task, class_weights, label_smoothing, focal
        self.counts: Tensor | None = None  # of the classes, on the device

    def forward(self, model: Model, batch: Batch, outputs: Outputs) -> Tensor:
        """Sum over the labelled rows, ()."""
        logits, y = outputs.logits[self.task].float(), batch.labels[self.task]  # (B, C)
        positive = None
        if self.class_weights == "balanced":
            vocabulary = model.heads[self.task].vocabulary
            if self.counts is None or self.counts.device != logits.device:  # kept: each such copy makes the host wait
                self.counts = torch.tensor(vocabulary["counts"], device=logits.device)
            positive = (vocabulary["rows"] - self.counts).clamp(min=1) / self.counts
        smooth = y * (1 - self.label_smoothing) + self.label_smoothing / 2
        loss = F.binary_cross_entropy_with_logits(logits, smooth, reduction="none", pos_weight=positive)
        if self.focal:
            p = logits.sigmoid()
            loss = loss * torch.where(y > 0, 1 - p, p) ** self.focal
        return loss.mean(1).masked_fill(~batch.labelled[self.task], 0.0).sum()

    def count(self, batch: Batch) -> Tensor:
        """The labelled rows."""
        return batch.labelled[self.task].sum()
