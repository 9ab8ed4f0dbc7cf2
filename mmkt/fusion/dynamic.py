"""Late fusion weighted by each modality's own confidence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated

from pydantic import Field
from torch import Tensor

from mmkt.layers.unimodal import UnimodalLogits
from mmkt.types import Encoded, Fused, Fusion


class Dynamic(Fusion):
    """Quality-aware multimodal fusion (QMF, Zhang et al., 2023): ℓ = Σ_m w_m(x_m) ℓ_m, with a linear head a modality inside.

    The confidence w_m = scale · log Σ_k exp ℓ_{m,k} is the negative free energy; no gradient goes through it. Exact: a
    missing modality has w_m = 0; with nothing present all logits are zero. The paper adds each modality's own loss and a
    term that ranks confidences as losses: the objectives ``unimodal`` and ``rank_confidence``.
    """

    level = "logit"
    symmetric = True
    missing = "exact"
    interacts = False
    cost = "M·D·C"
    params = "M*(D + 1)*C"
    flops = "2*M*D*C"
    heads = ("classify",)

    def __init__(
        self,
        dim: int,
        modalities: Sequence[str],
        outputs: Mapping[str, int],
        *,
        scale: Annotated[float, Field(gt=0)] = 0.1,
    ):
        """Build the heads."""
        super().__init__()
        self.scale, self.each = scale, UnimodalLogits(dim, modalities, outputs)

    def forward(self, parts: dict[str, Encoded]) -> Fused:
        """(B, D) a modality → logits.

        Notes, by task: ``logits.TASK`` (B, M, K) and ``confidence.TASK`` (B, M), with gradient.
        """
        each, present = self.each(parts)  # (B, M, C), (B, M)
        logits: dict[str, Tensor] = {}
        notes: dict[str, Tensor] = {}
        for task, x in self.each.by_task(each).items():
            w = (self.scale * x.logsumexp(2)).masked_fill(~present, 0.0)  # (B, M)
            logits[task] = (w.detach()[..., None] * x).sum(1)
            notes |= {f"logits.{task}": x, f"confidence.{task}": w}
        return self.each.fused(parts, logits, notes)
