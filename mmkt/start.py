"""A new experiment that starts from another checkpoint's tensors."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mmkt import checkpoint
from mmkt.model import Model, locate

RUNNING = ("running_mean", "running_var", "num_batches_tracked")  # buffers that training changes
NAMED = 10  # shapes that differ are named up to this many


class Started(NamedTuple):
    """What became of the tensors; printed, it is a list by part."""

    path: str
    kept: list[str]  # taken over
    classes: dict[str, list[Any]]  # tensor → the classes (or columns) whose rows were taken over; the other rows are new
    new: list[str]  # as they were drawn
    dropped: list[str]  # of the checkpoint, without a place here
    shapes: dict[str, tuple[tuple[int, ...], tuple[int, ...]]]  # new ones whose shape there and here differs
    constants: list[str]  # new ones that nothing trains (mel filters, a mean picture) and that other settings made otherwise

    def __str__(self) -> str:
        lines = [f"starting from {self.path}"]
        for word, names in (("kept", [*self.kept, *self.classes]), ("new", self.new), ("dropped", self.dropped)):
            counts = Counter(_part(name) for name in names)
            lines.append(f"  {word}: " + (", ".join(f"{part} ({n})" for part, n in counts.items()) or "nothing"))
        by_part: dict[str, dict[Any, None]] = {}
        for name, names in self.classes.items():
            by_part.setdefault(_part(name), {}).update(dict.fromkeys(names))
        for part, shared in by_part.items():
            what = "class name" if part.startswith("heads.") else "name"
            lines.append(f"  by {what} in {part}: {', '.join(map(str, list(shared)[:20]))}{' …' if len(shared) > 20 else ''}")
        for name, (there, here) in list(self.shapes.items())[:NAMED]:
            lines.append(f"  other shape: {name} has {there} there, {here} here")
        if len(self.shapes) > NAMED:
            lines.append(f"  and {len(self.shapes) - NAMED} more of another shape")
        if self.constants:
            lines.append(f"  as this experiment's settings make them: {', '.join(self.constants[:NAMED])}")
        return "\n".join(lines)


def start(model: Model, path: Path | str) -> Started:
    """Take over every tensor of a checkpoint whose name and shape fit; rows of classes, or of a table's columns, go by name.

    The checkpoint's config is not read, so no plugin is needed for it.

    Args:
        model: changed in place; what does not fit stays as it was drawn.
        path: the checkpoint's folder, or a Hub id.

    Raises:
        CheckpointError: the checkpoint is missing or damaged, or nothing of it fits.
    """
    folder = locate(path)
    if (folder / "delta.json").is_file():
        raise checkpoint.CheckpointError(
            f"{path} is a delta, which has only what changed: mmkt convert {path} OUT makes it whole"
        )
    tensors = checkpoint.read_tensors(folder / "model.safetensors")
    vocabularies = checkpoint.read_json(folder / "vocabularies.json")
    own = model.state_dict()
    tensors = _under_adapters(tensors, own, path)
    found = Started(str(path), [], {}, [], [name for name in tensors if name not in own], {}, [])
    constants = {name for name, _ in model.named_buffers() if not name.endswith(RUNNING)}
    with torch.no_grad():
        for name, mine in own.items():
            theirs = tensors.get(name)
            before, now = _classes(name, vocabularies, model), _classes(name, model.vocabularies, model)
            if theirs is not None and before != now and _by_class(theirs, before) and _by_class(mine, now):
                shared = [c for c in now if c in before] if theirs.shape[1:] == mine.shape[1:] else []
                if shared:
                    mine[[now.index(c) for c in shared]] = theirs[[before.index(c) for c in shared]].to(mine)
                    found.classes[name] = shared
                    continue
            elif theirs is not None and theirs.shape == mine.shape:
                if name in constants and not torch.equal(theirs, mine.cpu()):
                    found.new.append(name)
                    found.constants.append(name)
                    continue
                mine.copy_(theirs)
                found.kept.append(name)
                continue
            found.new.append(name)
            if theirs is not None and theirs.shape != mine.shape:
                found.shapes[name] = tuple(theirs.shape), tuple(mine.shape)
    for m, adapter in model.adapters.items():
        body = f"encoders.{m}.{model.encoders[m].backbone}".rstrip(".")
        if not any(name.startswith(f"{body}.") and name not in model.held for name in found.kept):
            adapter.renew(model.encoders[m])
    if not (found.kept or found.classes):
        raise checkpoint.CheckpointError(
            f"nothing of {path} fits this model, whose parts are {', '.join(dict.fromkeys(map(_part, own)))}; "
            f"the checkpoint has {', '.join(dict.fromkeys(map(_part, tensors)))}: leave model.start out, or name modalities alike"
        )
    return found


def _under_adapters(tensors: dict[str, Tensor], own: Mapping[str, Tensor], path: Path | str) -> dict[str, Tensor]:
    """Tensors by the names that they have here: some adapters put a body's layers into layers of theirs.

    Raises:
        CheckpointError: they have such adapters there and not here, so that the weights alone would be another model.
    """
    wrapped = {name.replace(".base_layer.", "."): name for name in own if ".base_layer." in name}
    bare = [name for name in tensors if ".base_layer." in name and name not in own and name.replace(".base_layer.", ".") in own]
    if bare:
        raise checkpoint.CheckpointError(
            f"{path} has adapters that this model has not ({bare[0]} is a layer in one): work them into the weights first "
            f"(mmkt convert {path} MERGED --merge), or give the same adapter in model.adapters"
        )
    return {wrapped[name] if name in wrapped and wrapped[name] not in tensors else name: x for name, x in tensors.items()}


def _part(name: str) -> str:
    """Which part of the model a tensor belongs to: ``encoders.text``, ``space.project.text``, ``fusion``, ``heads.kind``."""
    words = name.split(".")
    return ".".join(words[: {"encoders": 2, "heads": 2, "space": 3}.get(words[0], 1)])


def _classes(name: str, vocabularies: Mapping[str, Any], model: Model) -> Sequence[Any]:
    """The classes of the head that a tensor belongs to, or what an encoder says its rows stand for; none for other tensors."""
    room, _, part = _part(name).partition(".")
    vocabulary = vocabularies.get({"heads": part, "encoders": f"encoders.{part}"}.get(room, ""))
    if not isinstance(vocabulary, dict):
        return []
    if room == "heads":
        return vocabulary.get("classes", [])
    return model.encoders[part].rows_by_name(vocabulary).get(name.removeprefix(f"encoders.{part}."), [])


def _by_class(tensor: Tensor, classes: Sequence[Any]) -> bool:
    """Whether a tensor has a row a class."""
    return tensor.ndim > 0 and 0 < len(classes) == tensor.shape[0]
