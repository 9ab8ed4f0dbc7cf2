"""The loss of evidential fusion."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from mmkt.layers.unimodal import note_of
from mmkt.types import Batch, Objective, Outputs

if TYPE_CHECKING:
    from mmkt.learner import Learner
    from mmkt.model import Model


class Evidence(Objective):
    """TMC's loss (Han et al., 2021), for the fusion ``evidential`` in place of ``classify``.

    With α = e + 1 and S = Σ α an opinion's loss is Σ_k y_k (ψ(S) − ψ(α_k)) + λ KL(Dir(α̃) ‖ Dir(1)), α̃ = y + (1 − y) ⊙ α: the
    expected cross-entropy, and no evidence for what is wrong. It is summed over the fused opinion and those of the present
    modalities. λ grows from 0 to 1 over the share ``annealing`` of the steps.
    """

    progress: Tensor

    def __init__(
        self,
        dim: int,
        modalities: Sequence[str],
        outputs: Mapping[str, int],
        domains: Sequence[str],
        *,
        task: str,
        annealing: Annotated[float, Field(gt=0, le=1)] = 0.1,
    ):
        """Remember the classification task."""
        super().__init__()
        self.task, self.modalities, self.annealing = task, tuple(modalities), annealing
        self.register_buffer("progress", torch.zeros(1))

    def forward(self, model: Model, batch: Batch, outputs: Outputs) -> Tensor:
        """Sum over the labelled rows, ()."""
        evidence, y = note_of(outputs, batch, "evidence", self.task)  # (B, 1 + M, K)
        counted = torch.stack([batch.labelled[self.task], *(batch.present[m] for m in self.modalities)], 1)
        counted = counted & batch.labelled[self.task][:, None]
        alpha, right = evidence + 1, F.one_hot(y, evidence.shape[2])[:, None].to(evidence.dtype)  # (B, 1, K)
        expected = (right * (alpha.sum(2, keepdim=True).digamma() - alpha.digamma())).sum(2)
        wrong = divergence_from_uniform(right + (1 - right) * alpha)
        weight = (self.progress / self.annealing).clamp(max=1)
        return (expected + weight * wrong).masked_fill(~counted, 0.0).sum()

    def count(self, batch: Batch) -> Tensor:
        """The labelled rows."""
        return batch.labelled[self.task].sum()

    def stepped(self, learner: Learner, progress: float) -> None:
        """Remember how far the phase has come."""
        self.progress.fill_(progress)


def divergence_from_uniform(alpha: Tensor) -> Tensor:
    """KL(Dir(α) ‖ Dir(1)) in nats over the last axis."""
    total = alpha.sum(-1, keepdim=True)
    inner = ((alpha - 1) * (alpha.digamma() - total.digamma())).sum(-1)
    return total[..., 0].lgamma() - math.lgamma(alpha.shape[-1]) - alpha.lgamma().sum(-1) + inner
