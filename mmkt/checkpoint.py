"""Folders on disk: tensors as safetensors, all else as JSON, written whole or not at all. No pickle is ever read."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mmkt import distributed


class CheckpointError(ValueError):
    """A checkpoint that can't be used, and why."""


def drop(folder: Path) -> None:
    """Remove a folder, under another name: what a kill leaves half removed is never taken for the whole."""
    gone = folder.with_name(folder.name + ".gone")
    shutil.rmtree(gone, ignore_errors=True)
    folder.rename(gone)
    shutil.rmtree(gone, ignore_errors=True)


@contextmanager
def atomic(folder: Path, retire: Callable[[Path], None] = drop) -> Iterator[Path]:
    """A folder to write into, which takes ``folder``'s place when the block ends without error.

    A kill at any moment leaves the old folder or the new one: see ``settle``. So does a full disk.

    Args:
        folder: where it is to be.
        retire: what becomes of the folder that was replaced, given where it lies by then; it is removed.

    Raises:
        CheckpointError: the disk, or the quota, is full.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    tidy(folder, retire)
    new, old = folder.with_name(folder.name + ".new"), folder.with_name(folder.name + ".old")
    new.mkdir()
    try:
        yield new
        for file in sorted(new.rglob("*")):
            if file.is_file():
                _sync(file)
        _sync(new)
    except BaseException as error:
        shutil.rmtree(new, ignore_errors=True)
        if is_full(error):
            words = f"the disk is full: {folder} could not be written, what stood there before is untouched"
            raise CheckpointError(f"{words}; make room, then go on with --resume") from None
        raise
    if folder.exists():
        folder.rename(old)
    new.rename(folder)
    _sync(folder.parent)
    if old.exists():
        retire(old)


def is_full(error: BaseException) -> bool:
    """Whether an error says that disk or quota is full; safetensors gives it as text alone."""
    numbers = (errno.ENOSPC, errno.EDQUOT)
    if isinstance(error, SafetensorError):
        return any(f"os error {number})" in str(error) for number in numbers)
    return isinstance(error, OSError) and error.errno in numbers


def settle(folder: Path) -> Path:
    """The same folder, put back if a kill fell between the two renames of ``atomic``."""
    old = folder.with_name(folder.name + ".old")
    if not folder.exists() and old.exists():
        with suppress(FileNotFoundError):  # another process was faster
            old.rename(folder)
    return folder


def tidy(folder: Path, retire: Callable[[Path], None] = drop) -> None:
    """Bring to an end what a kill left of ``atomic``, whose arguments these are."""
    settle(folder)
    for left in (".new", ".old.gone"):
        shutil.rmtree(folder.with_name(folder.name + left), ignore_errors=True)
    old = folder.with_name(folder.name + ".old")
    if old.exists():
        retire(old)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_text(file: Path, text: str) -> None:
    """A text file, replaced in one step."""
    new = file.with_name(file.name + ".new")
    new.write_text(text, encoding="utf-8")
    new.replace(file)


def write_json(file: Path, value: Any) -> None:
    """Indented JSON, replaced in one step."""
    write_text(file, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_json(file: Path) -> Any:
    """The content. Raises CheckpointError where it is missing or not JSON."""
    if not file.is_file():
        raise CheckpointError(f"{file} is missing: is {file.parent} a folder that mmkt train has written?")
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{file} is damaged: {error}") from None


def write_tensors(file: Path, tensors: Mapping[str, Tensor]) -> None:
    """Tensors, on the CPU."""
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, file)


def read_tensors(file: Path) -> dict[str, Tensor]:
    """Tensors by name. Raises CheckpointError where the file is missing or damaged (cut short, a pickle)."""
    with _whole(file):
        return load_file(file)


def names_of(file: Path) -> list[str]:
    """Names of the tensors in a file, none of which is read. Raises as ``read_tensors`` does."""
    with _whole(file), safe_open(file, "pt") as tensors:
        return list(tensors.keys())


@contextmanager
def _whole(file: Path) -> Iterator[None]:
    if not file.is_file():
        raise CheckpointError(f"{file} is missing: is {file.parent} a folder that mmkt train has written?")
    try:
        yield
    except SafetensorError as error:
        raise CheckpointError(f"{file} is not a whole safetensors file: {error}") from None


def digest(names: Iterable[str], tensor: Callable[[str], Tensor]) -> str:
    """SHA-256 over tensors in the order of their names; ``tensor`` gives one at a time."""
    found = hashlib.sha256()
    for name in sorted(names):
        found.update(name.encode())
        found.update(tensor(name).detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return found.hexdigest()


def load_strict(module: nn.Module, tensors: Mapping[str, Tensor], where: Path, optional: frozenset[str] = frozenset()) -> None:
    """Copy tensors into a module, sharded or not; every name and shape has to agree.

    Args:
        module: what to load into.
        tensors: by name.
        where: the file, for the message.
        optional: names that may be missing (frozen weights that a delta refers to).
    """
    own = module.state_dict()
    problems = [f"tensor {name} is missing" for name in own if name not in tensors and name not in optional]
    problems += [f"tensor {name} has no place in this model" for name in tensors if name not in own]
    for name, tensor in tensors.items():
        if name in own and own[name].shape != tensor.shape:
            problems.append(f"tensor {name} has the shape {tuple(tensor.shape)}, the model's is {tuple(own[name].shape)}")
    if problems:
        more = f"\nand {len(problems) - 10} more" if len(problems) > 10 else ""
        raise CheckpointError(f"{where} does not fit its config:\n" + "\n".join(problems[:10]) + more)
    with torch.no_grad():
        for name, tensor in tensors.items():
            own[name].copy_(distributed.placed_like(tensor, own[name]))
