"""In what two folders of runs differ, to the bit."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmkt.checkpoint import CheckpointError, read_json, read_tensors
from mmkt.run import flat
from mmkt.telemetry import CLOCK

APART = ("environment.json", "tensorboard", "profile")  # the command that was typed, files named by the clock, times


def differences(one: Path, other: Path) -> list[str]:
    """Names of what differs: tensors, values of JSON, lines of logs, whole files. Figures of the clock count for nothing.

    Args:
        one: a run's folder.
        other: that of the same run, trained another way.
    """
    names = sorted(_files(one) | _files(other))
    return [f"{name}{found}" for name in names for found in _of_file(one / name, other / name)]


def _files(run: Path) -> set[str]:
    files = (file.relative_to(run) for file in run.rglob("*") if file.is_file())
    return {str(file) for file in files if file.parts[0] not in APART}


def _of_file(one: Path, other: Path) -> Iterator[str]:
    if not one.is_file() or not other.is_file():
        yield " is missing" if one.is_file() else " is there"
    elif one.suffix == ".safetensors":
        yield from _of_tensors(one, other)
    elif one.suffix == ".jsonl":
        yield from _of_lines(one, other)
    elif one.suffix == ".json":
        yield from _of_values(read_json(one), read_json(other))
    elif one.read_bytes() != other.read_bytes():
        yield ""


def _of_tensors(one: Path, other: Path) -> Iterator[str]:
    try:
        first, second = read_tensors(one), read_tensors(other)
    except CheckpointError as error:
        yield f": {error}"
        return
    for name in sorted(first.keys() | second.keys()):
        if name not in first or name not in second:
            yield f": {name} is {'missing' if name in first else 'there'}"
        elif not same(first[name], second[name]):
            yield f": {name}"


def same(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors have the same bits: NaN is NaN, and −0 is not 0."""
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    return torch.equal(*(x.contiguous().flatten().view(torch.uint8) for x in (one, other)))


def _of_lines(one: Path, other: Path) -> Iterator[str]:
    first, second = (file.read_text(encoding="utf-8").splitlines() for file in (one, other))
    if len(first) != len(second):
        yield f" has {len(second)} lines in place of {len(first)}"
    for number, pair in enumerate(zip(first, second), start=1):
        before, after = (_without_clock(line) for line in pair)
        yield from (f", line {number}: {name}" for name in _unequal(before, after))


def _of_values(before: Any, after: Any) -> Iterator[str]:
    for name in _unequal(before, after):
        yield f": {name}"


def _unequal(before: Any, after: Any) -> list[str]:
    """Dotted names whose values differ; NaN is equal to NaN."""
    first, second = flat(before), flat(after)
    names = dict.fromkeys([*first, *second])
    return [name for name in names if name not in first or name not in second or repr(first[name]) != repr(second[name])]


def _without_clock(line: str) -> Any:
    try:
        values = json.loads(line)
    except ValueError:
        return {"": line}
    return {name: value for name, value in values.items() if name not in CLOCK} if isinstance(values, dict) else values
