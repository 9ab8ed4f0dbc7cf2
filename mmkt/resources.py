"""What objectives ask for before training: a teacher's answers, another manifest's texts."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from accelerate import PartialState

from mmkt import distributed
from mmkt.data import manifest as manifests
from mmkt.data.manifest import Manifest
from mmkt.experiment import Experiment
from mmkt.feed import Feed
from mmkt.model import Model
from mmkt.predictions import predict
from mmkt.types import Answers


def answers(path: str, *, config: Experiment, manifest: Manifest, rows: np.ndarray) -> Answers:
    """A checkpoint's answers for some rows, from its own columns through its own processors, without augmentation.

    Args:
        path: of the checkpoint, a folder or a Hub id.
        config: of the experiment that asks; plugins, batch size and limits are its.
        manifest: its rows, which need the columns of the checkpoint's modalities.
        rows: which of them, ascending.

    Raises:
        ValueError: it can't be loaded, or no row has a column of it.
    """
    model = Model.from_pretrained(path, config.plugins)
    assert model.config is not None
    columns = {m: model.config.data.columns.get(m, m) for m in model.modalities}
    named = {name for column in columns.values() for name in ([column] if isinstance(column, str) else column)}
    if named.isdisjoint(manifest.table.column_names):
        raise ValueError(f"the checkpoint {path} reads {', '.join(sorted(named))}, of which the manifest has none: add a column")
    distributed.say(f"asking {path} about {len(rows):,} rows")
    device = PartialState().device
    data = config.data.model_copy(update={"columns": columns, "dropout": {}, "one_of": []})
    feed = Feed(manifest, model.to(device), data, config.seed, labelled=np.empty(0, dtype=np.int64))
    table = predict(model, feed, rows, device=device, vectors=True).table

    def matrix(name: str) -> torch.Tensor:
        column = table[name].combine_chunks()
        return torch.from_numpy(column.flatten().to_numpy().reshape(len(column), -1).copy())

    logits = {task: matrix(f"{task}.logits") for task in model.heads}
    return Answers(torch.from_numpy(table["row"].to_numpy().copy()), logits, matrix("vector.fused"), model.vocabularies)


def column(path: str, name: str) -> list[Any]:
    """A manifest's column.

    Raises:
        ValueError: there is no such manifest or column.
    """
    return manifests.column_of(manifests.read(path), name).to_pylist()
