"""Regression loss of one task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Literal

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from mmkt.types import Batch, Objective, Outputs

if TYPE_CHECKING:
    from mmkt.model import Model


class Regress(Objective):
    """Squared, absolute or Huber error of the standardised value."""

    def __init__(
        self,
        dim: int,
        modalities: Sequence[str],
        outputs: Mapping[str, int],
        domains: Sequence[str],
        *,
        task: str,
        loss: Literal["mse", "l1", "huber"] = "mse",
        delta: Annotated[float, Field(gt=0)] = 1.0,
    ):
        """Remember the settings; ``delta`` is Huber's, in training standard deviations."""
        super().__init__()
        self.task, self.loss, self.delta = task, loss, delta

    def forward(self, model: Model, batch: Batch, outputs: Outputs) -> Tensor:
        """Sum over the labelled rows, ()."""
        x, y = outputs.logits[self.task][:, 0].float(), batch.labels[self.task].float()
        if self.loss == "mse":
            loss = F.mse_loss(x, y, reduction="none")
        elif self.loss == "l1":
            loss = F.l1_loss(x, y, reduction="none")
        else:
            loss = F.huber_loss(x, y, reduction="none", delta=self.delta)
        return loss.masked_fill(~batch.labelled[self.task], 0.0).sum()

    def count(self, batch: Batch) -> Tensor:
        """The labelled rows."""
        return batch.labelled[self.task].sum()
