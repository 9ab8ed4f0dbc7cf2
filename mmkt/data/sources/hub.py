"""Data sets of the Hugging Face Hub, through its datasets library (the extra ``hub``)."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any

import pyarrow as pa
from pydantic import Field
from rich.console import Console
from rich.progress import track

from mmkt.data.features import Read, flat
from mmkt.data.manifest import RESERVED
from mmkt.data.parquet import write
from mmkt.types import Source

SPLITS = {"training": "train", "dev": "validation", "val": "validation", "valid": "validation", "testing": "test"}
ROWS = 64  # read at a time
PACKED = ("zip://", "tar://", "gzip://")  # how the library writes a member: zip://cat/1.png::hf://datasets/…


class Hub(Source):
    """A data set of the Hugging Face Hub, or a folder as its library reads one: Parquet, CSV, JSONL, pictures, sounds.

    Pictures and sounds stay the bytes that they are, and no torchcodec is needed; classes get their names and dicts
    become columns (``translation.en``). An ``id`` that is another in every row is kept; otherwise ids are made
    (``train-0``) and the set's own is ``source_id``. Splits that the set calls val, dev and the like are named as mmkt
    does, others keep their names. A set of one split comes without, so that ``data.fractions`` makes them, unless it has
    a column ``split``. No program of a data set is run: a set that is one is refused.
    """

    def __init__(
        self,
        *,
        dataset: str,
        config: str | None = None,
        revision: str | None = None,
        splits: dict[str, str] | None = None,
        columns: dict[str, str] | None = None,
        streaming: bool = False,
        rows: Annotated[int, Field(ge=1)] | None = None,
    ):
        """Remember the settings.

        Args:
            dataset: its id on the Hub (``owner/name``), or a folder.
            config: which of its configurations.
            revision: a branch, tag or commit; by default the newest.
            splits: name here → the set's, for those to take; the library's slices too, but not in streaming:
                ``{train: "train[:90%]", validation: "train[90%:]", test: test}``.
            columns: name here → the set's, for those to take.
            streaming: read from the network, without first keeping the whole set on this machine.
            rows: take the first of each split, this many.
        """
        self.dataset, self.config, self.revision = dataset, config, revision
        self.splits, self.columns, self.streaming, self.rows = splits, columns, streaming, rows

    def prepare(self, out: Path, source: Path | None) -> Path:
        """One Parquet file with all media inside: id, split, and the set's own columns.

        Raises:
            ValueError: the library is not installed, or the set, or something in it, cannot be had.
        """
        if source is not None:
            raise ValueError(f"hub reads no --from (data.origin): name the folder as dataset={source}")
        library = _library()
        out.mkdir(parents=True, exist_ok=True)
        try:
            with _sounds_as_they_are(library):
                write(self._tables(library), out / "manifest.parquet")
        except Exception as error:  # the library's, Arrow's, the network's: they have no type in common
            raise ValueError(f"{self.dataset}: {_words(error)}") from error
        return out / "manifest.parquet"

    def _tables(self, library: Any) -> Iterator[tuple[str, pa.Table]]:
        """A few rows at a time, with the name of their split."""
        found, read = self._splits(library), _reader(self.dataset)
        lone = self.splits is None and len(found) == 1
        for split, rows in found.items():
            features = rows.features
            known = len(rows) if hasattr(rows, "__len__") else self.rows
            batches = track(
                _batches(rows, library),
                f"reading {split}",
                total=known and -(-known // ROWS),
                console=Console(stderr=True),
                transient=True,
            )
            for table in batches:
                # JSON and CSV files say no types beforehand when they are streamed
                features = features or library.Features.from_arrow_schema(table.schema)
                yield split, pa.table(_meant(self._taken(table, features, read), None if lone else split))

    def _splits(self, library: Any) -> dict[str, Any]:
        """By name here, what the library calls a Dataset, or streaming an IterableDataset."""
        builder = library.load_dataset_builder(self.dataset, self.config, revision=self.revision)
        if not self.streaming:
            builder.download_and_prepare()
        make = builder.as_streaming_dataset if self.streaming else builder.as_dataset
        if self.splits is None:
            every = make()
            found = {SPLITS.get(name, name): rows for name, rows in every.items()}
            if len(found) < len(every):
                raise ValueError(f"two of its splits ({', '.join(every)}) would be one here: say in splits which to take")
        else:
            found = {ours: make(split=theirs) for ours, theirs in self.splits.items()}
        if self.rows is None:
            return found
        return {name: rows.take(self.rows if self.streaming else min(self.rows, len(rows))) for name, rows in found.items()}

    def _taken(self, table: pa.Table, features: Mapping[str, Any], read: Read) -> dict[str, pa.Array]:
        """The columns that are taken, by their names here."""
        if self.columns is None:
            return flat(table, features, read)
        wanted = set(self.columns.values())
        used = {n: f for n, f in features.items() if any(w == n or w.startswith(f"{n}.") for w in wanted)}
        found = flat(table, used, read)
        if missing := sorted(wanted - found.keys()):
            near = get_close_matches(missing[0], [*features, *found], 1)
            hint = f" (did you mean {near[0]!r}?)" if near else ""
            raise ValueError(f"it has no column {missing[0]!r}{hint}: it has {', '.join(features)}")
        return {ours: found[theirs] for ours, theirs in self.columns.items()}


def _batches(rows: Any, library: Any) -> Iterator[pa.Table]:
    """Rows as they are stored; nothing is decoded."""
    if isinstance(rows, library.Dataset) or rows.features is None:
        yield from rows.with_format("arrow").iter(ROWS)
    else:
        # through Python: in Arrow, a stream of a tar file fails at its last row, whose columns come in another order
        for batch in rows.decode(False).iter(ROWS):
            yield pa.table(dict(batch), schema=rows.features.arrow_schema)


def _library() -> Any:
    try:
        import datasets
    except ImportError:
        raise ValueError("the source hub needs the package datasets: pip install 'mmkt[hub]'") from None
    return datasets


@contextmanager
def _sounds_as_they_are(library: Any) -> Iterator[None]:
    """The library would ask for torchcodec even where it only stores a sound's file or bytes."""

    def store(_: Any, value: Any) -> dict[str, Any]:
        if isinstance(value, dict) and {"bytes", "path"} & value.keys():
            return {"bytes": value.get("bytes"), "path": value.get("path")}
        if not isinstance(value, str | bytes):
            raise ValueError(f"a sound is a file or its bytes, not {type(value).__name__} {str(value)[:40]!r}")
        return {"bytes": value, "path": None} if isinstance(value, bytes) else {"bytes": None, "path": value}

    before = library.Audio.encode_example
    library.Audio.encode_example = store
    try:
        yield
    finally:
        library.Audio.encode_example = before


def _reader(dataset: str) -> Read:
    """Reads a file that a cell names, if it is one of the set's: a stranger's table may name any file of this machine."""
    from datasets import config
    from datasets.utils.file_utils import xopen
    from huggingface_hub import constants

    caches = config.HF_DATASETS_CACHE, config.DOWNLOADED_DATASETS_PATH, config.EXTRACTED_DATASETS_PATH, constants.HF_HUB_CACHE
    homes = [os.path.abspath(home) for home in (dataset, *caches)]  # noqa: PTH100

    def read(path: str) -> bytes:
        *members, file = path.split("::")
        if "://" not in file:
            file = os.path.abspath(Path(dataset, file))  # noqa: PTH100 (takes '..' away, and follows no link)
        mine = file.startswith("hf://") or any(Path(file).is_relative_to(home) for home in homes)
        if not mine or not all(member.startswith(PACKED) for member in members):
            raise ValueError(f"a cell names {path}, which is no file of the data set")
        with xopen("::".join([*members, file]), "rb") as stream:
            return stream.read()

    return read


def _meant(columns: Mapping[str, pa.Array], split: str | None) -> dict[str, pa.Array]:
    """With ``split``; what has the name of a manifest's own column and cannot be one is ``source_…``."""
    found = {}
    for name, array in columns.items():
        text = pa.types.is_string(array.type) or pa.types.is_large_string(array.type)
        fits = text and split is None if name == "split" else text or pa.types.is_integer(array.type)
        if not fits and name in RESERVED:
            name = f"source_{name}"
            if name in columns:
                raise ValueError(f"it has a column {name} already, which its {name[7:]} would be: choose columns")
        found[name] = array
    if "id" in found:
        found["id"] = found["id"].cast(pa.string())
    if split is not None:
        found["split"] = pa.repeat(split, len(next(iter(columns.values()))))
    elif "split" in found:
        found["split"] = pa.array([SPLITS.get(name, name) for name in found["split"].to_pylist()], pa.string())
    return found


def _words(error: Exception) -> str:
    """What went wrong, and what to type."""
    kind, words = type(error).__name__, str(error).split("\nExample of usage")[0].rstrip(".")
    if isinstance(error, ConnectionError):
        why = "HF_HUB_OFFLINE is set: unset it" if "Offline" in words else "try again with a connection"
        return f"{words}, and there is no folder of that name. {why}, or name a folder as dataset=FOLDER"
    if kind == "DatasetNotFoundError":
        login = "a private or gated set takes 'hf auth login' (or the variable HF_TOKEN), and its terms accepted on its page"
        return f"{words}. Check the spelling of dataset and revision; {login}"
    if "scripts are no longer supported" in words:
        return f"{words}: mmkt runs no program of a data set. The Hub may have a copy: revision=refs/convert/parquet"
    if words.startswith("Config name is missing"):
        return f"{words}\nwith config=NAME"
    if kind in ("EmptyDatasetError", "DataFilesNotFoundError"):
        return f"{words} that the library reads (Parquet, CSV, JSONL, text, pictures, sounds …)"
    if kind.startswith("DatasetGeneration") and error.__cause__ is not None:
        return f"{words}: {error.__cause__}"
    return words if isinstance(error, ValueError) else f"{kind}: {words}"
