"""Losses weighted by how well what they teach generalises."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from mmkt.layers.balance import Tally
from mmkt.layers.unimodal import UnimodalLogits, classes_of, labels_of
from mmkt.types import Batch, Objective, Outputs

if TYPE_CHECKING:
    from mmkt.learner import Learner
    from mmkt.model import Model

FLOOR = 1e-3  # nats: overfitting that is not told apart from none


class GBlend(Objective):
    """Gradient-Blend (Wang et al., 2020), in place of ``classify``: Σ_k w_k · CE(ℓ_k, y), k the fused answer and each modality.

    A modality answers through a linear layer on its vector, which is thrown away. Over each window of ``every`` steps, G_k is
    by how much the loss on rows that are held out fell since the window before, O_k by how much the gap from training's loss to
    theirs grew, and w_k ∝ max(G_k, 0) / O_k², summing to one; until the second window ends, and where nothing generalised, they
    stay as they were (equal at first).

    Held out is a fixed share of the training rows, which teach nothing here; other objectives would still learn from them.
    They pass through the same forward, so they cost no second one. The paper trains a copy of each model for a while to measure
    G and O (its online form); here they are those of the one training, from one window to the next. Validation is not read.
    """

    weights: Tensor
    window: Tensor
    before: Tensor
    steps: Tensor

    def __init__(
        self,
        dim: int,
        modalities: Sequence[str],
        outputs: Mapping[str, int],
        domains: Sequence[str],
        *,
        task: str,
        every: Annotated[int, Field(ge=1)] = 50,
        held: Annotated[float, Field(gt=0, lt=1)] = 0.1,
    ):
        """Build the layers.

        Args:
            dim: D.
            modalities: of the model.
            outputs: by task.
            domains: unused.
            task: a classification.
            every: steps a window; a window has to see enough held rows to compare their losses.
            held: share of the training rows that is held out.
        """
        super().__init__()
        self.task, self.every, self.held, losses = task, every, held, 1 + len(modalities)
        self.each, self.tally = UnimodalLogits(dim, modalities, classes_of(outputs, task)), Tally(2, losses)
        self.register_buffer("weights", torch.full((losses,), 1 / losses))
        self.register_buffer("window", torch.zeros(2, 2, losses))  # sums and counts, of trained and of held rows
        self.register_buffer("before", torch.full((2, losses), torch.nan))  # the last window's losses, of both
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))

    def forward(self, model: Model, batch: Batch, outputs: Outputs) -> Tensor:
        """Sum over the labelled rows that are not held out, (); in evaluation over all that are labelled."""
        y, labelled = labels_of(batch, self.task), batch.labelled[self.task]
        logits, present = self.each(outputs.encoded)
        every = torch.cat([outputs.logits[self.task].float()[:, None], logits], 1)  # (B, 1 + M, C)
        there = torch.cat([torch.ones_like(present[:, :1]), present], 1)
        loss = F.cross_entropy(every.flatten(0, 1), y.repeat_interleave(every.shape[1]), reduction="none").view_as(there)
        taught = self._taught(batch)
        if self.training:
            parts = torch.stack([taught, labelled & ~taught])[..., None] & there  # (2, B, 1 + M)
            self.tally.add(torch.where(parts, loss, 0.0).sum(1), parts.sum(1))
        return (loss.masked_fill(~(there & taught[:, None]), 0.0) * self.weights.clone()).sum()

    def count(self, batch: Batch) -> Tensor:
        """The labelled rows that are not held out."""
        return self._taught(batch).sum()

    def _taught(self, batch: Batch) -> Tensor:
        """Labelled rows that train, (B,): whether a row is held depends on its place in the manifest alone."""
        if not self.training:
            return batch.labelled[self.task]
        drawn = (batch.row * 2654435761) % 2**32  # Knuth's multiplicative hash
        return batch.labelled[self.task] & (drawn >= self.held * 2**32)

    def stepped(self, learner: Learner, progress: float) -> None:
        """Add the step to its window; where that ends, weigh anew. No figure leaves the device."""
        self.window += torch.stack(self.tally.take())
        self.steps += 1
        ends = self.steps % self.every == 0
        losses = self.window[0] / self.window[1]  # (2, 1 + M); NaN where there was no row
        weights = blended(self.before, losses)
        self.weights.copy_(torch.where(ends & weights.isfinite().all(), weights, self.weights))
        self.before.copy_(torch.where(ends, losses, self.before))
        self.window.mul_(~ends)


def blended(before: Tensor, now: Tensor) -> Tensor:
    """w_k ∝ max(G_k, 0) / O_k², (K,), with sum one; NaN where no loss generalised.

    Args:
        before: (2, K) losses of trained and of held rows; NaN counts as nothing learned.
        now: the same, later.
    """
    gained = before[1] - now[1]
    overfitted = (now[1] - now[0]) - (before[1] - before[0])
    raw = (gained.clamp(min=0) / overfitted.square().clamp(min=FLOOR**2)).nan_to_num(nan=0.0)
    return raw / raw.sum()
