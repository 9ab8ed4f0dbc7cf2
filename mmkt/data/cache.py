"""Items kept between epochs."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

from PIL import Image
from torch import Tensor


class Cache:
    """What was decoded, until it fills its share of memory.

    Nothing is thrown out again: an epoch asks for every row once, so what was kept first is as good as anything.

    Args:
        size: bytes.
    """

    def __init__(self, size: float):
        self.left = size
        self._kept: dict[Hashable, Any] = {}

    def get(self, key: Hashable, make: Callable[[], Any]) -> Any:
        """What ``make`` gives, from memory where it is kept; nobody may change it."""
        if key in self._kept:
            return self._kept[key]
        value = make()
        size = _bytes(value)
        if size <= self.left:
            self._kept[key] = value
            self.left -= size
        return value


def _bytes(value: Any) -> int:
    """What an item takes, with some 100 bytes for each object."""
    if isinstance(value, Tensor):
        return 100 + value.untyped_storage().nbytes()
    if isinstance(value, Image.Image):
        return 100 + value.width * value.height * len(value.getbands())
    if isinstance(value, dict):
        return 100 + sum(map(_bytes, value.values()))
    if isinstance(value, list | tuple):
        return 100 + sum(map(_bytes, value))
    return 100 + (len(value) if isinstance(value, str | bytes) else 0)
