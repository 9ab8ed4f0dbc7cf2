"""What one item may hold, and texts, which take no decoder."""

from __future__ import annotations

from typing import Any, NamedTuple


class DecodeError(ValueError):
    """An item cannot be decoded; the message says why, the caller adds which row."""


class Limits(NamedTuple):
    """What one item may hold at the most."""

    pixels: int = 64_000_000
    seconds: float = 60.0
    characters: int = 100_000


USUAL = Limits()


def text(cell: Any, limits: Limits = USUAL) -> str:
    """A text cell, unchanged; an integer as its digits.

    Raises:
        DecodeError: another type, or longer than ``limits.characters``.
    """
    if isinstance(cell, int) and not isinstance(cell, bool):
        cell = str(cell)  # CSV: a column whose texts are all digits
    if not isinstance(cell, str):
        raise DecodeError(f"a text cell holds a string, not {type(cell).__name__} {str(cell)[:40]!r}")
    if len(cell) > limits.characters:
        raise DecodeError(f"the text has {len(cell):,} characters, the limit is {limits.characters:,}: raise data.max_characters")
    return cell
