"""Rows of one modality against those of another: InfoNCE and the sigmoid loss, so many rows at a time."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from typing import Annotated, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mmkt.distributed import gather, most, rank, world_size
from mmkt.types import Batch


class Rows(NamedTuple):
    """One side of a contrast."""

    vectors: Tensor  # (N, D), of unit length
    there: Tensor  # (N,) bool: takes part
    place: Tensor  # (N,) long, in the batch that all processes share, each taking every ``world``-th row; −1: in none
    same: Tensor  # (N,) long: rows of one number are no negatives of each other; −1: like no other

    def part(self, start: int, size: int) -> Rows:
        """So many rows from one on."""
        return Rows(*(x[start : start + size] for x in self))


Positive = Annotated[float, Field(gt=0)]
Loss = Callable[[Rows, Rows, Tensor, Tensor | None], Tensor]
"""Losses (B,) of queries (B rows) against keys (N rows) by scale (1,) and bias (1,) or None; 0 for rows that are not there."""


class Temperature(nn.Module):
    """A scale, 1 / temperature, learned as its logarithm (CLIP), and a bias, both within bounds.

    Args:
        temperature: at the start.
        bounds: of the temperature.
        learned: or it stays.
        bias: at the start; None for none.
        bias_bounds: of the bias.

    Raises:
        ValueError: what it starts from is out of bounds.
    """

    def __init__(
        self,
        temperature: float,
        bounds: tuple[float, float],
        *,
        learned: bool = True,
        bias: float | None = None,
        bias_bounds: tuple[float, float] | None = None,
    ):
        super().__init__()
        bias_bounds = bias_bounds or (-math.inf, math.inf)
        for name, value, (low, high) in (("temperature", temperature, bounds), ("bias", bias, bias_bounds)):
            if value is not None and not low <= value <= high:
                raise ValueError(f"{name}: it starts at {value}, outside its bounds of {low} to {high}")
        self.bounds, self.bias_bounds = (math.log(1 / bounds[1]), math.log(1 / bounds[0])), bias_bounds
        start = torch.tensor([math.log(1 / temperature)])
        if learned:
            self.log_scale = nn.Parameter(start)
        else:
            self.register_buffer("log_scale", start)
        self.bias = None if bias is None else nn.Parameter(torch.tensor([bias]))

    log_scale: Tensor

    def forward(self) -> tuple[Tensor, Tensor | None]:
        """Scale (1,) and bias (1,) or None."""
        scale = self.log_scale.clamp(*self.bounds).exp()
        return scale, None if self.bias is None else self.bias.clamp(*self.bias_bounds)


def pairs(modalities: Sequence[str], between: Sequence[str] | None, anchor: str | None) -> list[tuple[str, str]]:
    """Which modalities are compared: all pairs of those in ``between`` (by default of all), or the anchor with each other.

    Raises:
        ValueError: a name is unknown, or there are fewer than two.
    """
    chosen = list(modalities) if between is None else list(between)
    unknown = [m for m in [*chosen, *([] if anchor is None else [anchor])] if m not in modalities]
    if unknown or len(set(chosen)) < 2 or len(set(chosen)) < len(chosen):
        raise ValueError(f"it needs two modalities or more of {', '.join(modalities)}, found {', '.join(unknown or chosen)}")
    if anchor is None:
        return list(combinations(chosen, 2))
    return [(anchor, m) for m in chosen if m != anchor]


def sides(vectors: Mapping[str, Tensor], batch: Batch, same: Tensor, *, training: bool) -> dict[str, Rows]:
    """By modality this process's rows, as many as every process has.

    Args:
        vectors: by modality, (B, D) of any length.
        batch: whose rows they are.
        same: (B,), see ``Rows``.
        training: then every process has the same B; in evaluation one can have a row fewer, and gets one that is not there.
    """
    missing = 0 if training else most(batch.size) - batch.size
    place = torch.arange(batch.size + missing, device=batch.row.device) * world_size() + rank()

    def filled(x: Tensor, value: float = 0) -> Tensor:
        return F.pad(x, (0, 0) * (x.ndim - 1) + (0, missing), value=value) if missing else x

    return {m: Rows(filled(unit(x)), filled(batch.present[m], False), place, filled(same, -1)) for m, x in vectors.items()}


def alike(batch: Batch, by: str | None) -> Tensor:
    """What says that rows are of one thing, (B,) long, −1: nothing: ``group``, or a task's label.

    Raises:
        ValueError: the task has no label that is one number.
    """
    if by is None:
        return torch.full_like(batch.row, -1)
    if by == "group":
        return batch.group
    if by not in batch.labels or batch.labels[by].ndim != 1 or batch.labels[by].is_floating_point():
        raise ValueError(f"same: allowed are group and a task with one class a row, found {by!r}")
    return batch.labels[by].masked_fill(~batch.labelled[by], -1)


def precise(device: torch.device) -> torch.autocast:
    """Scores are no place for bfloat16: times a scale of 100, its steps are of one half."""
    return torch.autocast(device.type, enabled=False)


def unit(x: Tensor) -> Tensor:
    """Rows of length one, at least in single precision, under autocast too."""
    return F.normalize(x.to(torch.promote_types(x.dtype, torch.float32)), dim=1)


def everywhere(rows: Rows, *, remote: bool = True) -> Rows:
    """The rows of all processes, in the order of the batch that they share, whatever their number.

    With ``remote`` they have their gradient from all processes' losses, else from their own.
    """
    every = (gather(rows.vectors, remote=remote), gather(rows.there), gather(rows.place), gather(rows.same))
    return Rows(*(x.unflatten(0, (world_size(), -1)).transpose(0, 1).flatten(0, 1) for x in every))


def closed(queries: Rows, keys: Rows) -> tuple[Tensor, Tensor]:
    """Which key is a query's own, and which are left out for it: absent ones, and others of the same thing; both (B, N)."""
    own = (queries.place[:, None] == keys.place) & (keys.place >= 0)
    of_one = (queries.same[:, None] == keys.same) & (keys.same >= 0) & ~own
    return own, of_one | ~keys.there


def info_nce(queries: Rows, keys: Rows, scale: Tensor, _: Tensor | None = None) -> Tensor:
    """−log softmax at the own key (van den Oord et al., 2018); see ``Loss``."""
    own, out = closed(queries, keys)
    scores = (scale * queries.vectors @ keys.vectors.T).masked_fill(out, -math.inf)
    # a row that is not there would have no finite target: it is scored against nothing and left out
    scores = scores.masked_fill(~queries.there[:, None], 0.0)
    losses = scores.logsumexp(1) - torch.where(own, scores, 0.0).sum(1)
    return losses.masked_fill(~queries.there, 0.0)


def hard_info_nce(hardness: float) -> Loss:
    """InfoNCE whose negatives weigh in proportion to exp(hardness · score), n of them n together (Robinson et al., 2021;
    across modalities HN-NCE, Radenovic et al., 2023). With hardness 0 it is ``info_nce``.
    """

    def losses(queries: Rows, keys: Rows, scale: Tensor, _: Tensor | None = None) -> Tensor:
        own, out = closed(queries, keys)
        scores = scale * queries.vectors @ keys.vectors.T
        negative = ~(own | out)
        n = negative.sum(1)
        real = (n > 0)[:, None]
        out = ~negative & real  # rows without negatives stay finite, and are left out below
        hard, plain = (((k + hardness) * scores).masked_fill(out, -math.inf).logsumexp(1) for k in (1, 0))
        mass = n.clamp(min=1).to(scores.dtype).log() + hard - plain
        found = F.softplus(mass - torch.where(own, scores, 0.0).sum(1))
        return found.masked_fill(~queries.there | (n == 0), 0.0)

    return losses


def sigmoid(queries: Rows, keys: Rows, scale: Tensor, bias: Tensor | None = None) -> Tensor:
    """Σ_j −log σ(±(scale · score + bias)), + for the own key (SigLIP, Zhai et al., 2023); see ``Loss``."""
    own, out = closed(queries, keys)
    logits = scale * queries.vectors @ keys.vectors.T
    logits = logits if bias is None else logits + bias
    losses = -F.logsigmoid(torch.where(own, logits, -logits)).masked_fill(out, 0.0).sum(1)
    return losses.masked_fill(~queries.there, 0.0)


LOSSES: dict[str, Loss] = {"infonce": info_nce, "sigmoid": sigmoid}


def by_rows(loss: Loss, queries: Rows, keys: Rows, scale: Tensor, bias: Tensor | None, chunk: int | None) -> Tensor:
    """A loss of all queries, (B,), so many at a time: scores take (chunk, N) and are computed again in backward."""
    if chunk is None or chunk >= len(queries.vectors):
        return loss(queries, keys, scale, bias)
    parts = [queries.part(start, chunk) for start in range(0, len(queries.vectors), chunk)]
    return torch.cat([checkpoint(loss, part, keys, scale, bias, use_reentrant=False) for part in parts])
