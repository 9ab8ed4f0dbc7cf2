"""A few tokens become others, found by the gradient."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from mmkt.goal import Loss
from mmkt.layers.vocabulary import returns, vocabulary
from mmkt.queries import Query, Standing
from mmkt.types import Attack
from mmkt.victim import Victim

LOOKS = 8  # times the candidates: so many of the best estimated are read again, until enough of them come back as they are


class Hotflip(Attack):
    """HotFlip (Ebrahimi et al., 2018): swaps of tokens for others, by the first-order estimate (e_new − e_old) · ∇ loss.

    The best by that estimate are tried, and the best of those is made, until the model is wrong or the budget is used. A piece
    that begins a word becomes another one that does, in its script, one that goes on with a word another that does; special
    tokens, padding, digits and signs stay. The new text has to be tokenised as these ids; where the row's own text is not (its
    spaces are lost in decoding), the new piece has to be a word by itself.
    """

    moves = "tokens"
    norms = ()
    keeps = False

    def __init__(
        self,
        *,
        flips: Annotated[int, Field(ge=1)] = 3,
        candidates: Annotated[int, Field(ge=1)] | None = 20,
        loss: Loss = "margin",
    ):
        """Remember the settings.

        Args:
            flips: of a row at the most, over all of its texts; a token is swapped once.
            candidates: that are tried for each flip; None: every swap that is allowed.
            loss: whose gradient estimates.
        """
        self.flips, self.candidates, self.loss = flips, candidates, loss

    def __call__(self, victim: Victim) -> dict[str, Tensor]:
        """Each flip takes a backward of the batch, and a forward of every candidate of the rows that are still right."""
        standing = Standing(victim, self.flips)
        lexicons = {m: _Lexicon.of(victim, m) for m in victim.modalities}
        for _ in range(self.flips):
            if not standing.open:
                break
            made = standing.take(self._queries(victim, standing, lexicons))
            for row in set(standing.open) - made.keys():
                standing.left[row] = 0  # nothing that was tried is worse
        return standing.points

    def _queries(self, victim: Victim, standing: Standing, lexicons: Mapping[str, _Lexicon]) -> list[Query]:
        """What is tried in every row that is open."""
        embedded = {m: victim.model.encoders[m].embed(ids).detach() for m, ids in standing.points.items()}
        slopes = victim.slope(embedded, self.loss).gradients
        found: list[Query] = []
        for row in standing.open:
            swaps: list[tuple[float, str, int, int]] = []  # estimate, modality, item, place · vocabulary + token
            for m, lexicon in lexicons.items():
                for item in (victim.rows[m] == row).nonzero()[:, 0].tolist():
                    most = None if self.candidates is None else LOOKS * self.candidates
                    best = lexicon.best(item, standing.points[m][item], slopes[m][item], most)
                    swaps += [(gain, m, item, swap) for gain, swap in best]
            swaps.sort(key=lambda swap: -swap[0])
            tried = (lexicons[m].swapped(row, m, item, standing.points[m][item], swap) for _, m, item, swap in swaps)
            found += itertools.islice((query for query in tried if query is not None), self.candidates)
        return found


class _Lexicon(NamedTuple):
    """What the tokens of a modality's N items may become. Shapes: V ids."""

    sort: Tensor  # (V,) see ``Vocabulary``
    whole: Tensor  # (V,) bool
    embeddings: Tensor  # (V, W)
    clean: Tensor  # (N, L) ids
    there: Tensor  # (N, L) bool: not padding
    same: Callable[[Sequence[int]], bool]  # whether ids are decoded to a text that is tokenised to them
    back: list[bool]  # whether each item's own ids are

    @classmethod
    def of(cls, victim: Victim, m: str) -> _Lexicon:
        encoder: Any = victim.model.encoders[m]
        known, clean = vocabulary(encoder.tokenizer), victim.clean[m]
        there = victim.batch.inputs[m]["attention_mask"].bool()  # type: ignore[call-overload]
        same = returns(encoder.processor(), encoder.tokenizer)
        back = [same(ids[real].tolist()) for ids, real in zip(clean, there, strict=True)]
        sort = known.sort.to(clean.device)
        with torch.no_grad():
            embeddings = encoder.embed(torch.arange(len(sort), device=clean.device))
        return cls(sort, known.whole.to(clean.device), embeddings, clean, there, same, back)

    def best(self, item: int, ids: Tensor, gradient: Tensor, most: int | None) -> list[tuple[float, int]]:
        """The swaps of an item with the largest estimates: the estimate, and place · V + token.

        Args:
            item: its place among the N.
            ids: (L,) as they are now; a token that has been swapped stays.
            gradient: (L, W).
            most: so many at the most.
        """
        own = self.sort[ids]  # (L,)
        movable = self.there[item] & (own >= 0) & (ids == self.clean[item])
        allowed = movable[:, None] & (own[:, None] == self.sort)  # (L, V)
        if not self.back[item]:
            allowed &= self.whole
        allowed.scatter_(1, ids[:, None], False)
        gains = gradient @ self.embeddings.T - (gradient * self.embeddings[ids]).sum(1, keepdim=True)
        count = int(allowed.sum())
        ranked = gains.masked_fill(~allowed, -torch.inf).flatten().topk(count if most is None else min(most, count))
        return list(zip(ranked.values.tolist(), ranked.indices.tolist(), strict=True))

    def swapped(self, row: int, m: str, item: int, ids: Tensor, swap: int) -> Query | None:
        """An item with a swap made; None where its text would be tokenised otherwise."""
        place, token = divmod(swap, len(self.sort))
        new = ids.clone()
        new[place] = token
        kept = not self.back[item] or self.same(new[self.there[item]].tolist())
        return Query(row, m, item, new) if kept else None
