"""What an attacker wants to be said, and the losses that say how near a row is to it."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

Loss = Literal["ce", "margin", "dlr"]


class Goal(NamedTuple):
    """A label that should not be said, or a class that should. Shapes: logits (B, C), all else (B,)."""

    labels: Tensor  # long
    known: Tensor  # bool: rows that have one
    targets: Tensor | None = None  # long

    def loss(self, name: Loss, logits: Tensor) -> Tensor:
        """A larger one is nearer to the goal; zero for rows without a label.

        ``ce``: cross-entropy of the label, or minus that of the target. ``margin`` (Carlini and Wagner, 2017): the largest other
        logit less the label's, or the target's less the largest other; above zero the goal is reached. ``dlr`` (Croce and Hein,
        2020): that margin over the distance between the first and the third logit, (to the mean of the third and fourth with a
        target), which no scale of the logits changes; with two
        classes, the margin.
        """
        found = {"ce": self._ce, "margin": self._margin, "dlr": self._dlr}[name](logits)
        return found.masked_fill(~self.known, 0.0)

    def reached(self, logits: Tensor) -> Tensor:
        """Whether the model says what the attacker wants, (B,) bool; False where there is no label."""
        said = logits.argmax(1)
        return (said != self.labels if self.targets is None else said == self.targets) & self.known

    def _ce(self, logits: Tensor) -> Tensor:
        if self.targets is None:
            return F.cross_entropy(logits, self.labels, reduction="none")
        return -F.cross_entropy(logits, self.targets, reduction="none")

    def _margin(self, logits: Tensor) -> Tensor:
        one = self.labels if self.targets is None else self.targets
        own = logits.gather(1, one[:, None])[:, 0]
        # minus infinity, not a product with zero: all other logits may be below it
        other = logits.scatter(1, one[:, None], -torch.inf).amax(1)
        return other - own if self.targets is None else own - other

    def _dlr(self, logits: Tensor) -> Tensor:
        if logits.shape[1] < 3:  # of two classes the scale is the margin itself, which would leave a sign without a gradient
            return self._margin(logits)
        ranked = logits.sort(1, descending=True).values
        if self.targets is None:
            return self._margin(logits) / (ranked[:, 0] - ranked[:, 2]).clamp(min=1e-12)
        own, wanted = (logits.gather(1, y[:, None])[:, 0] for y in (self.labels, self.targets))
        return (wanted - own) / (ranked[:, 0] - ranked[:, 2:4].mean(1)).clamp(min=1e-12)
