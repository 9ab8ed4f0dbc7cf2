"""Text with letters in the wrong order."""

from __future__ import annotations

import random

from mmkt.types import Corruption


class Swaps(Corruption):
    """Each letter changes places with the next one of its word with a probability; Chinese has no words, but runs of letters."""

    kind = "text"
    levels = (0.03, 0.06, 0.1, 0.2, 0.3)

    def __call__(self, item: str, level: float, rate: int | None) -> str:
        """The same letters; none moves twice."""
        letters, place = list(item), 0
        while place + 1 < len(letters):
            if letters[place].isalpha() and letters[place + 1].isalpha() and random.random() < level:
                letters[place], letters[place + 1] = letters[place + 1], letters[place]
                place += 1
            place += 1
        return "".join(letters)
