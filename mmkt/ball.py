"""The inputs that a threat allows: a ball around every item, cut by the bounds of its raw space."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from mmkt.generators import seed_of
from mmkt.threat import Norm, Threat


class Ball(NamedTuple):
    """What N items of a modality may become. Shapes: (N, …) as the items."""

    centre: Tensor
    norm: Norm
    eps: Tensor  # (N, 1, …)
    low: Tensor | None  # of every number; None without bounds
    high: Tensor | None
    free: Tensor | None  # (N, …) bool, or what expands to it: what may move; None: all
    keys: tuple[tuple[int, ...], ...]  # of an item: what its random numbers are drawn by

    @classmethod
    def of(
        cls,
        centre: Tensor,
        threat: Threat,
        bounds: tuple[float, float] | None,
        free: Tensor | None,
        keys: tuple[tuple[int, ...], ...],
    ) -> Ball:
        """Around items.

        A number that lies beyond the bounds as it comes (a clip that was resampled) may stay where it is, or move inwards.
        """
        one = (-1, *[1] * (centre.ndim - 1))
        if threat.eps is not None:
            eps = torch.full((len(centre),), threat.eps, dtype=centre.dtype, device=centre.device)
        else:
            assert threat.db is not None, "refused"
            known = centre if free is None else torch.where(free, centre, 0.0)
            eps = 10 ** (threat.db / 20) * length(known, threat.norm)
        low, high = (None, None) if bounds is None else (centre.clamp(max=bounds[0]), centre.clamp(min=bounds[1]))
        return cls(centre, threat.norm, eps.view(one), low, high, free, keys)

    def project(self, x: Tensor) -> Tensor:
        """The nearest items of the ball, then within the bounds (which leads no number out of the ball)."""
        if self.norm == "linf":
            x = torch.clamp(x, self.centre - self.eps, self.centre + self.eps)
        else:
            moved = self.still(x) - self.centre
            x = self.centre + moved * (self.eps / self._wide(length(moved, "l2")).clamp(min=1e-12)).clamp(max=1.0)
        return self.still(self.bounded(x))

    def bounded(self, x: Tensor) -> Tensor:
        """Within the bounds."""
        return x if self.low is None or self.high is None else torch.clamp(x, self.low, self.high)

    def still(self, x: Tensor) -> Tensor:
        """What may not move is where it was."""
        return x if self.free is None else torch.where(self.free, x, self.centre)

    def steepest(self, gradient: Tensor) -> Tensor:
        """The direction of length one in which a loss with this gradient grows fastest: its sign, or its direction."""
        if self.free is not None:
            gradient = torch.where(self.free, gradient, 0.0)
        if self.norm == "linf":
            return gradient.sign()
        return gradient / self._wide(length(gradient, "l2")).clamp(min=1e-30)

    def anywhere(self, seed: int, draw: int) -> Tensor:
        """A random place, uniform in the ball and then cut by the bounds; of an item the same whatever else is in the batch."""
        return self.project(self.uniform(seed, draw))

    def uniform(self, seed: int, draw: int) -> Tensor:
        """A random place of the ball, which may lie beyond the bounds."""
        noise = self.noise(seed, draw, torch.rand if self.norm == "linf" else torch.randn)
        if self.norm == "linf":
            return self.still(self.centre + self.eps * (2 * noise - 1))
        share = self.drawn(seed, draw, torch.rand).to(noise) ** (1 / self.count())  # (N,)
        return self.still(self.centre + self.steepest(noise) * self._wide(share) * self.eps)

    def gaussian(self, seed: int, draw: int) -> Tensor:
        """Normal noise around every number that may move, ε its standard deviation: neither ball nor bounds limit it."""
        return self.still(self.centre + self.eps * self.noise(seed, draw, torch.randn))

    def count(self) -> Tensor:
        """How many numbers of an item may move, (N,)."""
        if self.free is None:
            return torch.full((len(self.centre),), self.centre[0].numel(), device=self.centre.device)
        return self.free.expand_as(self.centre).flatten(1).sum(1).clamp(min=1)

    def noise(self, seed: int, draw: int, kind: Callable[..., Tensor]) -> Tensor:
        """Random numbers, drawn item by item; what an item is padded with draws none."""
        found = torch.zeros_like(self.centre, device="cpu", dtype=torch.float32)
        for k, (key, extent) in enumerate(zip(self.keys, self.extents(), strict=True)):
            random = torch.Generator().manual_seed(seed_of(seed, draw, *key))
            found[k][tuple(map(slice, extent))] = kind(tuple(extent), generator=random)
        return found.to(self.centre)

    def drawn(self, seed: int, draw: int, kind: Callable[..., Tensor]) -> Tensor:
        """A random number an item, (N,), from other draws than ``noise``."""
        each = (torch.Generator().manual_seed(seed_of(seed, draw, "one", *key)) for key in self.keys)
        return torch.stack([kind((), generator=random) for random in each]).to(self.centre)

    def extents(self) -> list[tuple[int, ...]]:
        """How much of each item is not padding, by dimension."""
        whole = tuple(self.centre.shape[1:])
        if self.free is None:
            return [whole] * len(self.centre)
        found = []
        for free in self.free:
            ends = []
            for d, n in enumerate(whole):
                if d >= free.ndim or free.shape[d] == 1:
                    ends.append(n)
                    continue
                some = free.movedim(d, 0).flatten(1).any(1).nonzero() if free.ndim > 1 else free.nonzero()
                ends.append(int(some.max()) + 1 if len(some) else 0)
            found.append(tuple(ends))
        return found

    def _wide(self, x: Tensor) -> Tensor:
        """(N,) as (N, 1, …)."""
        return x.view(-1, *[1] * (self.centre.ndim - 1))

    def far(self, x: Tensor) -> Tensor:
        """How far items have moved, (N,), in this norm."""
        return length(x - self.centre, self.norm)


def length(x: Tensor, norm: Norm) -> Tensor:
    """Of every item, (N,)."""
    flat = x.flatten(1)
    return flat.abs().amax(1) if norm == "linf" else flat.norm(dim=1)


def stretch(extent: Sequence[int], along: Sequence[int], share: float, random: torch.Generator) -> tuple[slice, ...]:
    """A random part of an item: of these dimensions so much that it covers a share of the item, of all others the whole."""
    place = list(map(slice, extent))
    for d in along:
        n = extent[d]
        wide = max(1, min(n, round(n * share ** (1 / len(along)))))
        first = int(torch.randint(n - wide + 1, (), generator=random))
        place[d] = slice(first, first + wide)
    return tuple(place)
