"""Separately trained models that answer together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch
from accelerate import Accelerator

from mmkt import distributed
from mmkt.evaluate import Evaluation, evaluate_model, revived, write_figures
from mmkt.experiment import Experiment
from mmkt.model import build_fusion
from mmkt.parts import ConfigError, Parts
from mmkt.predictions import judges
from mmkt.score import About, score
from mmkt.types import Head, Predictions, Row


class Member(NamedTuple):
    """One model's answers; of the model itself nothing stays in memory."""

    path: str
    reads: tuple[str, ...]  # the modalities that its answers depend on
    predictions: Predictions


def ensemble(
    paths: Sequence[str], overrides: Sequence[str] = (), *, plugins: Sequence[str] = (), out: str = "checkpoints/ensemble"
) -> tuple[list[Row], Path]:
    """Figures of the mean of several models' answers (deep ensembles, Lakshminarayanan et al., 2017) on the same rows.

    Probabilities are averaged, numbers are. In a row a model counts that has one of the modalities it reads; where none
    has, all count. So models of one modality each are the ensemble that a fusion has to beat.

    Args:
        paths: two checkpoints or more, folders or Hub ids, of the same tasks and classes.
        overrides: of ``data`` and ``evaluate``, for all of them.
        plugins: folders or packages that their parts may come from.
        out: a folder; each model's own figures go to a folder in it, by its place and run: ``1-text``.

    Returns:
        The figures, and the folder with them and the predictions: ``OUT/ensemble``.

    Raises:
        ConfigError: there are too few, or they don't answer the same tasks on the same rows.
    """
    if len(paths) < 2:
        raise ConfigError(f"an ensemble takes two checkpoints or more, found {len(paths)}")
    accelerator, parts, members = Accelerator(), Parts(plugins), []
    for place, path in enumerate(paths, 1):
        model, config = revived(path, overrides, parts, accelerator, ("data", "evaluate"))
        for head in model.heads.values():
            head.vocabulary.pop("calibration", None)  # of one model's probabilities; the mean's are others
        found = evaluate_model(model, config, Path(out) / f"{place}-{Path(config.run).name}", parts, accelerator)
        members.append(Member(path, model.fusion.reads or model.modalities, found.predictions))
        _refuse_other(members[0], members[-1])
    # heads and settings are those of the last, which answers the same tasks
    predictions = _together(members, model.heads)
    folder = Path(out) / "ensemble"
    modalities = sorted({m for member in members for m in member.reads})
    about = About(Path(out).name, "", config.seed, config.evaluate.split, "+".join(modalities))
    rows = score(predictions, judges(model, config.evaluate.metrics, parts), about=about, resamples=config.evaluate.resamples)
    if distributed.rank() == 0:
        write_figures(folder, Evaluation(rows, predictions))
    distributed.wait()
    return rows, folder


def averaged(answers: Sequence[Predictions], configs: Sequence[Experiment]) -> Predictions:
    """Several models' answers to the same rows as those of their ensemble.

    Args:
        answers: a model's each.
        configs: of their runs; the last one's heads average.

    Raises:
        ConfigError: they don't answer the same tasks on the same rows.
    """
    members: list[Member] = []
    for config, one in zip(configs, answers):
        parts, modalities = Parts(config.plugins), tuple(config.model.encoders)
        heads = {t: parts.build("heads", s, config.model.dim, one.vocabularies[t]) for t, s in config.model.heads.items()}
        fusion = build_fusion(parts, config.model.fusion, config.model.dim, modalities, heads)
        members.append(Member(config.run, fusion.reads or modalities, one))
        _refuse_other(members[0], members[-1])
    return _together(members, heads)


def _refuse_other(one: Member, two: Member) -> None:
    same: dict[str, list[Any]] = {
        "tasks": [dict(m.predictions.tasks) for m in (one, two)],
        "classes": [{task: _meaning(m.predictions.vocabularies[task]) for task in m.predictions.tasks} for m in (one, two)],
        "rows": [m.predictions.table["id"].to_pylist() for m in (one, two)],
    }
    for what, (first, second) in same.items():
        if first != second:
            raise ConfigError(f"{one.path} and {two.path} have other {what}: an ensemble's members answer the same questions")


def _meaning(vocabulary: Mapping[str, Any]) -> dict[str, Any]:
    """Classes and units, without how often each occurred in training."""
    return {name: value for name, value in vocabulary.items() if name not in ("counts", "rows")}


def _together(members: Sequence[Member], heads: Mapping[str, Head]) -> Predictions:
    """The first model's table with the averaged answers in it."""
    first = members[0]
    table = first.predictions.table
    knows = np.array(
        [np.any([np.asarray(m.predictions.table[f"has.{x}"]) for x in m.reads], axis=0) for m in members]
    )  # (N, rows)
    knows |= ~knows.any(axis=0)
    weights = torch.from_numpy(knows / knows.sum(axis=0))
    columns = {name: table[name] for name in table.column_names if not name.startswith("has.")}
    for member in members:
        columns |= {
            name: member.predictions.table[name] for name in member.predictions.table.column_names if name.startswith("has.")
        }
    for task, head in heads.items():
        every = [np.stack(m.predictions.table[f"{task}.logits"].to_numpy(zero_copy_only=False)) for m in members]
        logits = head.average(torch.from_numpy(np.stack(every)).double(), weights).float()  # (rows, outputs)
        columns |= {f"{task}.{name}": values for name, values in head.decode(logits).items()}
        columns[f"{task}.logits"] = pa.array(list(logits.numpy()), pa.list_(pa.float32()))
    return first.predictions._replace(table=pa.table(columns))
