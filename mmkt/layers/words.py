"""A text as words: runs of letters; in Chinese the words of a dictionary, else single characters."""

from __future__ import annotations

import re
from collections.abc import Collection

HAN = "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
PIECE = re.compile(rf"[{HAN}]+|(?:(?![{HAN}])[^\W\d_])+|(?:(?![^\W\d_]).)+", re.DOTALL)


def is_han(piece: str) -> bool:
    """Whether it is of Chinese characters."""
    return bool(re.fullmatch(f"[{HAN}]+", piece))


def is_word(piece: str) -> bool:
    """Whether it is of letters, not of what stands between words."""
    return piece.isalpha()


def split(text: str, known: Collection[str] = frozenset()) -> list[str]:
    """Pieces that joined are the text: words, and what stands between them.

    Args:
        text: in any script.
        known: Chinese words; where several begin at a character the longest is taken, where none does the character alone.
    """
    longest = max((len(word) for word in known if is_han(word)), default=1)
    found: list[str] = []
    for piece in PIECE.findall(text):
        if not is_han(piece):
            found.append(piece)
            continue
        place = 0
        while place < len(piece):
            sizes = range(min(longest, len(piece) - place), 1, -1)
            size = next((n for n in sizes if piece[place : place + n] in known), 1)
            found.append(piece[place : place + size])
            place += size
    return found


def cased(word: str, like: str) -> str:
    """A word in the capitals of another: all of them, the first, or as it is."""
    if like.isupper() and len(like) > 1:
        return word.upper()
    return word[:1].upper() + word[1:] if like[:1].isupper() else word
