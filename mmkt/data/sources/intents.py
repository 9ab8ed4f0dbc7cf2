"""What customers want: BANKING77 and CLINC150."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from mmkt.data.sources import _files
from mmkt.types import Source

FILES = {"banking77": "banking77.jsonl.gz", "clinc150": "clinc150_full.jsonl.gz"}
SPLITS = {"train": "train", "val": "validation", "test": "test"}


class Intents(Source):
    """Intents of single requests, in English: BANKING77 (Casanueva et al., 2020) or CLINC150 (Larson et al., 2019).

    BANKING77 has no validation split: a share of every class of its training split becomes one. CLINC150 keeps its own;
    its requests out of scope are left out, or with ``out_of_scope`` are one more class, ``oos``, in every split.
    """

    def __init__(
        self,
        *,
        corpus: Literal["banking77", "clinc150"] = "banking77",
        out_of_scope: bool = False,
        validation: Annotated[float, Field(gt=0, lt=1)] = 0.1,
        seed: int = 0,
    ):
        """Remember the settings.

        Args:
            corpus: which of the two.
            out_of_scope: keep CLINC150's requests out of scope.
            validation: share of BANKING77's training split.
            seed: of that share.
        """
        if out_of_scope and corpus == "banking77":
            raise ValueError("banking77 has no requests out of scope: leave out_of_scope out, or set corpus=clinc150")
        self.corpus, self.out_of_scope, self.validation, self.seed = corpus, out_of_scope, validation, seed

    def prepare(self, out: Path, source: Path | None) -> Path:
        """One Parquet file: id, split, text, intent.

        Raises:
            ValueError: the folder or the corpus's file is missing.
        """
        folder = _files.find(source, "intents", (FILES[self.corpus],))
        with gzip.open(folder / FILES[self.corpus], "rt", encoding="utf-8") as file:
            found = [json.loads(line) for line in file]
        kept = [row for row in found if self.out_of_scope or row["label"] != "oos"]
        splits = [SPLITS[row["split"].removeprefix("oos_")] for row in kept]
        if self.corpus == "banking77":
            train = [k for k, split in enumerate(splits) if split == "train"]
            held = _files.hold_back([kept[k]["label"] for k in train], self.validation, self.seed)
            for k, on in zip(train, held):
                splits[k] = "validation" if on else "train"
        rows = [
            {"id": f"{row['split']}-{k}", "split": split, "text": row["text"], "intent": row["label"]}
            for k, (row, split) in enumerate(zip(kept, splits))
        ]
        return _files.write(rows, out)
