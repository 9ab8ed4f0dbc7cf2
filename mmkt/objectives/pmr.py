"""Prototypes that pull the modality which is behind."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from mmkt.layers.balance import Tally, ahead
from mmkt.layers.presence import stacked
from mmkt.layers.unimodal import classes_of, labels_of
from mmkt.types import Batch, Objective, Outputs

if TYPE_CHECKING:
    from mmkt.learner import Learner
    from mmkt.model import Model


class Pmr(Objective):
    """PMR (Fan et al., 2023), beside ``classify``: what is behind learns from its classes' prototypes, what leads stays unsure.

    p_m = softmax(−‖x_m − c_{m,k}‖) over classes k, c_{m,k} the running mean of modality m's vectors of class k. The loss is
    Σ_m β_m (−log p_m(y)) − μ γ_m H(p_m), with β_m = clip(1/ρ_m − 1, 0, 1) for what is behind, γ_m = clip(ρ_m − 1, 0, 1) for what
    leads, the entropy H in the first ``early`` share of a phase alone. ρ_m is the mean of p_m(y) over that of the other
    modalities (the paper's ratio where there are two), in the step before; the objective's weight is the paper's α.

    Prototypes are c ← ε c + (1 − ε) (mean of the step's rows of the class), of all processes; the paper makes them of a pass over
    training rows. A class teaches nothing before its first step.
    """

    prototypes: Tensor
    known: Tensor
    ratio: Tensor
    progress: Tensor

    def __init__(
        self,
        dim: int,
        modalities: Sequence[str],
        outputs: Mapping[str, int],
        domains: Sequence[str],
        *,
        task: str,
        momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9,
        entropy: Annotated[float, Field(ge=0)] = 0.01,
        early: Annotated[float, Field(ge=0, le=1)] = 0.2,
    ):
        """Make room for the prototypes.

        Args:
            dim: D.
            modalities: of the model, M.
            outputs: by task.
            domains: unused.
            task: a classification, of C classes.
            momentum: ε, of a step.
            entropy: μ.
            early: share of a phase in which μ counts.
        """
        super().__init__()
        if len(modalities) < 2:
            raise ValueError(f"pmr compares modalities, found {', '.join(modalities)} alone: add an encoder, or leave it out")
        self.task, self.momentum, self.entropy, self.early = task, momentum, entropy, early
        shape = len(modalities), classes_of(outputs, task)[task]
        self.register_buffer("prototypes", torch.zeros(*shape, dim))
        self.register_buffer("known", torch.zeros(shape, dtype=torch.bool))
        self.register_buffer("ratio", torch.ones(shape[0]))
        self.register_buffer("progress", torch.zeros(()))
        self.scores, self.means = Tally(shape[0]), Tally(*shape, dim)

    def forward(self, model: Model, batch: Batch, outputs: Outputs) -> Tensor:
        """Sum over the labelled rows, ()."""
        y, labelled = labels_of(batch, self.task), batch.labelled[self.task]
        x, present = stacked(outputs.encoded)
        x, there = x.float(), present & labelled[:, None]  # (B, M, D), (B, M)
        prototypes, known = self.prototypes.clone(), self.known.clone()  # stepped() changes them, backward still needs them
        apart = torch.cdist(x.transpose(0, 1), prototypes, compute_mode="donot_use_mm_for_euclid_dist").transpose(0, 1)
        log_p = (-apart).masked_fill(~known, -1e4).log_softmax(2)  # (B, M, C)
        right = log_p.gather(2, y[:, None, None].expand(-1, x.shape[1], 1))[..., 0]
        answered = there & known[:, y].T
        if self.training:
            self.scores.add(right.exp().masked_fill(~answered, 0.0).sum(0), answered.sum(0))
            hot = (F.one_hot(y, self.known.shape[1])[:, None] * there[..., None]).to(x.dtype)  # (B, M, C)
            counts = hot.sum(0)[..., None].expand_as(prototypes)
            with torch.autocast(x.device.type, enabled=False):
                self.means.add(torch.einsum("bmc,bmd->mcd", hot, x), counts)
        behind, leads = (1 / self.ratio - 1).clamp(0, 1), (self.ratio - 1).clamp(0, 1)
        unsure = -(log_p.exp() * log_p).sum(2)
        early = self.entropy * (self.progress < self.early)
        return (-behind * right - early * leads * unsure).masked_fill(~answered, 0.0).sum()

    def count(self, batch: Batch) -> Tensor:
        """The labelled rows."""
        return batch.labelled[self.task].sum()

    def stepped(self, learner: Learner, progress: float) -> None:
        """Move the prototypes, and look who is behind."""
        self.progress.fill_(progress)
        self.ratio.copy_(ahead(*self.scores.take()))
        sums, counts = self.means.take()
        mean, seen = sums / counts.clamp(min=1), counts > 0
        moved = torch.where(self.known[..., None], self.momentum * self.prototypes + (1 - self.momentum) * mean, mean)
        self.prototypes.copy_(torch.where(seen, moved, self.prototypes))
        self.known |= seen[..., 0]
