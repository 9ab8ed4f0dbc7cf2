"""The shared space: one projection and one learned "missing" vector a modality."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from mmkt.layers.masked import zero_masked
from mmkt.types import Encoded


class SharedSpace(nn.Module):
    """Every modality's tokens and summary, projected to one width.

    A row that lacks a modality gets its learned vector e_m, as the summary and as the only token, with ``present``
    False. A modality that no row has is the same code, so the same bits. Nothing leaks from a masked slot: zeros are
    put in before the projection.

    Args:
        dim: the shared width D.
        widths: modality → its encoder's width.
        projection: ``linear``, or ``none``.
        norm: LayerNorm after the projection.
        dropout: on what is projected.

    Raises:
        ValueError: without a projection, an encoder has another width.
    """

    def __init__(
        self,
        dim: int,
        widths: Mapping[str, int],
        *,
        projection: Literal["linear", "none"] = "linear",
        norm: bool = True,
        dropout: float = 0.0,
    ):
        super().__init__()
        self.modalities = tuple(widths)
        if projection == "none" and set(widths.values()) != {dim}:
            found = ", ".join(f"{m} {w}" for m, w in widths.items())
            raise ValueError(f"without a projection every encoder is as wide as model.dim, {dim}; found {found}")
        self.project = nn.ModuleDict(
            {
                m: nn.Sequential(
                    nn.Linear(w, dim) if projection == "linear" else nn.Identity(), nn.LayerNorm(dim) if norm else nn.Identity()
                )
                for m, w in widths.items()
            }
        )
        self.missing = nn.ParameterDict({m: nn.Parameter(torch.randn(dim) * 0.02) for m in widths})
        self.drop = nn.Dropout(dropout)

    def forward(
        self, encoded: Mapping[str, Encoded], rows: int, keep: Collection[str] | None = None, whole: bool = True
    ) -> dict[str, Encoded]:
        """Project all modalities, in the model's order.

        Args:
            encoded: by modality, each in its encoder's width; one that is left out is missing everywhere.
            rows: B.
            keep: the modalities to use; the others are treated as missing.
            whole: tokens too; otherwise a summary is its modality's only token.
        """
        return {m: self._one(m, encoded.get(m) if keep is None or m in keep else None, rows, whole) for m in self.modalities}

    def _one(self, m: str, parts: Encoded | None, rows: int, whole: bool) -> Encoded:
        e = self.missing[m]  # (D,)
        if parts is None:
            return Encoded.of(e.expand(rows, -1), torch.zeros(rows, dtype=torch.bool, device=e.device))
        present = parts.present
        if not whole:
            return Encoded.of(self._pooled(m, parts, e), present)
        first = torch.zeros_like(parts.mask)
        first[:, 0].fill_(True)
        mask = torch.where(present[:, None], parts.mask, first)
        real = parts.mask & present[:, None]
        tokens = self.drop(self.project[m](zero_masked(parts.tokens, real)))
        tokens = torch.where(present[:, None, None], tokens, e.to(tokens.dtype))
        return Encoded(zero_masked(tokens, mask), mask, self._pooled(m, parts, e), present)

    def _pooled(self, m: str, parts: Encoded, e: Tensor) -> Tensor:
        there = parts.present[:, None]
        pooled = self.drop(self.project[m](parts.pooled.masked_fill(~there, 0.0)))
        return torch.where(there, pooled, e.to(pooled.dtype))

    def extra_repr(self) -> str:
        """For print(model)."""
        return f"modalities={', '.join(self.modalities)}"


def join(encoded: Encoded, items: Tensor) -> Encoded:
    """N encoded items as B rows: tokens of a row's items one after the other, summaries averaged.

    Args:
        encoded: of N items.
        items: (B, K) long, which item a row has at each of its K places; −1: none.
    """
    there = items >= 0  # (B, K)
    index = items.clamp(min=0)
    rows = len(items)
    tokens = encoded.tokens[index].reshape(rows, -1, encoded.tokens.shape[-1])  # (B, K·L, W)
    mask = (encoded.mask[index] & there[..., None]).reshape(rows, -1)
    pooled = zero_masked(encoded.pooled[index], there).sum(1) / there.sum(1, keepdim=True).clamp(min=1)
    return Encoded(zero_masked(tokens, mask), mask, pooled, there.any(1))
