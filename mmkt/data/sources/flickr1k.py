"""A thousand photographs with captions in English and Chinese, and spoken captions."""

from __future__ import annotations

import csv
import gzip
import zipfile
from pathlib import Path
from typing import Any

from mmkt.data.sources import _files
from mmkt.types import Source

META, PACKS = "meta.csv.gz", ("images.zip", "audio_tts.zip")
COLUMNS = {"text": "en", "zh": "zh_human", "zh_mt": "zh_mt"}  # of the manifest, and of meta.csv: five captions each
SPLITS = {"train": "train", "val": "validation", "test": "test"}
CAPTIONS = 5


class Flickr1k(Source):
    """The first thousand photographs of Flickr8k (Hodosh et al., 2013), with Chinese captions (Li et al., 2016) and speech.

    Official splits; photographs without one are left out. In training and validation a row is a photograph, whose captions are
    a list (``data.one_of`` draws one, and takes the first where nothing trains). In test a row is a caption with its photograph,
    and ``photo`` says which rows are of one item (``evaluate.item=photo``). The speech is synthetic: one voice, the first English
    caption.
    """

    def __init__(self) -> None:
        """There is nothing to set."""

    def prepare(self, out: Path, source: Path | None) -> Path:
        """One Parquet file, media inside: id, split, photo, image, audio, and the captions text, zh, zh_mt.

        Raises:
            ValueError: the folder or a file of it is missing.
        """
        folder = _files.find(source, "flickr1k", (META, *PACKS))
        with (
            gzip.open(folder / META, "rt", encoding="utf-8") as file,
            zipfile.ZipFile(folder / PACKS[0]) as images,
            zipfile.ZipFile(folder / PACKS[1]) as sounds,
        ):
            photos = [one for one in csv.DictReader(file) if one["split8k"]]
            return _files.write([row for one in photos for row in _rows(one, images, sounds)], out)


def _rows(one: dict[str, str], images: zipfile.ZipFile, sounds: zipfile.ZipFile) -> list[dict[str, Any]]:
    """Of a photograph; a column has one type, so a caption by itself is a list of one."""
    name, split = Path(one["image"]).stem, SPLITS[one["split8k"]]
    about = {"split": split, "photo": name, "image": images.read(one["image"]), "audio": sounds.read(one["audio"])}
    captions = {column: [one[f"{known}{k}"] for k in range(CAPTIONS)] for column, known in COLUMNS.items()}
    if split != "test":
        return [{"id": name} | about | captions]
    return [{"id": f"{name}-{k}"} | about | {column: [texts[k]] for column, texts in captions.items()} for k in range(CAPTIONS)]
