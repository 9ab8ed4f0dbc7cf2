"""Where a study's frozen encoders come from: the experiment, a checkpoint, or a training of each modality by itself."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmkt import checkpoint, launch
from mmkt.config import read, written
from mmkt.experiment import Experiment
from mmkt.model import Model
from mmkt.parts import ConfigError, Parts
from mmkt.planning import steps_of
from mmkt.studies.runs import Training, figure
from mmkt.study import Ablation as File

ORIGIN = "origin.json"


def encoders_of(study: File, data: str) -> Path:
    """The folder of a data set's encoders, which ``model.start`` takes them from."""
    return Path(study.run) / "encoders" / (data or "experiment")


def origin(study: File, data: str) -> dict[str, str]:
    """Where a data set's encoders came from, by modality a sentence; nothing before they are made."""
    file = encoders_of(study, data) / ORIGIN
    return checkpoint.read_json(file) if file.is_file() else {}


def prepare(study: File, data: str, run: Callable[[Sequence[tuple[Any, Training]]], None]) -> dict[str, str]:
    """Make the folder of a data set's encoders, unless it is there: they are then the same in every run.

    Args:
        study: its ``encoders`` says where they come from.
        data: the data set's name, or "".
        run: carries trainings out.

    Returns:
        What is known of them, for the report: by modality a sentence.
    """
    folder = encoders_of(study, data)
    if known := origin(study, data):
        return known
    tensors: dict[str, Tensor] = {}
    vocabularies: Mapping[str, Any] = {}
    words = {"": "trained in every run"}
    if study.encoders not in ("trained", "as-is", "alone"):
        model = Model.from_pretrained(study.encoders, _experiment(study, data).plugins)
        tensors, vocabularies = _encoders(model), model.vocabularies
        words = {"": f"those of {study.encoders}, fusion {model.config.model.fusion['name'] if model.config else '?'}"}
    elif study.encoders != "trained":
        with torch.random.fork_rng(devices=[]):
            model = launch.build(_experiment(study, data)).learner.model
        tensors, vocabularies, words = _encoders(model), model.vocabularies, {"": "as the experiment builds them"}
        if study.encoders == "alone":
            alone, words = _alone(study, data, run)
            tensors |= alone
    with checkpoint.atomic(folder) as new:
        if tensors:
            checkpoint.write_tensors(new / "model.safetensors", tensors)
            checkpoint.write_json(new / "vocabularies.json", dict(vocabularies))
        checkpoint.write_json(new / ORIGIN, words)
    return words


def without(experiment: str, settings: Sequence[str], kept: Collection[str]) -> list[str]:
    """Settings that leave out all modalities but some; none for no modalities.

    Args:
        experiment: the file.
        settings: ``key=value`` of it.
        kept: modalities.

    Raises:
        ConfigError: there is no such modality, or one borrows the body of one that is left out.
    """
    if not kept:
        return []
    config = read(Experiment, experiment, settings)
    encoders = config.model.encoders
    unknown = [m for m in kept if m not in encoders]
    if unknown:
        raise ConfigError([("modalities", f"there is no {unknown[0]!r}; allowed: {', '.join(encoders)}")])
    gone = [m for m in encoders if m not in kept]
    for m in kept:
        if encoders[m].get("body") in gone:
            words = f"{m} borrows the body of {encoders[m]['body']}, so it cannot be without it: use both, or a body of its own"
            raise ConfigError([("modalities", words)])
    found = [f"model.encoders.{m}=null" for m in gone]
    held: dict[str, Mapping] = {
        "data.columns": config.data.columns,
        "data.dropout": config.data.dropout,
        "model.adapters": config.model.adapters,
    }
    found += [f"{place}.{m}=null" for place, some in held.items() for m in gone if m in some]
    left = [m for m in config.data.one_of if m not in gone]
    return found + ([f"data.one_of={json.dumps(left)}"] if left != config.data.one_of else [])


def _experiment(study: File, data: str) -> Experiment:
    return read(Experiment, study.experiment, [*study.settings, *study.data.get(data, []), *study.alone])


def _encoders(model: Model) -> dict[str, Tensor]:
    return {name: x for name, x in model.state_dict().items() if name.startswith("encoders.")}


def _alone(study: File, data: str, run: Callable) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Every modality trained by itself; one whose encoder does not train in the experiment stays as it is."""
    whole = _experiment(study, data)
    trainings, words = {}, {}
    for m in whole.model.encoders:
        training = _training(study, data, m, whole)
        if _trains(training.config(), m):
            trainings[m] = training
        else:
            words[m] = "as the experiment builds it, which does not train it"
    run(list(trainings.items()))
    tensors: dict[str, Tensor] = {}
    for m, training in trainings.items():
        config = training.config()
        task = next(iter(config.model.heads))
        head: Any = Parts(config.plugins).find("heads", config.model.heads[task]["name"])
        if (Path(config.run) / "failed.json").is_file():
            why = checkpoint.read_json(Path(config.run) / "failed.json")["why"]
            raise ConfigError([("encoders", f"the training of {m} by itself failed: {why}. Set alone, delete {config.run}")])
        every = checkpoint.read_tensors(checkpoint.settle(Path(config.run) / "best") / "model.safetensors")
        tensors |= {name: x for name, x in every.items() if name.startswith(f"encoders.{m}.")}
        value = figure(Path(config.run), config.evaluate.split, task, head.metrics[0])
        budget = f"{config.train.epochs:g} epochs" if config.train.epochs else f"{config.train.steps} steps"
        words[m] = f"trained by itself on {task} ({head.metrics[0]} {value:.3f} on {config.evaluate.split}), {budget}"
    return tensors, words


def _training(study: File, data: str, m: str, whole: Experiment) -> Training:
    settings = [*study.settings, *study.data.get(data, []), *study.alone]
    settings += without(study.experiment, settings, [m])
    patterns = [pattern for pattern in whole.transfer.get("frozen") or [] if _names(pattern, m)]
    if patterns != whole.transfer.get("frozen", []):
        settings.append(f"transfer.frozen={json.dumps(patterns)}")
    name = f"alone-{data + '-' if data else ''}{m}"
    own = ["data.features=null", "model.fusion=unimodal", "trackers=[]", "evaluate.resamples=0"]
    return Training(study.experiment, (*settings, *own, f"run={written(str(Path(study.run) / name))}"))


def _names(pattern: str, m: str) -> bool:
    """Whether a pattern of parameters can name something where m is the only modality."""
    room, _, rest = pattern.partition(".")
    return room != "encoders" or rest.partition(".")[0] in (m, "*")


def _trains(config: Experiment, m: str) -> bool:
    """Whether some phase trains an encoder's own parameters."""
    with torch.random.fork_rng(devices=[]):
        setup = launch.build(config)
    plan = setup.parts.build("transfer", config.transfer).phases(setup.learner, steps_of(config.train, setup.feed))
    return any(name.startswith(f"encoders.{m}.") for phase in plan for name in setup.learner.trained_in(phase))
