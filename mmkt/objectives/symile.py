"""Contrast of all modalities at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import reduce
from typing import TYPE_CHECKING, Annotated

import torch
from pydantic import Field
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from mmkt.layers import contrast
from mmkt.layers.contrast import Positive, Rows
from mmkt.types import Batch, Objective, Outputs

if TYPE_CHECKING:
    from mmkt.model import Model


class Symile(Objective):
    """InfoNCE on the multilinear product of all modalities (Symile, Saporta et al., 2024), which no sum over pairs can give.

    For each modality a in turn −log softmax at j = i of s·Σ_d a_i · Π_m m_k(j), averaged over a, where the own entry is the
    row's other vectors multiplied and entry j ≠ i are others' vectors, each modality of another row: the batch is shuffled by a
    hash of its rows' numbers, and rolled on for each modality, which draws from the product of their marginals. Rows that have
    all count. With two
    modalities it is ``align``, to the weight: one item a row.
    """

    contrasts = True

    def __init__(
        self,
        dim: int,
        modalities: Sequence[str],
        outputs: Mapping[str, int],
        domains: Sequence[str],
        *,
        temperature: Positive = 0.07,
        temperature_bounds: tuple[Positive, Positive] = (0.01, 100.0),
        learn_temperature: bool = True,
        between: list[str] | None = None,
        chunk: Annotated[int, Field(ge=1)] | None = None,
    ):
        """Remember the modalities.

        Args:
            dim: D; scores of M modalities are stretched by √D^(M − 2), so that chance scores are as large as those of two.
            modalities: of the model.
            outputs: unused.
            domains: unused.
            temperature: at the start.
            temperature_bounds: it stays between them.
            learn_temperature: or it stays as it is.
            between: modalities that are compared, by default all.
            chunk: rows whose scores are held at a time; all by default.

        Raises:
            ValueError: fewer than two modalities, or one that there is not.
        """
        super().__init__()
        contrast.pairs(modalities, between, None)
        self.between, self.chunk = list(modalities) if between is None else between, chunk
        self.stretch = dim ** (len(self.between) / 2 - 1)
        self.temperature = contrast.Temperature(temperature, temperature_bounds, learned=learn_temperature)

    def forward(self, model: Model, batch: Batch, outputs: Outputs) -> Tensor:
        """Sum over this rank's rows, ()."""
        with contrast.precise(batch.row.device):
            return self._summed(batch, outputs)

    def _summed(self, batch: Batch, outputs: Outputs) -> Tensor:
        scale, _ = self.temperature()
        vectors = {m: outputs.encoded[m].pooled for m in self.between}
        mine = contrast.sides(vectors, batch, batch.row, training=self.training)
        loss = sum((x.vectors.sum() for x in mine.values()), start=scale.sum()) * 0.0  # connected even when no row has all
        scale = scale * self.stretch
        there, place = _all_there(mine), mine[self.between[0]].place
        every = {m: contrast.everywhere(x) for m, x in mine.items()}
        entries = _shuffled(_all_there(every), every[self.between[0]].same)  # (n,) of those that have all
        for a in self.between:
            others = [m for m in self.between if m != a]
            own = reduce(torch.mul, (mine[m].vectors for m in others))  # (B, D)
            rolled = reduce(torch.mul, (every[m].vectors[entries].roll(-k, 0) for k, m in enumerate(others)))  # (n, D)
            rows = (mine[a].vectors, own, there, place)
            for part in zip(*(x.split(self.chunk or len(x)) for x in rows)):
                again = (_losses, *part, rolled, entries, scale)
                losses = checkpoint(*again, use_reentrant=False) if self.chunk else _losses(*again[1:])
                loss = loss + losses.sum() / len(self.between)
        return loss

    def _whole(self, batch: Batch) -> Tensor:
        return torch.stack([batch.present[m] for m in self.between]).all(0)

    def count(self, batch: Batch) -> Tensor:
        """Rows that have all."""
        return self._whole(batch).sum()


def _losses(x: Tensor, own: Tensor, there: Tensor, place: Tensor, rolled: Tensor, entries: Tensor, scale: Tensor) -> Tensor:
    """−log softmax of rows (B,) among the entries, in which a row's own stands at its place."""
    positive = scale * (x * own).sum(1)  # (B,)
    scores = torch.where(place[:, None] == entries, positive[:, None], scale * x @ rolled.T)  # (B, n)
    losses = scores.masked_fill(~there[:, None], 0.0).logsumexp(1) - positive
    return torch.where(there, losses, 0.0)


def _all_there(rows: Mapping[str, Rows]) -> Tensor:
    """Rows that have all modalities, (N,)."""
    return torch.stack([x.there for x in rows.values()]).all(0)


def _shuffled(there: Tensor, rows: Tensor) -> Tensor:
    """Places of those that are there, (n,), in an order that has nothing to do with the batch's (streams, lengths, classes)."""
    places = there.nonzero()[:, 0]
    hashed = (rows[places] * 2654435761) % 2**32  # Knuth's multiplicative hash, as any process has it
    return places[hashed.argsort(stable=True)]
