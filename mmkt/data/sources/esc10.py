"""ESC-10: four hundred clips of environmental sound."""

from __future__ import annotations

import csv
import zipfile
from pathlib import Path

from mmkt.data.sources import _files
from mmkt.types import Source


class Esc10(Source):
    """ESC-10 (Piczak, 2015): 400 clips of 5 s, ten classes, with its five official folds in the column ``fold``.

    Clips cut from one recording share a group and a fold. Rows have no split: ``mmkt folds … --by fold`` gives them one.
    """

    def __init__(self) -> None:
        """There is nothing to set."""

    def prepare(self, out: Path, source: Path | None) -> Path:
        """One Parquet file, sounds inside: id, group (the Freesound recording), fold, audio, label.

        Raises:
            ValueError: the folder or a file of it is missing.
        """
        folder = _files.find(source, "esc10", ("meta.csv", "audio.zip"))
        with (folder / "meta.csv").open(encoding="utf-8") as file, zipfile.ZipFile(folder / "audio.zip") as archive:
            rows = [
                {
                    "id": Path(clip["file"]).stem,
                    "group": clip["freesound_id"],
                    "fold": clip["fold"],
                    "audio": archive.read(clip["file"]),
                    "label": clip["label_name"],
                }
                for clip in csv.DictReader(file)
            ]
        return _files.write(rows, out)
