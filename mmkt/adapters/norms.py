"""Norms alone."""

from __future__ import annotations

from mmkt.layers.norms import norm_parameters
from mmkt.layers.presets import body_of, family, parameters_of
from mmkt.types import Adapter, Encoder


class Norms(Adapter):
    """Of the body the scales and shifts of its norms train, as in Lu et al. (2021). It adds no parameters."""

    merges = True

    def __init__(self, *, targets: list[str] | None = None):
        """Remember the settings.

        Args:
            targets: shell-style patterns on whole names of norms below the body, which then train alone.
        """
        self.targets = targets

    def apply(self, encoder: Encoder) -> set[str]:
        """Nothing changes; the norms train."""
        body = body_of(encoder)
        found = norm_parameters(body)
        names = [name for name, _ in body.named_parameters() if name in found]
        if not names:
            raise ValueError(f"this body of the family {family(body)} has no norms; mmkt list adapters shows the others")
        return parameters_of(encoder, names, self.targets)

    def merge(self, encoder: Encoder) -> None:
        """It is the body's own already."""
