"""Classes by their names: what a prompt file says, as vectors of the shared space."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from mmkt import distributed
from mmkt.config import load
from mmkt.data.collate import Collate, Cuts
from mmkt.data.columns import some, spelled
from mmkt.data.rows import Rows
from mmkt.model import Model
from mmkt.parts import ConfigError

EXAMPLE = 'en: {templates: ["a photo of {}"], classes: {cat: cat, dog: [dog, puppy]}}'
WHERE = "evaluate.prompts"
BATCH = 128  # texts encoded at once


class Prompts(NamedTuple):
    """Of one language."""

    templates: list[str]  # each with {}, where a name goes
    names: dict[str, list[str]]  # of every class, by the value of the label column as text

    def texts(self, name: str) -> list[str]:
        """Every name in every template."""
        return [template.replace("{}", alias) for alias in self.names[name] for template in self.templates]


def read(path: str) -> dict[str, Prompts]:
    """A prompt file (YAML or JSON) by language: ``templates`` (by default the bare name) and ``classes``, each with its names.

    Raises:
        ConfigError: there is no such file, or it does not look so; every mistake at once.
    """
    if not Path(path).is_file():
        raise ConfigError([(WHERE, f"there is no file {path}; it says by language how classes are called: {EXAMPLE}")])
    found, problems = {}, []
    for language, block in load(path).items():
        where = f"{path}: {language}"
        known = isinstance(block, Mapping) and isinstance(block.get("classes"), Mapping) and block["classes"]
        if not known or set(block) - {"templates", "classes"}:
            problems.append((where, f"should hold templates and classes, as in {EXAMPLE}, found {str(block)[:80]}"))
            continue
        templates = block.get("templates", ["{}"])
        bad = templates if not isinstance(templates, list) else [t for t in templates if not (isinstance(t, str) and "{}" in t)]
        if bad or not templates:
            problems.append((f"{where}.templates", f"is a list of texts with {{}} where the name goes, found {str(bad)[:80]}"))
            continue
        keys = [spelled(key) for key in block["classes"]]
        if len(set(keys)) < len(keys):
            twice = next(key for key in keys if keys.count(key) > 1)
            problems.append((f"{where}.classes", f"{twice!r} is there twice, as a number and as a text: name it once"))
            continue
        names = {key: x if isinstance(x, list) else [x] for key, x in zip(keys, block["classes"].values())}
        empty = [key for key, value in names.items() if not value or not all(isinstance(x, str) and x.strip() for x in value)]
        if empty:
            words = f"is a name or a list of names, in quotes where it is a number, found {str(names[empty[0]])[:80]}"
            problems.append((f"{where}.classes.{empty[0]}", words))
            continue
        found[str(language)] = Prompts(templates, names)
    if problems:
        raise ConfigError(problems)
    if not found:
        raise ConfigError([(WHERE, f"{path} holds no language, as in {EXAMPLE}")])
    return found


def refuse_missing(prompts: Mapping[str, Prompts], classes: Collection[str], path: str, column: str) -> None:
    """Refuse a prompt file in which a language lacks a class that rows have.

    Raises:
        ConfigError: with every language that does.
    """
    problems = []
    for language, named in prompts.items():
        lacking = sorted(set(classes) - set(named.names))
        if lacking:
            words = f"lacks {len(lacking)} of the {len(classes)} classes of {column!r}: {some(lacking)}; name them"
            words += " (in quotes where numbers begin with 0)" if any(name.startswith("0") for name in lacking) else ""
            problems.append((f"{path}: {language}.classes", words))
    if problems:
        raise ConfigError(problems)


def text_modality(model: Model) -> str:
    """The modality that reads names.

    Raises:
        ConfigError: there is none, or several.
    """
    found = [m for m, encoder in model.encoders.items() if encoder.kind == "text"]
    if len(found) != 1 or len(model.modalities) < 2:
        words = f"takes one modality of text and another one; the model has {', '.join(model.modalities)}"
        raise ConfigError([(WHERE, f"{words} ({len(found)} of text): leave it out")])
    return found[0]


def class_vectors(
    model: Model,
    prompts: Prompts,
    *,
    device: torch.device | str = "cpu",
    autocast: Callable[[], AbstractContextManager] = nullcontext,
) -> Tensor:
    """Every class as one vector of length 1 (C, D): the mean of its texts' (prompt ensembling, CLIP, Radford et al., 2021)."""
    counts = [len(prompts.texts(name)) for name in prompts.names]
    texts = [text for name in prompts.names for text in prompts.texts(name)]
    vectors = F.normalize(_vectors(model, text_modality(model), texts, device, autocast), dim=1)
    return F.normalize(torch.stack([part.mean(0) for part in vectors.split(counts)]), dim=1)


def _vectors(model: Model, m: str, texts: list[str], device: Any, autocast: Callable[[], AbstractContextManager]) -> Tensor:
    """Texts in the shared space, (n, D) float32 on the CPU."""
    processors = {name: encoder.processor() for name, encoder in model.encoders.items()}
    rows = Rows(None, {name: name for name in model.modalities}, processors, seed=0, train=False)
    none, training, found, cuts = torch.full((len(texts),), -1), model.training, [], Cuts()
    collate = Collate(model.modalities, processors, {}, none, none)
    model.eval()
    try:
        with torch.inference_mode(), autocast():
            for start in range(0, len(texts), BATCH):
                items = [rows.item({m: text}, k) for k, text in enumerate(texts[start : start + BATCH], start)]
                batch = collate(items)
                cuts.note(batch)
                encoded = model.encode(batch.to(device), [m])
                found.append(model.space(encoded, len(items))[m].pooled.float().cpu())
    finally:
        model.train(training)
    for line in cuts.lines():
        distributed.say(f"names, {line}")
    return torch.cat(found)
