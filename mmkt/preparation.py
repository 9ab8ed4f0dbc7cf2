"""The manifest of an experiment, with every row in a split, and what is learned from it before a model is built."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmkt import distributed
from mmkt.checkpoint import read_json, write_json
from mmkt.config import plain
from mmkt.data import manifest as manifests
from mmkt.data import splits
from mmkt.data.columns import codes
from mmkt.data.manifest import Manifest
from mmkt.experiment import Data, Experiment
from mmkt.model import learners
from mmkt.parts import ConfigError, Parts, settings


def prepare(spec: Mapping[str, Any], out: Path, origin: Path | None, parts: Parts) -> Path:
    """Make a source's manifest in ``out``, and note beside it what it was made from. Returns its path."""
    path = parts.build("data/sources", spec).prepare(out, origin)
    write_json(out / "source.json", dict(spec))
    return path


def open_manifest(data: Data, seed: int, parts: Parts) -> Manifest:
    """The manifest of a config, made from its source where it does not exist yet, with every row in a split.

    Raises:
        ManifestError: it can't be used, or was made from the source with other settings than the config's.
    """
    path = Path(data.manifest)
    if data.source is not None:
        if not path.exists() and distributed.rank() == 0:
            distributed.say(f"making {path} ({data.source['name']})")
            made = prepare(data.source, path.parent, Path(data.origin) if data.origin else None, parts)
            if made != path:
                raise ConfigError([("data.manifest", f"the source {data.source['name']} makes {made}, found {path}")])
        distributed.wait()
        note = path.parent / "source.json"
        now = json.loads(json.dumps(data.source))  # as it was noted: a tuple is a list there
        made_by: Any = parts.find("data/sources", data.source["name"])
        usual = {key: plain(default) for key, (_, default) in settings(made_by).items()}
        before = usual | read_json(note) if note.is_file() else now  # settings that it did not have then are as usual
        if before != now:
            other = [f"{key}={before.get(key)!r}" for key in now if before.get(key) != now[key]]
            raise ConfigError(
                [("data.source", f"{path} was made with {', '.join(other)}: delete {path.parent}, or name another data.manifest")]
            )
    manifest = manifests.read(path)
    if data.fold is not None:
        names = data.train, data.validation, data.test
        folds = splits.folds_of(manifest, data.fold.by, data.fold.k, seed)
        manifest = splits.assign_fold(manifest, folds, data.fold.test, names, data.fold.validation, seed)
    elif manifest.table["split"].null_count == len(manifest.table):
        manifest = splits.assign_splits(manifest, data.fractions, seed)
    if data.subset is not None and data.subset.share < 1:
        manifest = splits.assign_subset(manifest, data.train, data.subset.share, data.subset.by, seed)
    return manifest


def learn_vocabularies(config: Experiment, manifest: Manifest, parts: Parts) -> dict[str, Any]:
    """What heads learn from the training split's labels, by task, and encoders from its cells, by ``encoders.MODALITY``."""
    rows = splits.rows_of(manifest, config.data.train)
    found = {}
    for m, encoder in learners(config, parts).items():
        column = manifests.column_of(manifest, config.data.columns.get(m, m))
        try:
            found[f"encoders.{m}"] = encoder.learn(column.take(rows), config.model.encoders[m])
        except ValueError as error:
            raise ConfigError([(f"model.encoders.{m}", str(error))]) from error
    for task, spec in config.model.heads.items():
        column = config.data.labels.get(task, task)
        distinct, place = codes(manifests.column_of(manifest, column))
        known = distinct.to_pylist()
        values = [known[k] for k in place[rows] if k >= 0]  # an object a value, not a row
        try:
            if not values:
                raise ValueError(f"no row of the training split has a label in the column {column!r}")
            found[task] = parts.find("heads", spec["name"]).learn(values)  # type: ignore[attr-defined]
        except ValueError as error:
            raise ConfigError([(f"model.heads.{task}", str(error))]) from error
    return found
