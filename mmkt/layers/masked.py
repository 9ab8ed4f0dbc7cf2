"""Reductions over tokens that never read a masked slot."""

from __future__ import annotations

from torch import Tensor


def zero_masked(tokens: Tensor, mask: Tensor) -> Tensor:
    """Tokens (B, L, D) with zeros where ``mask`` (B, L) is False; NaN and inf there vanish too."""
    return tokens.masked_fill(~mask[..., None], 0.0)


def masked_mean(tokens: Tensor, mask: Tensor) -> Tensor:
    """Mean over the tokens that are there: (B, L, D), (B, L) → (B, D). A row without any gives zeros."""
    return zero_masked(tokens, mask).sum(1) / mask.sum(1, keepdim=True).clamp(min=1)
