"""States to resume from: how many are kept, what a damaged one says, starting again where there is none, random generators."""

from __future__ import annotations

import errno
import json
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState, PartialState
from conftest import call, experiment, refused, settings
from safetensors.torch import load_file, save_file

from mmkt import checkpoint, generators, kept, launch
from mmkt.checkpoint import CheckpointError, atomic, tidy
from mmkt.config import dump
from mmkt.model import Model
from mmkt.verify.differences import differences


def light(data: dict, *overrides: str) -> dict:
    """On sound alone, saved at every second of eight steps; three states are kept."""
    data["model"]["encoders"] = {"audio": data["model"]["encoders"]["audio"]}
    data["train"] |= {"steps": 8, "evaluate_every": 4, "save_every": 2, "keep": 3}
    data["data"]["dropout"] = {"audio": 0.2}
    data["model"]["space"] = {"dropout": 0.1}
    return data


def fresh() -> None:
    AcceleratorState._reset_state()
    PartialState._reset_state()


class Cut(BaseException):
    pass


def train(data: dict, monkeypatch, until: int | None = None, resume: bool = False) -> None:
    """A training, cut off before a step (from 1) or not."""
    from mmkt.telemetry import Meter

    count, plain = [0], Meter.take

    def take(meter, batches, n):
        count[0] += 1
        if count[0] == until:
            raise Cut
        return plain(meter, batches, n)

    with monkeypatch.context() as patched:
        patched.setattr(Meter, "take", take)
        try:
            launch.train(experiment(data), resume=resume)
        except Cut:
            assert until is not None
    fresh()


@pytest.fixture(scope="module")
def whole(tmp_path_factory, tiny_manifest, tiny_bert) -> Path:
    """A run that was not cut off."""
    run = tmp_path_factory.mktemp("whole") / "run"
    launch.train(experiment(light(settings(tiny_manifest, tiny_bert, run))))
    fresh()
    return run


def apart(whole: Path, run: Path) -> list[str]:
    """Differences but for the folders' own names."""
    own = ("config.json: run", "best/config.json: run", "best/README.md")
    return [name for name in differences(whole, run) if name not in own]


def step(folder: Path) -> int:
    return json.loads((folder / "state.json").read_text())["progress"]["total"]


# ---------------------------------------------------------------- how many are kept


def test_the_newest_states_are_kept(whole):
    assert [path.name for path in kept.states(whole / "kept")] == ["step-00000006", "step-00000004"]
    assert [step(path) for path in (whole / "last", *kept.states(whole / "kept"))] == [8, 6, 4]
    for state in kept.states(whole / "kept"):
        assert {file.name for file in state.iterdir()} == {*kept.TENSORS, "state.json"}


def test_by_default_the_newest_alone_is(tiny_settings):
    del light(tiny_settings)["train"]["keep"]
    launch.train(experiment(tiny_settings))
    left = {path.name for path in Path(tiny_settings["run"]).iterdir()}
    assert left == {"config.json", "environment.json", "metrics.jsonl", "best", "last"}


@pytest.mark.parametrize("file", [*kept.TENSORS, "state.json"])
def test_from_a_damaged_state_the_way_to_the_newest_whole_one_is_said(whole, capfd, tiny_settings, config_file, tmp_path, file):
    """And what is said is done: then the run ends as the one that was not damaged."""
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    (run / "config.json").write_text(dump(experiment(light(tiny_settings))))
    for state in (run / "last", run / "kept/step-00000006"):
        content = (state / file).read_bytes()
        (state / file).write_bytes(content[: len(content) // 2])
    said = refused(capfd, "train", config_file(tiny_settings), "--resume")
    assert f"{run}/last/{file} is " in said
    words = f"mv {run}/last {run}/damaged && mv {run}/kept/step-00000004 {run}/last"
    assert words in " ".join(said.split())
    if file == "state.json":
        for move in words.split(" && "):
            _, source, target = move.split()
            Path(source).rename(target)
        assert call(capfd, "train", config_file(tiny_settings), "--resume")[0] == 0
        shutil.rmtree(run / "damaged")
        left = apart(whole, run)
        # the damaged state of step 6 made room for the new one; that of step 4 is the one that was taken
        assert not [name for name in left if not name.startswith("kept/step-00000004")]
        assert [path.name for path in kept.states(run / "kept")] == ["step-00000006", "step-00000004"]


def test_where_no_other_is_whole_that_is_said(whole, capfd, tiny_settings, config_file, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    (run / "config.json").write_text(dump(experiment(light(tiny_settings))))
    shutil.rmtree(run / "kept")
    (run / "last/generators.safetensors").unlink()
    said = refused(capfd, "train", config_file(tiny_settings), "--resume")
    assert "generators.safetensors is missing" in said
    assert "no older state that is whole is kept" in said
    assert "run=OTHER" in said


@pytest.mark.parametrize("name", ["last/learner", "last/optimizer", "last/generators", "best/model"])
@pytest.mark.parametrize("place", ["nothing", "in the header's length", "in the header", "in the data", "all but a byte"])
def test_tensors_cut_short_are_refused_by_name(whole, tmp_path, name, place):
    file = whole / f"{name}.safetensors"
    content = file.read_bytes()
    header = 8 + int.from_bytes(content[:8], "little")
    size = {"nothing": 0, "in the header's length": 5, "in the header": header // 2, "in the data": (header + len(content)) // 2}
    assert header < len(content)
    cut = tmp_path / file.name
    cut.write_bytes(content[: size.get(place, len(content) - 1)])
    for read in (checkpoint.read_tensors, checkpoint.names_of):
        with pytest.raises(CheckpointError, match=rf"{file.name} is not a whole safetensors file"):
            read(cut)
        assert read(file)


@pytest.mark.parametrize("name", ["last/state.json", "best/config.json", "best/vocabularies.json", "config.json"])
@pytest.mark.parametrize("share", [0, 0.3, 0.9])
def test_json_cut_short_is_refused_by_name(whole, tmp_path, name, share):
    content = (whole / name).read_bytes()
    cut = tmp_path / Path(name).name
    cut.write_bytes(content[: int(share * len(content))])
    with pytest.raises(CheckpointError, match=rf"{cut.name} is damaged"):
        checkpoint.read_json(cut)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "vocabularies.json"])
def test_a_best_checkpoint_cut_short_is_refused_by_name(whole, tmp_path, name):
    shutil.copytree(whole / "best", tmp_path / "best")
    content = (tmp_path / "best" / name).read_bytes()
    for size in (0, 7, len(content) // 2, len(content) - 2):
        (tmp_path / "best" / name).write_bytes(content[:size])
        with pytest.raises(CheckpointError, match=rf"best/{name} is (damaged|not a whole)"):
            Model.from_pretrained(tmp_path / "best")


@pytest.mark.parametrize("damage", ["cut", "removed"])
def test_a_run_is_not_resumed_without_the_best_checkpoint_it_had(whole, capfd, tiny_settings, config_file, tmp_path, damage):
    """Else it would be missed at the end of training, or the last step taken for the best."""
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    (run / "config.json").write_text(dump(experiment(light(tiny_settings))))
    file = run / "best/model.safetensors"
    file.write_bytes(file.read_bytes()[:-9]) if damage == "cut" else shutil.rmtree(run / "best")
    said = refused(capfd, "train", config_file(tiny_settings), "--resume")
    assert f"{file} is {'not a whole' if damage == 'cut' else 'missing'}" in said


# ---------------------------------------------------------------- a full disk, a kill


def test_a_full_disk_leaves_all_states_before(tiny_settings, monkeypatch, whole):
    """In the middle of the third save: the newest and the one before stay, and training goes on from there."""
    plain, calls = checkpoint.save_file, []

    def full(tensors, file):
        calls.append(file)
        if len([call for call in calls if "last" in str(call)]) > 7:
            Path(file).write_bytes(b"cut")
            raise OSError(errno.ENOSPC, "No space left on device", str(file))
        plain(tensors, file)

    with monkeypatch.context() as patched:
        patched.setattr(checkpoint, "save_file", full)
        with pytest.raises(CheckpointError, match=r"the disk is full.*untouched.*--resume"):
            launch.train(experiment(light(tiny_settings)))
    fresh()
    run = Path(tiny_settings["run"])
    assert [step(state) for state in (run / "last", *kept.states(run / "kept"))] == [4, 2]
    assert kept.problem(run / "last") is None
    launch.train(experiment(tiny_settings), resume=True)
    assert apart(whole, run) == []


def test_what_a_kill_left_is_brought_to_an_end(tmp_path):
    gone: list[str] = []

    def retire(old: Path) -> None:
        gone.append((old / "x").read_text())
        shutil.rmtree(old)

    place = tmp_path / "a"
    for value in ("1", "2"):
        with atomic(place, retire) as new:
            (new / "x").write_text(value)
    assert gone == ["1"]
    shutil.copytree(place, tmp_path / "a.old")  # killed after the new one took its place
    shutil.copytree(place, tmp_path / "a.new")  # and in the save after that
    (tmp_path / "a.old.gone").mkdir()
    tidy(place, retire)
    assert gone == ["1", "2"]
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    place.rename(tmp_path / "a.old")  # killed between the renames
    tidy(place, retire)
    assert (place / "x").read_text() == "2"
    assert gone == ["1", "2"]


def state_of(folder: Path, total: int) -> Path:
    folder.mkdir(parents=True)
    for name in kept.TENSORS:
        save_file({"x": torch.ones(2)}, folder / name)
    (folder / "state.json").write_text(json.dumps({"progress": {"total": total}}))
    return folder


def test_states_of_a_future_that_was_given_up_make_room(tmp_path):
    """Continued from step 4, where the states of 6 and 8 were damaged: they don't push whole ones out."""
    for total in (2, 6, 8):
        state_of(tmp_path / f"kept/step-{total:08d}", total)
    (tmp_path / "kept/step-00000001.gone").mkdir()
    kept.retire(3)(state_of(tmp_path / "last.old", 4))
    assert sorted(path.name for path in (tmp_path / "kept").iterdir()) == ["step-00000002", "step-00000004"]
    kept.retire(2)(state_of(tmp_path / "last.old", 5))
    assert sorted(path.name for path in (tmp_path / "kept").iterdir()) == ["step-00000005"]
    damaged = state_of(tmp_path / "last.old", 6)
    (damaged / "state.json").write_text("{")
    kept.retire(2)(damaged)
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]
    assert sorted(path.name for path in (tmp_path / "kept").iterdir()) == ["step-00000005"]


# ---------------------------------------------------------------- nothing saved yet


@pytest.mark.parametrize("until", [1, 2])
def test_a_run_cut_off_before_its_first_save_starts_again(whole, tiny_settings, monkeypatch, capfd, until):
    run = Path(tiny_settings["run"])
    train(light(tiny_settings), monkeypatch, until)
    assert not (run / "last").exists()
    assert (run / "metrics.jsonl").exists() == (until > 1)
    if until > 1:
        with pytest.raises(CheckpointError, match="--resume continues it"):
            launch.train(experiment(tiny_settings))
        fresh()
    with pytest.raises(CheckpointError, match=r"another train\.lr"):
        launch.train(experiment(tiny_settings, "train.lr=0.5"), resume=True)
    fresh()
    train(tiny_settings, monkeypatch, resume=True)
    assert "it starts again from its first step" in capfd.readouterr().err
    assert apart(whole, run) == []


# ---------------------------------------------------------------- random generators


def drawn() -> list[float]:
    return [
        random.random(),
        random.gauss(),
        np.random.random(),
        np.random.normal(),
        float(torch.rand(())),
        float(torch.randn(())),
    ]


@pytest.mark.parametrize("before", [0, 1])  # the second of a pair of normal numbers waits, or not
def test_all_generators_stand_where_they_stood(before):
    generators.seed(7)
    reference = random.Random(7)
    assert random.random() == reference.random()
    assert np.random.random() == np.random.RandomState(7).random()
    for _ in range(before):
        random.gauss(), np.random.normal()
    state = {name: x.clone() for name, x in generators.state().items()}
    first = [drawn() for _ in range(700)]  # past the twister's 624 words
    generators.seed(8)
    assert drawn() != first[0]
    generators.restore(state)
    assert [drawn() for _ in range(700)] == first
    with generators.untouched():
        drawn()
    after = drawn()
    generators.restore(state)
    for _ in range(700):
        drawn()
    assert drawn() == after


def test_another_generator_of_numpy_is_refused():
    plain = np.random.get_bit_generator()
    try:
        np.random.set_bit_generator(np.random.PCG64(0))
        with pytest.raises(ValueError, match=r"PCG64.*leave out numpy\.random\.set_bit_generator"):
            generators.state()
    finally:
        np.random.set_bit_generator(plain)


def test_a_state_of_before_python_and_numpy_were_saved_is_resumed(tiny_settings, monkeypatch, whole):
    train(light(tiny_settings), monkeypatch, until=6)
    file = Path(tiny_settings["run"]) / "last/generators.safetensors"
    states = load_file(file)
    assert set(states) == {f"0/{name}" for name in ("cpu", "python", "python.gauss", "numpy", "numpy.gauss")}
    save_file({"0/cpu": states["0/cpu"]}, file)
    train(tiny_settings, monkeypatch, resume=True)
    assert [name for name in apart(whole, Path(tiny_settings["run"])) if "generators" not in name] == []
