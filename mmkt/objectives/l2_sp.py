"""A pull back to where training started."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mmkt import distributed
from mmkt.types import Batch, Objective, Outputs, Resources

if TYPE_CHECKING:
    from mmkt.learner import Learner
    from mmkt.model import Model


class L2Sp(Objective):
    """L2-SP (Li et al., 2018): ½ Σ ‖θ − θ₀‖² over what trains of the encoders; its weight is the paper's α.

    Weight decay pulls towards 0; under AdamW it is decoupled, which this is not: it is part of the loss.
    """

    serves = False

    def __init__(
        self,
        dim: int,
        modalities: Sequence[str],
        outputs: Mapping[str, int],
        domains: Sequence[str],
        *,
        parameters: list[str] = ["encoders"],  # noqa: B006 - never changed
    ):
        """Remember the patterns.

        Args:
            dim: unused.
            modalities: unused.
            outputs: unused.
            domains: unused.
            parameters: patterns of names that are pulled, where they train.
        """
        super().__init__()
        self.patterns, self.names = parameters, dict[str, str]()

    def prepare(self, learner: Learner, resources: Resources) -> None:
        """Keep θ₀ as buffers: they are saved with the state to resume from."""
        for name, parameter in learner.matching(self.patterns).items():
            self.names[name] = f"start_{len(self.names)}"
            self.register_buffer(self.names[name], parameter.detach().clone())

    def forward(self, model: Model, batch: Batch, outputs: Outputs) -> Tensor:
        """Half the squared distance, ()."""
        if not self.names:
            raise ValueError(f"parameters: {self.patterns} match nothing that there was when training was prepared")
        if distributed.is_sharded(model):
            raise ValueError("l2_sp compares whole parameters, which FSDP2 has not: launch with ddp.yaml")
        total = outputs.fused.pooled.new_zeros(())
        for name, parameter in model.named_parameters():
            if name in self.names and parameter.requires_grad:
                total = total + 0.5 * (parameter - getattr(self, self.names[name])).square().sum()
        return total

    def count(self, batch: Batch) -> Tensor:
        """One a batch."""
        return torch.ones((), device=batch.row.device)
