"""Words that may stand for others: a user's file, or neighbours in an encoder's token embeddings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mmkt.layers.vocabulary import vocabulary


def read(path: Path | str) -> dict[str, list[str]]:
    """A thesaurus: JSON, ``{"word": ["alternative", …]}``, or a line a word, word and alternatives divided by tabs.

    Words are looked up in small letters.

    Raises:
        ValueError: there is no such file, it says something else, or it has no word.
    """
    file = Path(path)
    if not file.is_file():
        raise ValueError(f"thesaurus: there is no file {file}: give one with a line a word (word, tab, alternative, tab, …)")
    text = file.read_text(encoding="utf-8-sig")
    found = _json(text, file) if file.suffix == ".json" else _lines(text, file)
    if not found:
        raise ValueError(f"thesaurus: {file} has no word")
    merged: dict[str, list[str]] = {}
    for word, others in found:
        own = merged.setdefault(word.lower(), [])
        own += [other for other in others if other.lower() != word.lower() and other not in own]
    return merged


def _json(text: str, file: Path) -> list[tuple[str, list[str]]]:
    try:
        found: Any = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"thesaurus: {file} is no JSON ({error})") from None
    if not isinstance(found, dict):
        raise ValueError(f'thesaurus: {file} holds {type(found).__name__}, not an object: {{"film": ["movie"]}}')
    for word, others in found.items():
        if not isinstance(others, list) or not all(isinstance(other, str) and other.strip() for other in others):
            raise ValueError(f'thesaurus: {file} has {word!r}: {others!r}, not a list of words: {{"film": ["movie"]}}')
    return list(found.items())


def _lines(text: str, file: Path) -> list[tuple[str, list[str]]]:
    found = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        word, *others = (cell.strip() for cell in line.split("\t"))
        if not word or not others or not all(others):
            raise ValueError(f"thesaurus: line {number} of {file} is {line!r}, not a word, a tab and its alternatives")
        found.append((word, others))
    return found


class Neighbours:
    """Whole words of a tokenizer near one another in an encoder's embeddings of its tokens.

    Args:
        encoder: with a tokenizer and ``embed``.
        count: neighbours of a word at the most.
        cosine: of a neighbour at the least.
    """

    def __init__(self, encoder: Any, count: int, cosine: float):
        known = vocabulary(encoder.tokenizer)
        device = next(encoder.parameters()).device
        self.ids = known.whole.nonzero()[:, 0].to(device)
        self.words = [known.words[k] for k in self.ids.tolist()]
        self.place = {word: k for k, word in reversed(list(enumerate(self.words)))}
        self.sort = known.sort.to(device)[self.ids]
        with torch.no_grad():
            self.directions = F.normalize(encoder.embed(self.ids).float(), dim=1)  # (words, W)
        self.count, self.cosine = count, cosine

    def of(self, word: str) -> list[str]:
        """The nearest first; none where the word is not one piece."""
        place = self.place.get(word, self.place.get(word.lower()))
        if place is None:
            return []
        near: Tensor = self.directions @ self.directions[place]
        near = near.masked_fill(self.sort != self.sort[place], -torch.inf)
        found: list[str] = []
        for k in near.argsort(descending=True, stable=True).tolist():
            if len(found) == self.count or float(near[k]) < self.cosine:
                break
            other = self.words[k]
            if other.lower() != word.lower() and other not in found:
                found.append(other)
        return found
