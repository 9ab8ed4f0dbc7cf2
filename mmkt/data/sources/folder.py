"""Anybody's pictures, sounds or text files, one sub-folder a class."""

from __future__ import annotations

import json
import os
import warnings
from pathlib import Path
from typing import Any, Literal

from mmkt.types import Source

SUFFIXES = {
    "image": {".jpg", ".jpeg", ".png", ".gif", ".bmp", ".webp", ".tif", ".tiff"},
    "audio": {".wav", ".flac", ".ogg", ".opus", ".mp3", ".aiff", ".aif"},
    "text": {".txt"},
}
SPLITS = {
    "train": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "test": "test",
    "eval": "test",
}


class Folder(Source):
    """A folder with a sub-folder a class (``DIR/cat/1.jpg``), or with splits above them (``DIR/train/cat/1.jpg``).

    Writes ``manifest.jsonl``: id (the relative path), split (null without split folders), the media column, named by its
    kind (``image``, ``audio`` or ``text``), and ``label`` (the class).
    """

    def __init__(self, *, kind: Literal["auto", "image", "audio", "text"] = "auto"):
        """``kind`` of the files to take; ``auto`` takes what there is, if it is of one kind."""
        self.kind = kind

    def prepare(self, out: Path, source: Path | None) -> Path:
        """Write the manifest; media stay where they are.

        Raises:
            ValueError: no folder was named, or it does not hold two classes or more of files of one kind.
        """
        if source is None or not source.is_dir():
            raise ValueError(f"there is no folder {source}: name the one that holds the classes (--from DIR)")
        files = sorted(
            p for p in source.rglob("*") if p.is_file() and not any(x.startswith(".") for x in p.relative_to(source).parts)
        )
        kind = self._kind(files, source)
        taken = [p for p in files if p.suffix.lower() in SUFFIXES[kind]]
        rows = [self._row(p, source, out, kind) for p in taken]
        folders = {d.relative_to(source).parts for d in source.rglob("*") if d.is_dir() and not d.name.startswith(".")}
        empty = [d for d in folders if self._is_class(d) and not any(p.relative_to(source).parts[: len(d)] == d for p in taken)]
        if empty:
            raise ValueError(
                f"the class folder {'/'.join(min(empty))} has no {kind} files; take it away, or choose another kind=…"
            )
        classes = sorted({row["label"] for row in rows})
        if len(classes) < 2:
            raise ValueError(f"{source} has the class {', '.join(classes)} alone: a sub-folder a class is needed, two or more")
        if len(taken) < len(files):
            left = [p for p in files if p not in set(taken)]
            examples = ", ".join(str(p.relative_to(source)) for p in left[:3])
            warnings.warn(f"{len(left)} files of other kinds were left out: {examples}", stacklevel=2)
        out.mkdir(parents=True, exist_ok=True)
        new, path = out / f"manifest.jsonl.{os.getpid()}", out / "manifest.jsonl"
        new.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
        new.replace(path)
        return path

    def _kind(self, files: list[Path], source: Path) -> str:
        counts = {kind: sum(p.suffix.lower() in suffixes for p in files) for kind, suffixes in SUFFIXES.items()}
        found = [kind for kind, count in counts.items() if count and self.kind in ("auto", kind)]
        if not found:
            known = ", ".join(sorted(SUFFIXES[self.kind] if self.kind != "auto" else set.union(*SUFFIXES.values())))
            raise ValueError(f"{source} has no files that end in {known}")
        if len(found) > 1:
            raise ValueError(
                f"{source} has {' and '.join(f'{counts[k]} {k}' for k in found)} files: say kind={found[0]} or kind={found[1]}"
            )
        return found[0]

    @staticmethod
    def _is_class(parts: tuple[str, ...]) -> bool:
        return len(parts) == (2 if parts[0] in SPLITS else 1)

    @staticmethod
    def _row(path: Path, source: Path, out: Path, kind: str) -> dict[str, Any]:
        *folders, _ = path.relative_to(source).parts
        split = SPLITS.get(folders[0]) if folders else None
        classes = folders[1:] if split else folders
        if not classes:
            raise ValueError(f"{path} lies in no class folder: put it into one, such as {path.parent / 'some-class' / path.name}")
        media = path.read_text(encoding="utf-8") if kind == "text" else str(path.resolve())
        if kind != "text" and path.resolve().is_relative_to(out.resolve()):
            media = str(path.resolve().relative_to(out.resolve()))
        return {"id": str(path.relative_to(source)), "split": split, kind: media, "label": classes[0]}
