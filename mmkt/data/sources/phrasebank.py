"""Sentiment of financial news."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from mmkt.data.sources import _files
from mmkt.types import Source

AGREE = {"50": 50, "66": 66, "75": 75, "all": 100}  # per cent of the annotators, as the file has it


class Phrasebank(Source):
    """Financial PhraseBank (Malo et al., 2014): sentences of financial news as positive, neutral or negative for investors.

    The set has no official splits: shares of every class are drawn by seed.
    """

    def __init__(
        self,
        *,
        agree: Literal[50, 66, 75, 100] = 50,
        test: Annotated[float, Field(gt=0, lt=1)] = 0.2,
        validation: Annotated[float, Field(gt=0, lt=1)] = 0.1,
        seed: int = 0,
    ):
        """Remember the settings.

        Args:
            agree: per cent of the annotators that agree on a sentence at the least; 50 takes all 4,840 sentences.
            test: share of the rows.
            validation: share of the rows that are not test.
            seed: of both.
        """
        self.agree, self.test, self.validation, self.seed = agree, test, validation, seed

    def prepare(self, out: Path, source: Path | None) -> Path:
        """One Parquet file: id, split, domain (how many agree), text, sentiment.

        Raises:
            ValueError: the folder or its file is missing.
        """
        folder = _files.find(source, "phrasebank", ("phrasebank.jsonl.gz",), "finance")
        with gzip.open(folder / "phrasebank.jsonl.gz", "rt", encoding="utf-8") as file:
            found = [json.loads(line) for line in file]
        kept = [(k, row) for k, row in enumerate(found) if AGREE[row["agree"]] >= self.agree]
        test = _files.hold_back([row["label"] for _, row in kept], self.test, self.seed)
        rest = [place for place, on in enumerate(test) if not on]
        held = _files.hold_back([kept[place][1]["label"] for place in rest], self.validation, self.seed)
        validation = {place for place, on in zip(rest, held) if on}
        rows = [
            {
                "id": str(k),
                "split": "test" if test[place] else "validation" if place in validation else "train",
                "domain": f"agree {AGREE[row['agree']]} %",
                "text": row["sentence"],
                "sentiment": row["label"],
            }
            for place, (k, row) in enumerate(kept)
        ]
        return _files.write(rows, out)
