"""Words of a text replaced one after another, the most important first: what attacks of texts share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from mmkt.layers.words import is_word
from mmkt.queries import Query, Standing, margins
from mmkt.victim import Victim

Edit = dict[int, str]  # by place among a text's pieces, what stands there instead: one edit, though it may touch two


class Word(NamedTuple):
    """A word of one of the batch's texts."""

    modality: str
    item: int
    place: int  # among the text's pieces
    pieces: tuple[str, ...]  # of the text as it came


def substituted(
    victim: Victim, split: Callable[[str], Sequence[str]], alternatives: Callable[[Word], Sequence[Edit]], edits: int
) -> dict[str, list[str]]:
    """The texts after up to so many edits a row; a word is edited once.

    Words are ranked once, by how much worse the answer is without them (TextFooler: Jin et al., 2020; DeepWordBug: Gao et al.,
    2018). For one after the other the edit is made that is worst, if it makes things worse, until the model is wrong.

    Args:
        victim: whose points are texts.
        split: a text's pieces, which joined are the text.
        alternatives: edits that may be made for a word.
        edits: over all texts of a row.
    """
    standing = Standing(victim, edits)
    came = {m: [tuple(split(text)) for text in texts] for m, texts in victim.clean.items()}
    now = {m: [list(pieces) for pieces in texts] for m, texts in came.items()}
    waiting = _ranked(victim, standing, came)
    touched: set[tuple[str, int, int]] = set()
    while any(waiting[row] for row in standing.open):
        queries, meant = [], []
        for row in standing.open:
            if not waiting[row]:
                continue
            word = waiting[row].pop(0)
            m, item = word.modality, word.item
            if (m, item, word.place) in touched:
                continue
            for edit in alternatives(word):
                if any((m, item, place) in touched for place in edit):
                    continue
                queries.append(Query(row, m, item, "".join(_made(now[m][item], edit))))
                meant.append((m, item, edit))
        for number in standing.take(queries).values():
            m, item, edit = meant[number]
            now[m][item] = _made(now[m][item], edit)
            touched |= {(m, item, place) for place in edit}
    return standing.points


def _made(pieces: Sequence[str], edit: Edit) -> list[str]:
    return [edit.get(place, piece) for place, piece in enumerate(pieces)]


def _ranked(victim: Victim, standing: Standing, came: Mapping[str, Sequence[Sequence[str]]]) -> dict[int, list[Word]]:
    """The words of every open row, the most important first; of words that are tied the earlier."""
    words: dict[int, list[Word]] = {row: [] for row in standing.open}
    for m, texts in came.items():
        for item, row in enumerate(victim.rows[m].tolist()):
            if row in words:
                words[row] += [Word(m, item, k, tuple(texts[item])) for k, piece in enumerate(texts[item]) if is_word(piece)]
    queries = [
        Query(row, word.modality, word.item, "".join(_made(word.pieces, {word.place: ""})))
        for row in words
        for word in words[row]
    ]
    gains = iter(margins(victim, standing.points, queries))
    found = {}
    for row, own in words.items():
        ranks = [-round(next(gains), 5) for _ in own]  # rounded: see ``queries.TIED``
        found[row] = [own[k] for k in sorted(range(len(own)), key=ranks.__getitem__)]
    return found
