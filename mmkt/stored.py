"""Predictions on disk, and back."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mmkt.checkpoint import read_json, settle
from mmkt.parts import ConfigError
from mmkt.types import Predictions

FILE, CORRUPTED, KEY = "predictions.parquet", "corrupted.parquet", "mmkt"


def save(predictions: Predictions, folder: Path, name: str = FILE) -> None:
    """``predictions.parquet``, whose metadata say what its columns mean."""
    meaning = {"tasks": predictions.tasks, "vocabularies": predictions.vocabularies}
    table = predictions.table
    table = table.replace_schema_metadata({**(table.schema.metadata or {}), KEY: json.dumps(meaning)})
    pq.write_table(table, folder / name)


def together(worse: Mapping[str, Predictions]) -> Predictions:
    """The same rows under several conditions as one table, with the column ``condition``."""
    parts = []
    for condition, some in worse.items():
        names = ["row", *(x for x in some.table.column_names if x.partition(".")[0] in some.tasks)]
        column = pa.DictionaryArray.from_arrays(pa.array([0] * len(some.table), pa.int32()), [condition])
        parts.append(some.table.select(names).add_column(0, "condition", column))
    return next(iter(worse.values()))._replace(table=pa.concat_tables(parts, promote_options="permissive").unify_dictionaries())


def folder_of(path: Path, split: str) -> Path:
    """An evaluation's folder.

    Args:
        path: a run, a checkpoint or an evaluation's folder.
        split: of the evaluation, where it is a run or a checkpoint.

    Raises:
        ConfigError: there is none.
    """
    best = settle(path / "best")
    places = [path, path / f"evaluation-{split}", best / f"evaluation-{split}"]
    folder = next((place for place in places if (place / FILE).is_file()), None)
    if folder is None:
        others = sorted({file.parent.name for home in (path, best) for file in home.glob(f"evaluation-*/{FILE}")})
        known = ", ".join(other.removeprefix("evaluation-") for other in others)
        make = f"mmkt evaluate {best if best.is_dir() else path} evaluate.split={split} makes one"
        raise ConfigError(f"{path} has no evaluation on {split}: {f'it has one on {known}; ' if known else ''}{make}")
    return folder


def load(path: Path, split: str, name: str = FILE) -> Predictions:
    """An evaluation's predictions (see ``folder_of``)."""
    folder = folder_of(path, split)
    table = pq.read_table(folder / name)
    about = (table.schema.metadata or {}).get(KEY.encode())
    if about is not None:
        facts = json.loads(about)
        return Predictions(table, facts["tasks"], facts["vocabularies"])
    try:  # written before predictions said it themselves
        config, vocabularies = read_json(folder.parent / "config.json"), read_json(folder.parent / "vocabularies.json")
    except ValueError:
        raise ConfigError(f"{folder} does not say what its predictions mean: evaluate the checkpoint again") from None
    return Predictions(table, {task: head["name"] for task, head in config["model"]["heads"].items()}, vocabularies)


def load_corrupted(path: Path, split: str) -> dict[str, Predictions]:
    """By condition, an evaluation's predictions under corruption; {} where it has none."""
    if not (folder_of(path, split) / CORRUPTED).is_file():
        return {}
    every = load(path, split, CORRUPTED)
    names = pc.unique(every.table["condition"]).to_pylist()
    return {name: every._replace(table=every.table.filter(pc.equal(every.table["condition"], name))) for name in names}
