"""Words replaced by others of a like meaning."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Annotated

from pydantic import Field

from mmkt.layers.thesaurus import Neighbours, read
from mmkt.layers.words import cased, split
from mmkt.parts import ConfigError
from mmkt.substitution import Edit, Word, substituted
from mmkt.types import Attack
from mmkt.victim import Victim


class Synonyms(Attack):
    """Substitution in the manner of TextFooler (Jin et al., 2020): other words, the most important words first.

    Others are those of a thesaurus, or else neighbours among whole words in the text encoder's own token embeddings: these are
    used alike, and not always synonyms ("good" is near "bad"). The paper's checks of the part of speech and of the sentence's
    meaning are not made. Chinese is read as the longest words that the thesaurus has, without one as single characters.
    """

    moves = "texts"
    norms = ()
    gradients = False
    keeps = False

    def __init__(
        self,
        *,
        edits: Annotated[int, Field(ge=1)] = 5,
        thesaurus: str | None = None,
        neighbours: Annotated[int, Field(ge=1)] = 20,
        cosine: Annotated[float, Field(ge=-1, le=1)] = 0.5,
    ):
        """Read the thesaurus.

        Args:
            edits: words of a row at the most, over all of its texts.
            thesaurus: a file, JSON or tab-separated: a word, then its alternatives.
            neighbours: of a word that are tried where there is no thesaurus.
            cosine: of a neighbour at the least.

        Raises:
            ValueError: the thesaurus cannot be read.
        """
        self.edits, self.neighbours, self.cosine = edits, neighbours, cosine
        self.known = None if thesaurus is None else read(thesaurus)

    def __call__(self, victim: Victim) -> dict[str, list[str]]:
        """A forward a word to rank them, then one for each alternative.

        Raises:
            ConfigError: without a thesaurus, an encoder has no tokenizer whose words have embeddings.
        """
        others = {m: self._others(victim, m) for m in victim.modalities}

        def alternatives(word: Word) -> list[Edit]:
            piece = word.pieces[word.place]
            found = (cased(other, piece) for other in others[word.modality](piece))
            return [{word.place: other} for other in dict.fromkeys(found) if other != piece]

        return substituted(victim, partial(split, known=frozenset(self.known or ())), alternatives, self.edits)

    def _others(self, victim: Victim, m: str) -> Callable[[str], list[str]]:
        """What gives a word's alternatives."""
        if self.known is not None:
            known = self.known
            return lambda word: known.get(word.lower(), [])
        encoder = victim.model.encoders[m]
        if not (hasattr(encoder, "tokenizer") and hasattr(encoder, "embed")):
            words = f"{type(encoder).__name__} has no tokenizer with embeddings, in which words have neighbours: give a thesaurus"
            raise ConfigError([(f"threats.{m}", words)])
        return cache(Neighbours(encoder, self.neighbours, self.cosine).of)
