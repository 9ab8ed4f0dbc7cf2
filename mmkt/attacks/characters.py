"""Letters changed as they are mistyped or misread."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Annotated, Literal

from pydantic import Field

from mmkt.generators import seed_of
from mmkt.layers.letters import alike, beside, homophones
from mmkt.layers.words import is_han, split
from mmkt.substitution import Edit, Word, substituted
from mmkt.types import Attack
from mmkt.victim import Victim

Way = Literal["swap", "delete", "insert", "neighbour", "alike", "homophone"]


class Characters(Attack):
    """DeepWordBug (Gao et al., 2018) and TextBugger (Li et al., 2019): one letter of a word, the most important words first.

    Ways: two letters beside each other change places; one is left out; a neighbour on the keyboard comes beside one, or in its
    place; one that looks alike comes in its place. A Chinese character is a word by itself: it changes places with the next
    one, is left out, or becomes one that looks or sounds alike. An edit is one such change (Damerau, 1964), and a word has one.
    """

    moves = "texts"
    norms = ()
    gradients = False
    keeps = False

    def __init__(
        self,
        *,
        edits: Annotated[int, Field(ge=1)] = 5,
        ways: Annotated[list[Way], Field(min_length=1)] = ["swap", "delete", "insert", "neighbour", "alike", "homophone"],  # noqa: B006 - never changed
        tries: Annotated[int, Field(ge=1)] | None = 20,
    ):
        """Remember the settings.

        Args:
            edits: of a row at the most, over all of its texts.
            ways: in which a word may change. ``homophone`` needs pypinyin where there are Chinese texts.
            tries: changes of a word that are tried, drawn at random; None: all.
        """
        self.edits, self.ways, self.tries = edits, tuple(ways), tries

    def __call__(self, victim: Victim) -> dict[str, list[str]]:
        """A forward a word to rank them, then one for each change that is tried.

        Raises:
            ValueError: there are Chinese characters, whose homophones need pypinyin.
        """

        def alternatives(word: Word) -> list[Edit]:
            key = (*victim.keys[word.modality][word.item], word.place)
            return self._drawn(word, random.Random(seed_of(victim.seed, "characters", *key)))

        return substituted(victim, split, alternatives, self.edits)

    def _drawn(self, word: Word, chance: random.Random) -> list[Edit]:
        """Some of a word's changes."""
        piece = word.pieces[word.place]
        found: list[Edit] = []
        for way in self.ways:
            found += [{word.place: new} for new in WAYS[way](piece)]
        after = word.pieces[word.place + 1 : word.place + 2]
        if "swap" in self.ways and is_han(piece) and after and is_han(after[0]) and after[0] != piece:
            found.append({word.place: after[0], word.place + 1: piece})
        found = [edit for k, edit in enumerate(found) if edit not in found[:k] and edit != {word.place: piece}]
        return found if self.tries is None or len(found) <= self.tries else chance.sample(found, self.tries)


def _swaps(word: str) -> list[str]:
    return [word[:k] + word[k + 1] + word[k] + word[k + 2 :] for k in range(len(word) - 1)]


def _deletions(word: str) -> list[str]:
    return [word[:k] + word[k + 1 :] for k in range(len(word))]


def _insertions(word: str) -> list[str]:
    """A neighbour's key is hit together with a letter's, before it or after."""
    return [word[:place] + c + word[place:] for k in range(len(word)) for c in _keys(word[k]) for place in (k, k + 1)]


def _replaced(others: Callable[[str], str]) -> Callable[[str], list[str]]:
    return lambda word: [word[:k] + c + word[k + 1 :] for k in range(len(word)) for c in others(word[k])]


def _keys(letter: str) -> str:
    found = beside(letter.lower())
    return found.upper() if letter.isupper() else found


def _same_sound(letter: str) -> str:
    return homophones(letter) if is_han(letter) else ""


WAYS: dict[str, Callable[[str], list[str]]] = {
    "swap": _swaps,
    "delete": _deletions,
    "insert": _insertions,
    "neighbour": _replaced(_keys),
    "alike": _replaced(alike),
    "homophone": _replaced(_same_sound),
}
