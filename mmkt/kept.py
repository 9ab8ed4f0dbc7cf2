"""The states that a run can be resumed from: the newest in ``last/``, those before it in ``kept/step-00000120/`` …"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

from mmkt import checkpoint, distributed
from mmkt.checkpoint import CheckpointError

TENSORS = ("learner.safetensors", "optimizer.safetensors", "generators.safetensors")


def retire(keep: int) -> Callable[[Path], None]:
    """What becomes of a state that a newer one has replaced, where so many are kept with the newest."""
    return partial(_to_kept, most=keep - 1) if keep > 1 else checkpoint.drop


def _to_kept(old: Path, most: int) -> None:
    """Put a state among the older ones, and remove the oldest of more than ``most``."""
    home = old.with_name("kept")
    home.mkdir(exist_ok=True)
    if problem(old):  # nobody could go on from it
        checkpoint.drop(old)
        return
    place = home / f"step-{checkpoint.read_json(old / 'state.json')['progress']['total']:08d}"
    for state in states(home):
        if state.name >= place.name:  # the run was continued from one before it
            checkpoint.drop(state)
    old.rename(place)
    _prune(home, most)


def _prune(home: Path, most: int) -> None:
    for gone in home.glob("*.gone"):  # a kill came while it was removed
        shutil.rmtree(gone)
    for state in states(home)[most:]:
        checkpoint.drop(state)


def states(home: Path) -> list[Path]:
    """The older states of ``kept/``, the newest first."""
    return sorted(home.glob("step-*[0-9]"), reverse=True)


def tidy(folder: Path, keep: int) -> None:
    """Bring to an end what a kill left of a save (rank 0 does, all wait)."""
    if distributed.rank() == 0:
        checkpoint.tidy(folder, retire(keep))
        _prune(folder.with_name("kept"), keep - 1)
    distributed.wait()


def problem(folder: Path) -> str | None:
    """Which file of a state is missing, cut short or not what it should be; None if nothing is.

    Of tensors the table of contents is read, which says how long the file has to be.
    """
    try:
        checkpoint.read_json(folder / "state.json")
        for name in sorted({*TENSORS, *(file.name for file in folder.glob("*.safetensors"))}):
            checkpoint.names_of(folder / name)
    except CheckpointError as error:
        return str(error)
    return None


def refuse_damaged(folder: Path) -> None:
    """Refuse a state that is not whole, and say from which one training can go on.

    Raises:
        CheckpointError: so it is.
    """
    found = problem(folder)
    if found is None:
        return
    home = folder.with_name("kept")
    whole = next((state for state in states(home) if problem(state) is None), None)
    if whole is None:
        raise CheckpointError(f"{found}\nno older state that is whole is kept in {home} (train.keep): start again with run=OTHER")
    aside = f"mv {folder} {folder.with_name('damaged')} && " if folder.exists() else ""
    words = f"the newest whole state is {whole}: to go on from it, type {aside}mv {whole} {folder}, then --resume again"
    raise CheckpointError(f"{found}\n{words}")
