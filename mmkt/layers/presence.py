"""Who is there: the one place where fusions get their key masks and their sums over what is present."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from mmkt.layers.masked import zero_masked
from mmkt.parts import nearest
from mmkt.types import Encoded


def stacked(parts: Mapping[str, Encoded]) -> tuple[Tensor, Tensor]:
    """Summaries (B, M, D), zero where missing, and presence (B, M)."""
    present = torch.stack([x.present for x in parts.values()], 1)
    return zero_masked(torch.stack([x.pooled for x in parts.values()], 1), present), present


def apply_each(layers: nn.ModuleDict, x: Tensor) -> Tensor:
    """A layer a modality, in the modalities' order: (B, M, D) → (B, M, outputs)."""
    return torch.stack([layer(x[:, k]) for k, layer in enumerate(layers.values())], 1)


def with_bits(x: Tensor, present: Tensor) -> Tensor:
    """Summaries (B, M, D) and presence (B, M) side by side, (B, M·(D + 1))."""
    return torch.cat([x.flatten(1), present.to(x.dtype)], 1)


def with_one(x: Tensor) -> Tensor:
    """[1; x]: (…, D) → (…, 1 + D)."""
    return torch.cat([torch.ones_like(x[..., :1]), x], -1)


def key_mask(part: Encoded) -> Tensor:
    """Which tokens may be attended to, (B, L): none of a missing modality."""
    return part.mask & part.present[:, None]


def joined(parts: Iterable[Encoded]) -> tuple[Tensor, Tensor]:
    """The tokens of several modalities one after the other, (B, ΣL, D), zero where missing, and their key mask (B, ΣL)."""
    every = list(parts)
    mask = torch.cat([key_mask(part) for part in every], 1)
    return zero_masked(torch.cat([part.tokens for part in every], 1), mask), mask


def masked_softmax(scores: Tensor, mask: Tensor, dim: int) -> Tensor:
    """Softmax over what is there (``mask`` True), zero elsewhere; all zeros where nothing is."""
    return scores.masked_fill(~mask, torch.finfo(scores.dtype).min).softmax(dim).masked_fill(~mask, 0.0)


def mean_present(x: Tensor, present: Tensor) -> Tensor:
    """Mean over the modalities that are there: (B, M, …), (B, M) → (B, …); zeros where none is."""
    there = present.view(*present.shape, *[1] * (x.dim() - 2)).to(x.dtype)
    return (x * there).sum(1) / there.sum(1).clamp(min=1)


def unless_nothing(y: Tensor, present: Tensor, nothing: Tensor) -> Tensor:
    """(B, D), or the learned vector ``nothing`` (D,) in rows where no modality is present (B, M)."""
    return torch.where(present.any(1, keepdim=True), y, nothing.to(y.dtype))


def target_of(name: str | None, modalities: Sequence[str]) -> str:
    """The modality that a fusion starts from: the one named, or the first.

    Raises:
        ValueError: there is none of this name.
    """
    if name is not None and name not in modalities:
        raise ValueError(f"there is no modality {name!r}{nearest(name, modalities)}; allowed: {', '.join(modalities)}")
    return modalities[0] if name is None else name


def with_summary(y: Tensor, tokens: Tensor, mask: Tensor) -> Encoded:
    """A summary (B, D) and tokens (B, L, D) that are there where ``mask`` says, the summary first."""
    there = torch.ones_like(mask[:, :1])
    mask = torch.cat([there, mask], 1)
    return Encoded(zero_masked(torch.cat([y[:, None], tokens], 1), mask), mask, y, there[:, 0])
