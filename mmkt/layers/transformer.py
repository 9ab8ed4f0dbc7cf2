"""Transformer blocks of our own: separate q, k, v, o, so that adapters can name them and eval runs the same path as train."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn


class Attention(nn.Module):
    """Multi-head attention (Vaswani et al., 2017) of queries (B, L, D) over keys (B, S, D)."""

    def __init__(self, dim: int, heads: int, dropout: float = 0.0):
        super().__init__()
        if dim % heads:
            raise ValueError(f"the width {dim} does not divide by {heads} heads")
        self.heads, self.dropout = heads, dropout
        self.q, self.k, self.v, self.o = (nn.Linear(dim, dim) for _ in range(4))

    def forward(self, queries: Tensor, keys: Tensor, key_mask: Tensor) -> Tensor:
        """``key_mask`` (B, S) bool: which keys are there; every row has at least one."""
        q, k, v = (
            rearrange(f(x), "b l (h d) -> b h l d", h=self.heads) for f, x in ((self.q, queries), (self.k, keys), (self.v, keys))
        )
        p = self.dropout if self.training else 0.0
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=key_mask[:, None, None, :], dropout_p=p)
        return self.o(rearrange(y, "b h l d -> b l (h d)"))


class Block(nn.Module):
    """A pre-norm block: self-attention, then a GELU feed-forward of four times the width."""

    def __init__(self, dim: int, heads: int, dropout: float = 0.0):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attention = Attention(dim, heads, dropout)
        self.fc1, self.fc2 = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """(B, L, D), (B, L) → (B, L, D)."""
        y = self.norm1(x)
        x = x + self.drop(self.attention(y, y, mask))
        return x + self.drop(self.fc2(F.gelu(self.fc1(self.norm2(x)))))


class CrossBlock(nn.Module):
    """A pre-norm block of cross-attention: keys from elsewhere, then a feed-forward. A row without keys leaves as it came.

    Args:
        dim: width D.
        heads: of the attention.
        dropout: as in ``Block``.
        gated: both branches enter through tanh of a learned scalar that starts at zero (Alayrac et al., 2022): the block
            starts as the identity.
    """

    def __init__(self, dim: int, heads: int, dropout: float = 0.0, gated: bool = False):
        super().__init__()
        self.norm1, self.norm_keys, self.norm2 = (nn.LayerNorm(dim) for _ in range(3))
        self.attention = Attention(dim, heads, dropout)
        self.fc1, self.fc2 = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)
        self.drop = nn.Dropout(dropout)
        self.gates = nn.ParameterList(nn.Parameter(torch.zeros(1)) for _ in range(2 if gated else 0))

    def forward(self, x: Tensor, keys: Tensor, key_mask: Tensor) -> Tensor:
        """(B, L, D), (B, S, D), (B, S) → (B, L, D)."""
        some = key_mask.any(1, keepdim=True)  # (B, 1)
        a, b = (torch.tanh(gate) for gate in self.gates) if len(self.gates) else (1.0, 1.0)
        y = x + a * self.drop(self.attention(self.norm1(x), self.norm_keys(keys), key_mask | ~some))
        y = y + b * self.drop(self.fc2(F.gelu(self.fc1(self.norm2(y)))))
        return torch.where(some[..., None], y, x)


def sinusoids(length: int, dim: int) -> Tensor:
    """Sinusoidal positions (Vaswani et al., 2017), (length, dim)."""
    half = (dim + 1) // 2
    angles = torch.arange(length)[:, None] / 10_000 ** (torch.arange(half) / half)
    return torch.cat([angles.sin(), angles.cos()], 1)[:, :dim]
