"""Contrast in which keys go round the processes: none ever holds them all, nor a whole row of scores."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from mmkt.distributed import pass_on, world_size
from mmkt.layers.contrast import Rows, closed

Kind = Literal["infonce", "sigmoid"]


Block = tuple[slice, Rows, Tensor, Tensor, Tensor]


class How(NamedTuple):
    """What stays the same all the way round."""

    kind: Kind
    chunk: int | None  # queries at a time
    remote: bool  # keys have their gradient from all processes


def ring(queries: Rows, keys: Rows, scale: Tensor, bias: Tensor | None, how: How) -> Tensor:
    """Losses of this process's queries against the keys of all, (B,): ``contrast.info_nce`` or ``contrast.sigmoid``.

    Memory is O(chunk · B) for scores and O(B · D) for keys, whatever the number of processes; in backward the keys go round
    once more, and take their gradient home (as attention over a ring, Liu et al., 2023, and SigLIP's exchange of neighbours).

    Args:
        queries: this process's.
        keys: this process's, as many as every other has.
        scale: (1,).
        bias: (1,) or None.
        how: see there.
    """
    return _Ring.apply(queries.vectors, keys.vectors, scale, bias, queries[1:], keys[1:], how)


class _Ring(torch.autograd.Function):
    """Scores are never kept: a row's log-sum-exp is enough to have its weights again."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, scale: Tensor, bias: Tensor | None, mine: Any, theirs: Any, how: How) -> Tensor:
        queries, keys = Rows(x, *mine), Rows(y, *theirs)
        mass = x.new_full((len(x),), -math.inf if how.kind == "infonce" else 0.0)  # log-sum-exp, or the sum of losses
        positive = x.new_zeros(len(x))
        for _ in range(world_size()):
            for rows, _part, logits, own, out in _blocks(queries, keys, scale, bias, how):
                if how.kind == "infonce":
                    mass[rows] = torch.logaddexp(mass[rows], logits.masked_fill(out, -math.inf).logsumexp(1))
                    positive[rows] += torch.where(own, logits, 0.0).sum(1)
                else:
                    losses = -F.logsigmoid(torch.where(own, logits, -logits))
                    mass[rows] += losses.masked_fill(out, 0.0).sum(1)
            keys = Rows(*pass_on(*keys))
        ctx.how, ctx.mine, ctx.theirs = how, mine, theirs
        ctx.save_for_backward(x, y, scale, bias, mass)
        return (mass - positive).masked_fill(~queries.there, 0.0)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        x, y, scale, bias, mass = ctx.saved_tensors
        how, queries, keys = ctx.how, Rows(x, *ctx.mine), Rows(y, *ctx.theirs)
        dx, dy = torch.zeros_like(x), torch.zeros_like(y)
        dscale, dbias = torch.zeros_like(scale), None if bias is None else torch.zeros_like(bias)
        for hop in range(world_size()):
            for rows, part, logits, own, out in _blocks(queries, keys, scale, bias, how):
                if how.kind == "infonce":
                    slope = (logits - mass[rows, None]).exp() - own.to(x.dtype)
                else:
                    slope = torch.where(own, -torch.sigmoid(-logits), torch.sigmoid(logits))
                w = grads[0][rows, None] * slope.masked_fill(out | ~part.there[:, None], 0.0)  # (b, B)
                dx[rows] += scale * (w @ keys.vectors)
                if how.remote or hop == 0:
                    dy += scale * (w.T @ part.vectors)
                dots = logits if bias is None else logits - bias
                dscale += (w * dots).sum() / scale
                if dbias is not None:
                    dbias += w.sum()
            *moved, dy = pass_on(*keys, dy)
            keys = Rows(*moved)
        return dx, dy, dscale, dbias, None, None, None


def _blocks(queries: Rows, keys: Rows, scale: Tensor, bias: Tensor | None, how: How) -> Iterator[Block]:
    """Of the keys that are here: places of some queries, those queries, their logits, whose own they are, which are left out."""
    size = how.chunk or len(queries.vectors)
    for start in range(0, len(queries.vectors), size):
        part = queries.part(start, size)
        own, out = closed(part, keys)
        logits = scale * part.vectors @ keys.vectors.T
        yield slice(start, start + size), part, logits if bias is None else logits + bias, own, out
