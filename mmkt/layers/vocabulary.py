"""What a tokenizer's pieces are: words or parts of them, of which script, and whether a text gives them back."""

from __future__ import annotations

import unicodedata
import weakref
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

_known: weakref.WeakKeyDictionary[Any, Vocabulary] = weakref.WeakKeyDictionary()


class Vocabulary(NamedTuple):
    """Of every id a tokenizer has, (V,) long each."""

    sort: Tensor  # pieces that may stand for one another: starts or continuations of words, of one script; −1: no letters
    whole: Tensor  # bool: a word by itself, which tokenises to this piece alone
    words: tuple[str, ...]  # what a piece says, without the space before it


def vocabulary(tokenizer: Any) -> Vocabulary:
    """A tokenizer's, looked through once.

    A piece of letters is of the sort of all that begin (or go on with, or end) a word in the same script; special tokens, unused
    places, digits and signs are of none.
    """
    if tokenizer not in _known:
        _known[tokenizer] = _look_through(tokenizer)
    return _known[tokenizer]


def _look_through(tokenizer: Any) -> Vocabulary:
    count = len(tokenizer)
    out = set(tokenizer.all_special_ids) | set(tokenizer.get_added_vocab().values())
    pieces = [piece or "" for piece in tokenizer.convert_ids_to_tokens(range(count))]
    sorts: dict[tuple[bool, bool, bool, str], int] = {}
    sort, words = torch.full((count,), -1), []
    for k, piece in enumerate(pieces):
        words.append("" if k in out else tokenizer.convert_tokens_to_string([piece.removeprefix("##")]).strip())
        if k not in out and words[k].isalpha():
            marks = piece.startswith("##"), piece.startswith(("Ġ", "▁")), piece.endswith("</w>")
            script = unicodedata.name(words[k][0], "?").split()[0]
            sort[k] = sorts.setdefault((*marks, script), len(sorts))
    real = [k for k in range(count) if sort[k] >= 0]
    alone = tokenizer([words[k] for k in real], add_special_tokens=False)["input_ids"] if real else []
    after = tokenizer([f" {words[k]}" for k in real], add_special_tokens=False)["input_ids"] if real else []
    whole = torch.zeros(count, dtype=torch.bool)
    for k, one, other in zip(real, alone, after, strict=True):
        whole[k] = one == [k] or other == [k]
    return Vocabulary(sort, whole, tuple(words))


def returns(process: Callable[[str], dict[str, Tensor]], tokenizer: Any) -> Callable[[Sequence[int]], bool]:
    """Makes a test of whether ids (without padding) are decoded to a text that is tokenised to the same ids."""
    left = set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}  # an unknown word is read as one again

    def same(ids: Sequence[int]) -> bool:
        text = tokenizer.decode([k for k in ids if k not in left], skip_special_tokens=False)
        found = process(text)["input_ids"]
        return found.flatten().tolist() == list(ids)

    return same
