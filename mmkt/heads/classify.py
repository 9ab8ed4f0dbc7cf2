"""One class out of several."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn

from mmkt.types import Encoded, Head


class Classify(Head):
    """A linear classifier on the fused summary. A label is one value (a string or a whole number)."""

    metrics = ("accuracy", "macro_f1", "auroc", "auprc", "ece", "nll", "precision", "recall", "f1")

    def __init__(self, dim: int, vocabulary: dict[str, Any], *, dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0):
        """Build the layer."""
        super().__init__()
        self.vocabulary = vocabulary
        self.drop, self.linear = nn.Dropout(dropout), nn.Linear(dim, self.outputs(vocabulary))

    @classmethod
    def learn(cls, values: Sequence[Any]) -> dict[str, Any]:
        """The classes of the training split, sorted, and how often each occurs."""
        counts = Counter(values)
        classes = sorted(counts, key=lambda c: (isinstance(c, str), c))
        if len(classes) < 2:
            words = "name another column (data.labels), or look at what the split holds (mmkt data check)"
            raise ValueError(f"a classifier needs two classes or more in the training split, found {classes}: {words}")
        return {"classes": classes, "counts": [counts[c] for c in classes]}

    @staticmethod
    def label(value: Any, vocabulary: Mapping[str, Any]) -> Tensor:
        """The class's number, () long."""
        if value is not None and value not in vocabulary["classes"]:
            raise ValueError(f"{value!r} is not one of the classes {vocabulary['classes'][:20]}")
        return torch.tensor(0 if value is None else vocabulary["classes"].index(value))

    @staticmethod
    def outputs(vocabulary: Mapping[str, Any]) -> int:
        """The number of classes."""
        return len(vocabulary["classes"])

    def forward(self, fused: Encoded, target: Mapping[str, Tensor] | None = None) -> Tensor:
        """Logits (B, C)."""
        return self.linear(self.drop(fused.pooled))

    def average(self, logits: Tensor, weights: Tensor) -> Tensor:
        """The logarithm of the mean probabilities."""
        return (weights.log()[..., None] + logits.log_softmax(2)).logsumexp(0)

    def decode(self, logits: Tensor) -> dict[str, list[Any]]:
        """The likeliest class and its probability."""
        confidence, best = logits.float().softmax(1).max(1)
        classes = self.vocabulary["classes"]
        return {"prediction": [classes[k] for k in best.tolist()], "confidence": confidence.tolist()}

    def calibrated(self, logits: Tensor) -> Tensor:
        """Divided by the temperature (Guo et al., 2017), (B, C)."""
        return logits / self.vocabulary.get("calibration", {}).get("temperature", 1.0)

    def prediction_sets(self, logits: Tensor) -> dict[str, list[Any]]:
        """A set a row of (B, C): classes that are probable enough for the coverage asked for (``conformal_threshold``)."""
        if "calibration" not in self.vocabulary:
            return {}
        threshold, classes = self.vocabulary["calibration"]["threshold"], self.vocabulary["classes"]
        enough = logits.double().softmax(1) >= threshold * (1 - 1e-5)  # another batch may round the last digits otherwise
        return {"set": [[c for c, on in zip(classes, row) if on] for row in enough.tolist()]}
