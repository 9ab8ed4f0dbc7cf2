"""What an attacker may do to one modality: how far its raw numbers may move, and in which norm."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

from mmkt.config import Section
from mmkt.parts import ConfigError

Norm = Literal["linf", "l2"]
MOST, LOUDEST = 1e6, 120  # of ε, and of decibels


class Threat(Section):
    """A norm and how far: ``eps``, in the units of the raw numbers, or ``db``."""

    norm: Norm = "linf"
    """``linf``: every number by ε at the most; ``l2``: the root of the summed squares over an item (a picture, a clip, all
    tokens of a text)."""
    eps: float | None = None
    """Pixels lie in [0, 1], waveforms in [−1, 1]; a text's numbers are its token embeddings."""
    db: float | None = None
    """In place of ``eps``, relative to each item: 20 · log10(ε / size), its size being the largest magnitude (``linf``) or the
    norm (``l2``). −30 dB is a thirtieth."""

    def refuse(self, where: str) -> None:
        """Refuse a threat of no size.

        Args:
            where: its dotted path.

        Raises:
            ConfigError: neither or both of ``eps`` and ``db``, or one that allows nothing.
        """
        if (self.eps is None) == (self.db is None):
            found = "both" if self.eps is not None else "neither"
            raise ConfigError([(where, f"takes eps or db, found {found}: {{norm: linf, eps: 0.03}}, or {{norm: linf, db: -30}}")])
        if self.eps is not None and not self.eps > 0:
            words = f"{self.eps:g} lets nothing move: give a number above 0; without an attack it is the plain figure"
            raise ConfigError([(f"{where}.eps", words)])
        if self.eps is not None and self.eps > MOST:
            words = f"{self.eps:g} is beyond all raw numbers: give {MOST:g} at the most; pixels lie in [0, 1], samples in [−1, 1]"
            raise ConfigError([(f"{where}.eps", words)])
        if self.db is not None and not abs(self.db) <= LOUDEST:
            words = f"{self.db:g} is no size: give a number between −{LOUDEST} and {LOUDEST}, −30 is a thirtieth"
            raise ConfigError([(f"{where}.db", words)])

    def times(self, factor: float) -> Threat:
        """The same norm, so many times as far."""
        if self.eps is not None:
            return self.model_copy(update={"eps": self.eps * factor})
        assert self.db is not None, "refused"
        return self.model_copy(update={"db": self.db + 20 * math.log10(factor)})

    def __str__(self) -> str:
        return f"{self.norm} {self.eps:.3g}" if self.eps is not None else f"{self.norm} {self.db:.3g} dB"


def gaussian(sigma: Mapping[str, float], where: str = "sigma") -> dict[str, Threat]:
    """Noise of some standard deviations as threats, whose ε they are (``Ball.gaussian``).

    Args:
        sigma: by modality, in the units of the raw numbers.
        where: their dotted path.

    Raises:
        ConfigError: there is none, or one that is no noise.
    """
    if not sigma:
        raise ConfigError([(where, "needs one or more: {image: 0.25}")])
    for m, one in sigma.items():
        if not (0 < one < math.inf):
            raise ConfigError([(f"{where}.{m}", f"{one:g} is no standard deviation of noise: give a number above 0")])
    return {m: Threat(norm="l2", eps=one) for m, one in sigma.items()}


USUAL: dict[str, dict[str, Any]] = {  # by an encoder's kind
    "image": {"norm": "linf", "eps": 8 / 255},
    "audio": {"norm": "linf", "db": -30.0},
    "text": {"norm": "l2", "db": -26.0},
    "features": {"norm": "l2", "db": -20.0},
}
"""What is attacked how far where nothing is said: pixels by 8/255 (Madry et al., 2018), samples by a thirtieth of their
clip's peak, token embeddings by a twentieth of their norm, vectors by a tenth of theirs."""
