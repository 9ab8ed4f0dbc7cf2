"""Biases alone."""

from __future__ import annotations

from mmkt.layers.presets import body_of, family, parameters_of
from mmkt.types import Adapter, Encoder


class Bitfit(Adapter):
    """BitFit (Ben Zaken et al., 2022): of the body its biases train, those of norms included. It adds no parameters."""

    merges = True

    def __init__(self, *, targets: list[str] | None = None):
        """Remember the settings.

        Args:
            targets: shell-style patterns on whole names of modules below the body, whose biases then train alone.
        """
        self.targets = targets

    def apply(self, encoder: Encoder) -> set[str]:
        """Nothing changes; the biases train."""
        body = body_of(encoder)
        names = [name for name, _ in body.named_parameters() if name.endswith("bias")]
        if not names:
            raise ValueError(f"this body of the family {family(body)} has no biases; mmkt list adapters shows the others")
        return parameters_of(encoder, names, self.targets)

    def merge(self, encoder: Encoder) -> None:
        """It is the body's own already."""
