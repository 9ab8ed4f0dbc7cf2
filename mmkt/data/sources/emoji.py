"""Emoji: the same signs drawn by two vendors, and their names in thirteen languages."""

from __future__ import annotations

import csv
import gzip
import json
import zipfile
from pathlib import Path
from typing import Any, Literal

import numpy as np

from mmkt.data.sources import _files
from mmkt.types import Source

ZIPS = {"noto": "noto72.zip", "emojitwo": "emojitwo64.zip"}
META = "meta.csv.gz"
TEST, VALIDATION = 0.2, 0.15  # shares of the emoji that both vendors draw, and of the rest


class Emoji(Source):
    """Emoji (Unicode) as drawn by Noto and by EmojiTwo: a shift of style, and names for retrieval and zero-shot.

    One vendor's drawings train. The test split has three domains: held-out emoji in the trained style, the same emoji in the
    other style, and (``OTHER, seen``) trained emoji in the other style. ``prompts.json`` has every emoji's name by language, as
    ``evaluate.prompts`` takes them for the label ``code``.
    """

    def __init__(self, *, style: Literal["noto", "emojitwo"] = "noto", seed: int = 0):
        """Remember the settings.

        Args:
            style: whose drawings train.
            seed: of which emoji are held out; every group keeps its share.
        """
        self.style, self.seed = style, seed

    def prepare(self, out: Path, source: Path | None) -> Path:
        """One Parquet file, pictures inside: id, split, domain, image, code, kind (the emoji's group), names, name_LANGUAGE.

        Raises:
            ValueError: the folder or a file of it is missing.
        """
        folder = _files.find(source, "emoji", (META, *ZIPS.values()))
        with gzip.open(folder / META, "rt", encoding="utf-8") as file:
            known = [one for one in csv.DictReader(file) if self.style == "noto" or one["has_emojitwo"] == "1"]
        languages = [name.removeprefix("label_") for name in known[0] if name.startswith("label_")]
        splits = self._splits(known)
        with zipfile.ZipFile(folder / ZIPS["noto"]) as noto, zipfile.ZipFile(folder / ZIPS["emojitwo"]) as emojitwo:
            packs = {"noto": noto, "emojitwo": emojitwo}
            rows = [row for one in known for row in self._rows(one, splits[one["hexcode"]], languages, packs)]
        path = _files.write(rows, out)
        prompts = {
            lang: {"templates": ["{}"], "classes": {one["hexcode"]: one[f"label_{lang}"] for one in known}} for lang in languages
        }
        (out / "prompts.json").write_text(json.dumps(prompts, ensure_ascii=False, indent=1), encoding="utf-8")
        return path

    def _splits(self, known: list[dict[str, str]]) -> dict[str, str]:
        """Code → split."""
        both = [one for one in known if one["has_emojitwo"] == "1"]
        held = _files.hold_back([one["group_name"] for one in both], TEST, self.seed)
        test = {one["hexcode"] for one, on in zip(both, held) if on}
        rest = [one for one in known if one["hexcode"] not in test]
        checks = _files.hold_back([one["group_name"] for one in rest], VALIDATION, self.seed)
        codes = np.array([one["hexcode"] for one in rest])
        return (
            dict.fromkeys(codes.tolist(), "train")
            | dict.fromkeys(codes[checks].tolist(), "validation")
            | dict.fromkeys(test, "test")
        )

    def _rows(
        self, one: dict[str, str], split: str, languages: list[str], packs: dict[str, zipfile.ZipFile]
    ) -> list[dict[str, Any]]:
        code, names = one["hexcode"], [one[f"label_{lang}"] for lang in languages]
        about = {"code": code, "kind": one["group_name"], "names": names}
        about |= {f"name_{lang}": name for lang, name in zip(languages, names)}
        other = "emojitwo" if self.style == "noto" else "noto"
        places: list[tuple[str, str, str]] = [(self.style, split, self.style)]
        if split != "validation" and (other == "noto" or one["has_emojitwo"] == "1"):
            places.append((other, "test", other if split == "test" else f"{other}, seen"))
        return [
            {"id": f"{code}-{style}", "split": where, "domain": domain, "image": packs[style].read(f"{code}.png")} | about
            for style, where, domain in places
        ]
