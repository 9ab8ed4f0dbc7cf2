"""Contrastive alignment of the modalities in the shared space."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import TYPE_CHECKING, Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from mmkt.distributed import gather, rank, world_size
from mmkt.types import Batch, Objective, Outputs

if TYPE_CHECKING:
    from mmkt.model import Model


class Align(Objective):
    """Symmetric InfoNCE (CLIP, Radford et al., 2021) over every pair of modalities, negatives from all processes.

    For a pair (a, b): −½ Σ_i [log softmax_j(s·⟨a_i, b_j⟩)_i + log softmax_j(s·⟨b_i, a_j⟩)_i] over rows that have both;
    s = exp(log_scale) is learned and bounded by 100. The sum runs over this rank's rows; the learner divides by
    (row, pair) items.
    """

    contrasts = True

    def __init__(
        self,
        dim: int,
        modalities: Sequence[str],
        outputs: Mapping[str, int],
        domains: Sequence[str],
        *,
        temperature: Annotated[float, Field(gt=0)] = 0.07,
        between: list[str] | None = None,
    ):
        """Remember the pairs: of the modalities in ``between``, by default of all."""
        super().__init__()
        chosen = list(modalities) if between is None else between
        unknown = [m for m in chosen if m not in modalities]
        if unknown or len(chosen) < 2:
            raise ValueError(f"align needs two modalities or more of {', '.join(modalities)}, found {chosen}")
        self.pairs = list(combinations(chosen, 2))
        self.log_scale = nn.Parameter(torch.tensor([math.log(1 / temperature)]))

    def forward(self, model: Model, batch: Batch, outputs: Outputs) -> Tensor:
        """Sum over this rank's rows and the pairs, ()."""
        scale = self.log_scale.clamp(max=math.log(100)).exp()
        z = {m: F.normalize(_full(outputs.encoded[m].pooled), dim=1) for pair in self.pairs for m in pair}
        loss = sum((x.sum() for x in z.values()), start=scale.sum()) * 0.0  # connected even when no row has two
        every = {m: gather(x) for m, x in z.items()}
        here = torch.arange(batch.size, device=loss.device) + (rank() * batch.size if world_size() > 1 else 0)
        for a, b in self.pairs:
            both = batch.present[a] & batch.present[b]
            absent = ~_gather_mask(both)  # (world·B,)
            for x, y in ((z[a], every[b]), (z[b], every[a])):
                scores = (scale * x @ y.T).masked_fill(absent[None], float("-inf"))
                # a row without both would have no finite target: it is scored against nothing and left out
                losses = F.cross_entropy(scores.masked_fill(~both[:, None], 0.0), here, reduction="none")
                loss = loss + 0.5 * losses.masked_fill(~both, 0.0).sum()
        return loss

    def count(self, batch: Batch) -> Tensor:
        """Rows that have both of a pair, over the pairs."""
        return sum((batch.present[a] & batch.present[b]).sum() for a, b in self.pairs)  # type: ignore[return-value]


def _full(x: Tensor) -> Tensor:
    """At least single precision, under autocast too."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _gather_mask(mask: Tensor) -> Tensor:
    """A bool mask over all processes' rows."""
    return gather(mask.float()) > 0
