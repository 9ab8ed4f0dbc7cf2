"""Chinese texts with few labels: FewCLUE."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from mmkt.data.sources import _files
from mmkt.types import Source

# task → text columns (two: a pair of sentences), label column
TASKS = {
    "eprstmt": (("sentence",), "label"),
    "tnews": (("sentence",), "label_desc"),
    "csldcp": (("content",), "label"),
    "iflytek": (("sentence",), "label_des"),
    "bustm": (("sentence1", "sentence2"), "label"),
    "ocnli": (("sentence1", "sentence2"), "label"),
}


class Fewclue(Source):
    """FewCLUE (Xu et al., 2021): Chinese reviews, headlines, abstracts and pairs of sentences, few of them labelled.

    ``draw`` is one of the benchmark's five draws of training and validation rows, or ``few_all``, which unites them; test
    is always ``test_public``. A pair is a list of two texts (``hf_text`` reads it with ``pairs: true``).
    """

    def __init__(
        self,
        *,
        task: Literal["eprstmt", "tnews", "csldcp", "iflytek", "bustm", "ocnli"] = "eprstmt",
        draw: Annotated[int, Field(ge=0, le=4)] | Literal["few_all"] = "few_all",
        unlabelled: bool = False,
    ):
        """Remember the settings; ``unlabelled`` adds the task's unlabelled texts as a split of that name."""
        self.task, self.draw, self.unlabelled = task, draw, unlabelled

    def prepare(self, out: Path, source: Path | None) -> Path:
        """One Parquet file: id, split, text, label (null where unlabelled).

        Raises:
            ValueError: the folder or the task's file is missing, or the task has no unlabelled texts.
        """
        file = f"{self.task}.tar.xz"
        folder = _files.find(source, "fewclue", (file,))
        names = {"train": f"train_{self.draw}", "validation": f"dev_{self.draw}", "test": "test_public"}
        if self.unlabelled:
            names["unlabelled"] = "unlabeled"
        with tarfile.open(folder / file) as archive:
            if f"{self.task}/{names.get('unlabelled', 'test_public')}.json" not in archive.getnames():
                raise ValueError(f"{folder / file} has no unlabelled texts: leave unlabelled out")
            rows = [row for split, name in names.items() for row in self._rows(archive, split, name)]
        return _files.write(rows, out)

    def _rows(self, archive: tarfile.TarFile, split: str, name: str) -> Iterator[Mapping[str, Any]]:
        texts, label = TASKS[self.task]
        pair = len(texts) == 2
        member = archive.extractfile(f"{self.task}/{name}.json")
        assert member is not None, "a file, as the archive's list says"
        for k, line in enumerate(io.TextIOWrapper(member, encoding="utf-8")):
            row = json.loads(line)
            known = None if split == "unlabelled" or row[label] == "-" else str(row[label])  # OCNLI's "-": nobody agreed
            text = [row[column] for column in texts] if pair else row[texts[0]]
            yield {"id": f"{split}-{k}", "split": split, "text": text, "label": known}
