"""Evidence of every modality, combined by Dempster's rule."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from mmkt.layers.unimodal import UnimodalLogits
from mmkt.types import Encoded, Fused, Fusion


class Evidential(Fusion):
    """Trusted multi-view classification (TMC, Han et al., 2021), with a linear head a modality and task inside.

    A modality's evidence e = softplus(ℓ) makes a Dirichlet α = e + 1 of strength S = Σ α, the beliefs b = e / S and the
    uncertainty u = K / S. Two opinions combine to b_k = (b¹_k b²_k + b¹_k u² + b²_k u¹) / (1 − C), u = u¹u² / (1 − C), with
    the conflict C = Σ_{i≠j} b¹_i b²_j. Exact: a missing modality has u = 1, which is neutral. The logits are those of the
    expected probabilities b_k + u / K. TMC's loss is the objective ``evidence``.
    """

    level = "logit"
    symmetric = True
    missing = "exact"
    interacts = False
    cost = "M·D·C"
    params = "M*(D + 1)*C"
    flops = "2*M*D*C"
    heads = ("classify",)

    def __init__(self, dim: int, modalities: Sequence[str], outputs: Mapping[str, int]):
        """Build the heads."""
        super().__init__()
        self.each = UnimodalLogits(dim, modalities, outputs)

    def forward(self, parts: dict[str, Encoded]) -> Fused:
        """(B, D) a modality → logits.

        Notes, by task: ``evidence.TASK`` (B, 1 + M, K), that of all together first, and ``uncertainty.TASK`` (B, 1 + M).
        """
        each, present = self.each(parts)  # (B, M, C), (B, M)
        logits, notes = {}, {}
        for task, x in self.each.by_task(each).items():
            evidence = F.softplus(x).masked_fill(~present[..., None], 0.0)  # (B, M, K)
            number = evidence.shape[-1]
            opinions = [opinion(e) for e in evidence.unbind(1)]
            b, u = opinions[0]
            for other in opinions[1:]:
                b, u = combine((b, u), other)
            logits[task] = (b + u / number).log()
            total = b * (number / u)
            notes[f"evidence.{task}"] = torch.cat([total[:, None], evidence], 1)
            notes[f"uncertainty.{task}"] = torch.cat([u, *(own for _, own in opinions)], 1)
        return self.each.fused(parts, logits, notes)


def opinion(evidence: Tensor) -> tuple[Tensor, Tensor]:
    """Beliefs (B, K) and uncertainty (B, 1) of evidence (B, K)."""
    strength = evidence.sum(1, keepdim=True) + evidence.shape[1]
    return evidence / strength, evidence.shape[1] / strength


def combine(one: tuple[Tensor, Tensor], two: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Dempster's rule for two opinions, each beliefs (B, K) and uncertainty (B, 1)."""
    (b1, u1), (b2, u2) = one, two
    agreed = b1 * b2 + b1 * u2 + b2 * u1
    rest = u1 * u2
    scale = agreed.sum(1, keepdim=True) + rest  # 1 − C, without its cancellation
    return agreed / scale, rest / scale
