"""Any number of classes at once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn

from mmkt.types import Encoded, Head


class Tag(Head):
    """Multi-label: an independent logit a class on the fused summary. A label is a list of values, perhaps empty."""

    metrics = ("macro_f1", "accuracy", "auroc", "auprc", "precision", "recall", "f1")

    def __init__(self, dim: int, vocabulary: dict[str, Any], *, dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0):
        """Build the layer."""
        super().__init__()
        self.vocabulary = vocabulary
        self.drop, self.linear = nn.Dropout(dropout), nn.Linear(dim, self.outputs(vocabulary))

    @classmethod
    def learn(cls, values: Sequence[Any]) -> dict[str, Any]:
        """The classes of the training split, sorted, how often each occurs, and how many rows there were."""
        wrong = next((v for v in values if not isinstance(v, list)), None)
        if wrong is not None:
            raise ValueError(f"a tag label is a list of classes, found {wrong!r}; for one class a row use the head classify")
        counts = Counter(tag for value in values for tag in value)
        if not counts:
            raise ValueError("no row of the training split has a tag")
        classes = sorted(counts, key=lambda c: (isinstance(c, str), c))
        return {"classes": classes, "counts": [counts[c] for c in classes], "rows": len(values)}

    @staticmethod
    def label(value: Any, vocabulary: Mapping[str, Any]) -> Tensor:
        """Ones at the tags, (C,) float."""
        classes = vocabulary["classes"]
        hot = torch.zeros(len(classes))
        for tag in value or []:
            if tag not in classes:
                raise ValueError(f"{tag!r} is not one of the classes {classes[:20]}")
            hot[classes.index(tag)] = 1.0
        return hot

    @staticmethod
    def outputs(vocabulary: Mapping[str, Any]) -> int:
        """The number of classes."""
        return len(vocabulary["classes"])

    def forward(self, fused: Encoded, target: Mapping[str, Tensor] | None = None) -> Tensor:
        """Logits (B, C)."""
        return self.linear(self.drop(fused.pooled))

    def average(self, logits: Tensor, weights: Tensor) -> Tensor:
        """The logits of the mean probabilities."""
        return super().average(logits.sigmoid(), weights).logit()

    def decode(self, logits: Tensor) -> dict[str, list[Any]]:
        """The classes whose probability is one half or more."""
        classes = self.vocabulary["classes"]
        return {"prediction": [[c for c, on in zip(classes, row) if on] for row in (logits >= 0).tolist()]}
