"""A hidden layer between two linear ones."""

from __future__ import annotations

from torch import nn


def mlp(inputs: int, hidden: int, outputs: int, dropout: float = 0.0) -> nn.Sequential:
    """Linear, GELU, dropout, linear: (…, inputs) → (…, outputs)."""
    return nn.Sequential(nn.Linear(inputs, hidden), nn.GELU(), nn.Dropout(dropout), nn.Linear(hidden, outputs))
