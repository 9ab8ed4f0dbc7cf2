"""Slower steps for the modality that is ahead."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from mmkt import distributed
from mmkt.layers.balance import Tally, ahead
from mmkt.layers.unimodal import UnimodalLogits, classes_of, labels_of
from mmkt.types import Batch, Encoded, Objective, Outputs, Phase, Resources

if TYPE_CHECKING:
    from mmkt.learner import Learner
    from mmkt.model import Model


class OgmGe(Objective):
    """OGM-GE (Peng et al., 2022), beside ``classify``: gradients of what leads are made smaller, and noisy.

    The probability that modality m alone gives to the true class, averaged over a step's rows, is its score; ρ_m is its score
    over the mean of the others' (the paper's ratio where there are two). What trains for m alone, its encoder and its
    projection, has its gradient g multiplied by k_m = 1 − tanh(α ρ_m) if ρ_m > 1, else 1 (OGM); with ``noise``, normal noise of
    the standard deviation of g's numbers, tensor by tensor, is added to every modality's (GE).

    The scores come from a linear layer a modality on its vector, which trains on detached vectors: the paper reads them off the
    halves of one linear layer over concatenated vectors, which other fusions have not. A body that two encoders share has the
    factor of the one that owns it. AdamW divides a gradient by its own running size, so that a k_m that stays the same changes
    little under it; the paper has SGD.
    """

    drawn: Tensor
    seed: Tensor

    def __init__(
        self,
        dim: int,
        modalities: Sequence[str],
        outputs: Mapping[str, int],
        domains: Sequence[str],
        *,
        task: str,
        alpha: Annotated[float, Field(gt=0)] = 0.5,
        noise: bool = True,
    ):
        """Build the layers; ``task`` is a classification."""
        super().__init__()
        if len(modalities) < 2:
            raise ValueError(f"ogm_ge compares modalities, found {', '.join(modalities)} alone: add an encoder, or leave it out")
        self.task, self.modalities, self.alpha, self.noise = task, tuple(modalities), alpha, noise
        self.each, self.tally = UnimodalLogits(dim, modalities, classes_of(outputs, task)), Tally(len(modalities))
        self.register_buffer("seed", torch.zeros((), dtype=torch.long))
        self.register_buffer("drawn", torch.zeros((), dtype=torch.long))

    def prepare(self, learner: Learner, resources: Resources) -> None:
        """Draw the noise's seed, as the model was drawn; nothing else is drawn otherwise for it."""
        with torch.random.fork_rng(devices=[]):
            self.seed.copy_(torch.randint(2**62, ()))

    def begin(self, learner: Learner, phase: Phase) -> None:
        """Before a phase.

        Raises:
            ValueError: no gradient is one modality's alone, or gradients are sharded.
        """
        if not learner.by_modality():
            raise ValueError(f"ogm_ge: in the phase {phase.name!r} no encoder and no projection trains: leave it out")
        if distributed.is_sharded(learner):
            raise ValueError("ogm_ge takes whole gradients, which FSDP2 has not: launch with ddp.yaml")
        self.place = int(self.seed + self.drawn)  # on the CPU: a step waits for no device

    def forward(self, model: Model, batch: Batch, outputs: Outputs) -> Tensor:
        """Σ over labelled rows and present modalities of the layers' cross-entropy, (): encoders learn nothing of it."""
        y = labels_of(batch, self.task)
        logits, present = self.each({m: Encoded.of(x.pooled.detach(), x.present) for m, x in outputs.encoded.items()})
        counted = present & batch.labelled[self.task][:, None]  # (B, M)
        wrong = F.cross_entropy(logits.flatten(0, 1), y.repeat_interleave(present.shape[1]), reduction="none").view_as(present)
        if self.training:
            self.tally.add((-wrong).exp().masked_fill(~counted, 0.0).sum(0), counted.sum(0))
        return wrong.masked_fill(~counted, 0.0).sum()

    def count(self, batch: Batch) -> Tensor:
        """The labelled rows."""
        return batch.labelled[self.task].sum()

    def graded(self, learner: Learner) -> None:
        """Scale what leads, and add noise: the same on every process."""
        ratio = ahead(*self.tally.take())
        factor = torch.where(ratio > 1, 1 - torch.tanh(self.alpha * ratio), 1.0)
        self.drawn, self.place = self.drawn + 1, self.place + 1
        generator = torch.Generator(factor.device).manual_seed(self.place)
        for m, parameters in learner.by_modality().items():
            for p in parameters:
                if p.grad is None:
                    continue
                spread = p.grad.std(correction=0)
                p.grad.mul_(factor[self.modalities.index(m)])
                if self.noise:
                    p.grad.add_(spread * torch.randn(p.grad.shape, generator=generator, device=p.device, dtype=p.grad.dtype))
