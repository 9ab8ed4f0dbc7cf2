"""Text typed in haste."""

from __future__ import annotations

import random

from mmkt.layers.letters import beside
from mmkt.types import Corruption

NEAR = 3  # code points


class Typos(Corruption):
    """Each letter becomes a wrong one with a probability: a neighbour on the keyboard (QWERTY), in other scripts in Unicode.

    Unicode orders Chinese characters by radical and stroke, so that a neighbour there looks alike.
    """

    kind = "text"
    levels = (0.03, 0.06, 0.1, 0.2, 0.3)

    def __call__(self, item: str, level: float, rate: int | None) -> str:
        """As long as before; what is no letter stays."""
        return "".join(_other(c) if c.isalpha() and random.random() < level else c for c in item)


def _other(letter: str) -> str:
    keys = beside(letter.lower())
    if keys:
        wrong = random.choice(keys)
        return wrong.upper() if letter.isupper() else wrong
    near = [chr(ord(letter) + step) for step in range(-NEAR, NEAR + 1) if step and 0 < ord(letter) + step <= 0x10FFFF]
    return random.choice([c for c in near if c.isalpha() and c.isupper() == letter.isupper()] or [letter])
