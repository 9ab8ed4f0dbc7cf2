"""Which modality is ahead: running scores over all processes, and how far each stands above the others."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mmkt.distributed import total


class Tally(nn.Module):
    """Sums and counts that a step's batches add to, on each process by itself, until all processes take them together.

    It is empty between steps, so nothing of it is saved.

    Args:
        shape: of the sums, and of the counts.
    """

    sums: Tensor
    counts: Tensor

    def __init__(self, *shape: int):
        super().__init__()
        self.register_buffer("sums", torch.zeros(shape), persistent=False)
        self.register_buffer("counts", torch.zeros(shape), persistent=False)

    def add(self, sums: Tensor, counts: Tensor) -> None:
        """Of a batch, both of the tally's shape."""
        self.sums += sums.detach().to(self.sums.dtype)
        self.counts += counts.to(self.counts.dtype)

    def take(self) -> tuple[Tensor, Tensor]:
        """Sums and counts over all processes, which all ask; afterwards there are none."""
        found = total(torch.stack([self.sums, self.counts]))
        self.sums.zero_()
        self.counts.zero_()
        return found[0], found[1]


def ahead(sums: Tensor, counts: Tensor) -> Tensor:
    """ρ_m, the mean score of modality m over that of the others, (M,): with two the ratio that OGM-GE and PMR are made of.

    Args:
        sums: (M,) of scores, none below zero.
        counts: (M,) how many; a modality without any is neither ahead nor behind: 1, and no measure of the others.
    """
    known = counts > 0
    mean = torch.where(known, sums / counts.clamp(min=1), 0.0)
    others = (mean.sum() - mean) / (known.sum() - known.to(mean.dtype)).clamp(min=1)
    return torch.where(known & (others > 0), mean / others.clamp(min=torch.finfo(mean.dtype).tiny), 1.0)
