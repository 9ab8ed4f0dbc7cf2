"""What the trainings of one process need not make twice: manifests, encoders that rest, their features."""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

KEPT = 8  # things of a kind: one a seed, of a study with five


class Workshop:
    """Things by kind and key, made when they are first asked for; of each kind those that were asked for last are kept."""

    def __init__(self) -> None:
        self.kept: dict[str, OrderedDict[str, Any]] = {}

    def get(self, kind: str, key: Any, make: Callable[[], Any]) -> Any:
        """What ``make`` gives for a key (plain data), which nobody may change."""
        shelf, name = self.kept.setdefault(kind, OrderedDict()), json.dumps(key, sort_keys=True)
        if name not in shelf:
            shelf[name] = make()
        shelf.move_to_end(name)
        while len(shelf) > KEPT:
            shelf.popitem(last=False)
        return shelf[name]

    def find(self, kind: str, key: Any) -> Any:
        """What is kept for a key, or None."""
        return self.kept.get(kind, OrderedDict()).get(json.dumps(key, sort_keys=True))
