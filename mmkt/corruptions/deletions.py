"""Text with letters left out."""

from __future__ import annotations

import random

from mmkt.types import Corruption


class Deletions(Corruption):
    """Each letter is left out with a probability; the last one that is left stays."""

    kind = "text"
    levels = (0.03, 0.06, 0.1, 0.2, 0.3)

    def __call__(self, item: str, level: float, rate: int | None) -> str:
        """At the most as long as before; what is no letter stays."""
        places = [k for k, c in enumerate(item) if c.isalpha()]
        gone = {k for k in places if random.random() < level}
        if places and len(gone) == len(places):
            gone.discard(random.choice(places))
        return "".join(c for k, c in enumerate(item) if k not in gone)
