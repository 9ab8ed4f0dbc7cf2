"""A number."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn

from mmkt.types import Encoded, Head


class Regress(Head):
    """A linear regression on the fused summary, in units of the training split's standard deviation."""

    metrics = ("mae", "rmse", "r2")

    def __init__(self, dim: int, vocabulary: dict[str, Any], *, dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0):
        """Build the layer."""
        super().__init__()
        self.vocabulary = vocabulary
        self.drop, self.linear = nn.Dropout(dropout), nn.Linear(dim, 1)

    @classmethod
    def learn(cls, values: Sequence[Any]) -> dict[str, Any]:
        """Mean and standard deviation of the training split."""
        wrong = next((v for v in values if isinstance(v, (str, list)) or not math.isfinite(v)), None)
        if wrong is not None:
            raise ValueError(f"a regress label is a finite number, found {wrong!r}")
        x = torch.tensor([float(v) for v in values], dtype=torch.float64)
        std = float(x.std(correction=0))
        if not std > 0:
            raise ValueError(f"all labels of the training split are {values[0]!r}: there is nothing to regress")
        return {"mean": float(x.mean()), "std": std}

    @staticmethod
    def label(value: Any, vocabulary: Mapping[str, Any]) -> Tensor:
        """The standardised value, () float."""
        if isinstance(value, (str, list)):
            raise ValueError(f"{value!r} is not a number")
        return torch.tensor(0.0 if value is None else (float(value) - vocabulary["mean"]) / vocabulary["std"])

    @staticmethod
    def outputs(vocabulary: Mapping[str, Any]) -> int:
        """One."""
        return 1

    def forward(self, fused: Encoded, target: Mapping[str, Tensor] | None = None) -> Tensor:
        """Standardised values (B, 1)."""
        return self.linear(self.drop(fused.pooled))

    def decode(self, logits: Tensor) -> dict[str, list[Any]]:
        """Values in the label's own units."""
        return {"prediction": (logits[:, 0].double() * self.vocabulary["std"] + self.vocabulary["mean"]).tolist()}
