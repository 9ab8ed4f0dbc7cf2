"""One modality's inputs in a batch: which rows they are of, what of them may move, how others take their place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mmkt.parts import ConfigError, nearest
from mmkt.threat import Threat
from mmkt.types import Batch, Encoded, Encoder, Moves

if TYPE_CHECKING:
    from mmkt.model import Model

RAW = {"image": "pixels", "audio": "waveform", "text": "input_ids", "features": "vectors"}  # an encoder's kind → its raw numbers


def owners(items: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The row that each of N items is of, and which of the row's items it is, (N,) each; ``items`` (B, K) as in a batch."""
    there = items >= 0
    row, nth = (torch.zeros(count, dtype=torch.long, device=items.device) for _ in range(2))
    row[items[there]] = torch.arange(len(items), device=items.device)[:, None].expand_as(items)[there]
    nth[items[there]] = torch.arange(items.shape[1], device=items.device).expand_as(items)[there]
    return row, nth


def free(kind: str, inputs: Mapping[str, Tensor]) -> Tensor | None:
    """What of an item may move: not what it is padded with."""
    if kind == "audio":
        raw, lengths = inputs["waveform"], inputs["lengths"]
        return torch.arange(raw.shape[-1], device=raw.device) < lengths[..., None]
    if kind == "text":
        return inputs["attention_mask"].bool()[..., None]
    return inputs["mask"][..., None] if kind == "features" else None


def replaced(encoder: Encoder, inputs: Mapping[str, Tensor], x: Tensor | Sequence[str]) -> dict[str, Tensor]:
    """Inputs with other raw numbers, other token ids (of the same texts' lengths), or other texts, tokenised anew."""
    own = dict(inputs)
    if not isinstance(x, Tensor):
        processor = encoder.processor()
        found = processor.pad([processor(text) for text in x])
        return {name: t.to(own["items"].device) for name, t in found.items()} | {"items": own["items"]}
    if encoder.kind == "text" and x.is_floating_point():
        del own["input_ids"]
        return own | {"inputs_embeds": x}
    return own | {RAW[encoder.kind]: x}


def without(inputs: Mapping[str, Tensor] | Encoded, kept: Tensor) -> dict[str, Tensor] | Encoded:
    """Inputs that only some rows, (B,) bool, still have: a row without items is one that lacks the modality."""
    if isinstance(inputs, Encoded):
        return inputs._replace(present=inputs.present & kept)
    return dict(inputs) | {"items": inputs["items"].masked_fill(~kept[:, None], -1)}


def places(items: Tensor, rows: Tensor) -> Tensor:
    """Which items some rows have, any row as often as wanted: row after row, (N',)."""
    chosen = items[rows]
    return chosen[chosen >= 0]


def taken(inputs: Mapping[str, Tensor], rows: Tensor) -> dict[str, Tensor]:
    """The inputs of some rows, any row as often as wanted, each with items of its own (in the order of ``places``)."""
    chosen, own = inputs["items"][rows], places(inputs["items"], rows)
    items = torch.full_like(chosen, -1)
    items[chosen >= 0] = torch.arange(len(own), device=items.device)
    return {name: x[own] for name, x in inputs.items() if name != "items"} | {"items": items}


def refuse(model: Model, task: str, threats: Mapping[str, Threat | None], moves: Moves = "numbers") -> None:
    """Refuse what cannot be attacked.

    Raises:
        ConfigError: it cannot.
    """
    if task not in model.heads:
        raise ConfigError([("task", f"there is no task {task!r}{nearest(task, model.heads)}; allowed: {', '.join(model.heads)}")])
    if "classes" not in model.heads[task].vocabulary:
        kind = type(model.heads[task]).__name__.lower()
        raise ConfigError([("task", f"{task} has a head {kind}, and attacks make a classifier say another class: name one")])
    for m, threat in threats.items():
        where = f"threats.{m}"
        if m not in model.encoders:
            words = f"there is no modality {m!r}{nearest(m, model.encoders)}; the model has {', '.join(model.encoders)}"
            raise ConfigError([(where, words)])
        if moves == "numbers":
            _refuse_numbers(where, model.encoders[m], threat)
        elif threat is not None:
            words = (
                f"an attack of {moves} counts its edits, in settings of its own, and {threat} measures numbers: leave it empty"
            )
            raise ConfigError([(where, words)])
        elif moves != "presence":
            _refuse_symbols(where, model.encoders[m], moves)
    if moves == "presence" and len(model.modalities) < 2:
        words = f"{model.modalities[0]} is the only modality, and the last one never goes missing: attack a model of several"
        raise ConfigError([("threats", words)])


def _refuse_numbers(where: str, encoder: Encoder, threat: Threat | None) -> None:
    if encoder.kind not in RAW:
        raise ConfigError([(where, f"an encoder of {encoder.kind} has no raw numbers that may move: leave it out")])
    if encoder.kind == "text" and not hasattr(encoder, "embed"):
        name = type(encoder).__name__
        raise ConfigError([(where, f"{name} has no token embeddings to move: attack its words, or leave it out")])
    if threat is None:
        raise ConfigError([(where, "says nothing of how far numbers may move: {norm: linf, eps: 0.03} is an example")])
    threat.refuse(where)


def _refuse_symbols(where: str, encoder: Any, moves: Moves) -> None:
    name = type(encoder).__name__
    if encoder.kind != "text":
        words = f"{name} reads {encoder.kind}, and {moves} are of text: leave it out, or take an attack that moves numbers"
        raise ConfigError([(where, words)])
    if getattr(encoder, "pairs", False):
        words = f"{name} reads pairs of sentences, and an attack of {moves} changes single texts: leave it out"
        raise ConfigError([(where, words)])
    if moves != "tokens":
        return
    absent = [what for what in ("tokenizer", "embed") if not hasattr(encoder, what)]
    if absent:
        parts = " and no ".join({"tokenizer": "tokenizer", "embed": "token embeddings"}[what] for what in absent)
        raise ConfigError([(where, f"{name} has no {parts}: take an attack of texts (characters, synonyms), or leave it out")])
    if getattr(encoder, "windows", 1) > 1:
        words = f"{name} reads texts in {encoder.windows} windows, and an attack of tokens knows one: set windows: 1, or take "
        raise ConfigError([(where, words + "an attack of texts (characters, synonyms)")])


def rows_of(batch: Batch, rows: Tensor, modalities: Sequence[str]) -> Batch:
    """Some rows of a batch, any row as often as wanted, with the inputs of some of its modalities alone."""
    found: dict[str, dict[str, Tensor] | Encoded] = {}
    for m in modalities:
        own = batch.inputs[m]
        if isinstance(own, Encoded):
            found[m] = Encoded(*(x[rows] for x in own))
        elif len(places(own["items"], rows)):  # a modality that no row has is left out, as in every batch
            found[m] = taken(own, rows)
    return batch._replace(
        inputs=found,
        present={m: x[rows] for m, x in batch.present.items()},
        labels={t: x[rows] for t, x in batch.labels.items()},
        labelled={t: x[rows] for t, x in batch.labelled.items()},
        views={},
        row=batch.row[rows],
        domain=batch.domain[rows],
        group=batch.group[rows],
        stream=batch.stream[rows],
    )
