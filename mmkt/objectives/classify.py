"""Cross-entropy of one task."""

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


class Classify(Objective):
    """Cross-entropy, with class weights, label smoothing (Szegedy et al., 2016) and focal loss (Lin et al., 2017).

    Σ over labelled rows of w_y (1 − p_y)^γ · CE(p, smoothed y). ``class_weights: balanced`` weighs a class by
    1 / its count in the training split, scaled so that the mean weight of a training row is 1.
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
        """Remember the settings; ``focal`` is γ."""
        super().__init__()
        self.task, self.class_weights, self.label_smoothing, self.focal = task, class_weights, label_smoothing, focal
        self.counts: Tensor | None = None  # of the classes, on the device

    def forward(self, model: Model, batch: Batch, outputs: Outputs) -> Tensor:
        """Sum over the labelled rows, ()."""
        logits, y = outputs.logits[self.task].float(), batch.labels[self.task]
        loss = F.cross_entropy(logits, y, reduction="none", label_smoothing=self.label_smoothing)
        if self.focal:
            loss = loss * (1 - logits.softmax(1).gather(1, y[:, None])[:, 0]) ** self.focal
        if self.class_weights == "balanced":
            if self.counts is None or self.counts.device != logits.device:  # kept: each such copy makes the host wait
                self.counts = torch.tensor(model.heads[self.task].vocabulary["counts"], device=logits.device)
            counts = self.counts
            loss = loss * (counts.sum() / (len(counts) * counts))[y]
        return loss.masked_fill(~batch.labelled[self.task], 0.0).sum()

    def count(self, batch: Batch) -> Tensor:
        """The labelled rows."""
        return batch.labelled[self.task].sum()
