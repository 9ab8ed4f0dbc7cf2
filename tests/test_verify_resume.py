"""mmkt verify-resume: what resumes exactly, what does not, and what is compared."""

from __future__ import annotations

import json
import shutil
import textwrap
from pathlib import Path

import forked
import pytest
import torch
import yaml
from conftest import call, refused
from safetensors.torch import save_file

from mmkt.verify import processes, verify
from mmkt.verify.differences import differences
from mmkt.verify.kills import KINDS, Moment, choose

OBJECTIVES = {
    # all that may be random or remembered: Python's, numpy's and torch's generators, a buffer drawn when a phase begins
    "drawn": """
        import random
        import numpy as np
        import torch

        class Drawn(Classify):
            def __init__(self, *arguments, task: str):
                super().__init__(*arguments, task=task)
                self.register_buffer("memory", torch.zeros(3))

            def begin(self, learner, phase):
                self.memory.copy_(torch.randn(3))

            def forward(self, model, batch, outputs):
                noise = random.gauss() + np.random.normal() + torch.rand(()) + self.memory.sum()
                return (1 + 0.01 * noise) * super().forward(model, batch, outputs)

            def stepped(self, learner, progress):
                self.memory.mul_(0.9)
        """,
    "forgetful": """
        class Forgetful(Classify):
            steps = 0.0

            def forward(self, model, batch, outputs):
                return (1 + 0.01 * self.steps) * super().forward(model, batch, outputs)

            def stepped(self, learner, progress):
                self.steps += 1
        """,
    "unrepeatable": """
        import secrets

        class Unrepeatable(Classify):
            def forward(self, model, batch, outputs):
                return (1 + 1e-6 * secrets.randbelow(1000)) * super().forward(model, batch, outputs)
        """,
}


@pytest.fixture
def forks(monkeypatch):
    """Every process is a fork of the tests' server."""
    context = forked.context()
    monkeypatch.setattr(processes, "FRESH", context)
    monkeypatch.setattr(processes, "forking", lambda config: context)


@pytest.fixture
def experiment_with(tiny_settings, tmp_path):
    """Writes an experiment on sound alone whose objective is one of those above."""

    def make(name: str) -> Path:
        home = tmp_path / "their_lab/objectives"
        home.mkdir(parents=True)
        code = "from mmkt.objectives.classify import Classify\n" + textwrap.dedent(OBJECTIVES[name])
        (home / f"{name}.py").write_text(code)
        del tiny_settings["model"]["encoders"]["text"], tiny_settings["model"]["encoders"]["image"]
        tiny_settings["objectives"] = {"kind": {"name": name, "task": "kind"}}
        tiny_settings["plugins"] = [str(tmp_path / "their_lab")]
        file = tmp_path / "experiment.yaml"
        file.write_text(yaml.safe_dump(tiny_settings, sort_keys=False))
        return file

    return make


def test_a_run_killed_at_any_kind_of_moment_is_the_run_that_was_not(forks, experiment_with):
    settings = ["train.keep=2", "train.accumulate=2", "transfer=lp_ft", "model.space.dropout=0.1", "data.dropout={audio: 0.3}"]
    proof = verify(str(experiment_with("drawn")), settings, kills=len(KINDS), steps=8)
    assert [one.differences for one in proof.checked] == [[]] * len(KINDS)
    assert proof.equal
    begun = {one.happened for one in proof.checked}
    assert len(begun) > 2  # from several saved steps
    said = " ".join(one.kill for one in proof.checked)
    for words in ("at the start of", "half of", "flushed to the disk", "moved away", "in its place", "removed", "is put there"):
        assert words in said
    left = {path.name for path in proof.folder.iterdir()}
    assert left == {"whole", "whole.log", "moments-0.jsonl", "verify-resume.json"}
    kept = [path.name for path in (proof.folder / "whole/kept").iterdir()]
    assert kept == ["step-00000006"]


def test_a_memory_that_is_not_saved_is_found_out(capfd, forks, experiment_with, tmp_path):
    """The negative control: a Python number that an objective counts up."""
    settings = ["train.save_every=2", "train.select=loss", "--steps", 4]
    status, out, _ = call(capfd, "verify-resume", experiment_with("forgetful"), *settings, "--json")
    assert status == 1
    found = json.loads(out)
    assert not found["equal"]
    assert found["unstable"] == []  # two runs that nobody killed are the same
    (one,) = found["checked"]
    assert one["kill"] == "at the start of step 3"
    assert one["happened"] == "went on from step 2"
    assert "metrics.jsonl, line 5: loss" in one["differences"]  # a step has two lines, and two were saved
    assert not any(name.startswith("metrics.jsonl, line 4") or "rows/s" in name for name in one["differences"])
    assert any(name.startswith("last/learner.safetensors: model.encoders.audio.") for name in one["differences"])
    assert any(name.startswith("best/model.safetensors: ") for name in one["differences"])
    assert (tmp_path / "run-verify/kill-01/metrics.jsonl").is_file()


def test_a_run_that_differs_each_time_is_said_to(capfd, forks, experiment_with):
    file = experiment_with("unrepeatable")
    status, out, _ = call(capfd, "verify-resume", file, "--steps", 2)
    assert status == 1
    assert "0 of 1 equal to the bit" in out
    assert "two runs that nobody killed differ as well" in out


def test_two_processes_one_of_them_killed(forks, experiment_with):
    proof = verify(str(experiment_with("drawn")), ["data.batch_size=8"], kills=2, processes=2, steps=4, seed=1)
    assert [one.differences for one in proof.checked] == [[], []]


def test_as_a_person_starts_it(capfd, experiment_with, tmp_path):
    """Without the tests' server: the whole run by a new interpreter. Killed in the first step it starts again."""
    file = experiment_with("drawn")
    settings = ["train.save_every=2", "data.workers=1"]
    status, out, err = call(capfd, "verify-resume", file, "--steps", 2, "--out", tmp_path / "out", *settings)
    assert status == 0
    assert "1 of 1 equal to the bit" in out
    assert "nothing was saved: started again: equal" in err
    assert call(capfd, "verify-resume", file, "--steps", 2, "--out", tmp_path)[0] == 2  # that holds something else


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--kills", "0"], "--kills takes 1 or more, found 0"),
        (["--steps", "1"], "--steps takes 2 or more, found 1"),
        (["--processes", "0"], "--processes takes 1 or more, found 0"),
        (["model.fusion=concatt"], "did you mean"),
    ],
)
def test_what_cannot_be_is_refused(capfd, experiment_with, words, says):
    assert says in refused(capfd, "verify-resume", experiment_with("drawn"), *words)


def test_a_launcher_and_an_experiment_that_fails_are_refused(capfd, forks, monkeypatch, experiment_with):
    file = experiment_with("drawn")
    assert "did not get to its end: error: " in refused(capfd, "verify-resume", file, "data.batch_size=8", "train.select=x/y")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "type it without a launcher" in refused(capfd, "verify-resume", file)


# ---------------------------------------------------------------- which moments, what is compared


def test_moments_are_drawn_of_every_kind_in_turn():
    moments = [Moment(0, k, kind, kind) for k, kind in enumerate(["step"] * 30 + ["write"] * 3 + ["renamed"])]
    found = choose(moments, 7, 0)
    assert [m.kind for m in found] == ["step", "write", "renamed", "step", "write", "step", "write"]
    assert len(set(found)) == 7
    assert choose(moments, 7, 0) == found
    assert choose(moments, 7, 1) != found
    assert sorted(choose(moments, 99, 0)) == moments
    assert choose(moments, 1, 5) == [moments[15]]


@pytest.fixture
def folders(tmp_path):
    """Two equal runs."""
    one, two = tmp_path / "one", tmp_path / "two"
    (one / "last").mkdir(parents=True)
    save_file({"a": torch.tensor([0.0, float("nan")]), "b": torch.arange(3)}, one / "last/learner.safetensors")
    (one / "last/state.json").write_text('{"progress": {"best": 0.5}, "scaler": null}')
    (one / "metrics.jsonl").write_text('{"step": 1, "loss": 0.1, "rows/s": 3.0}\n{"step": 2, "loss": NaN}\n')
    (one / "environment.json").write_text("{}")
    shutil.copytree(one, two)
    return one, two


def test_equal_runs_have_no_differences(folders):
    one, two = folders
    (two / "environment.json").write_text('{"command": "other"}')
    (two / "metrics.jsonl").write_text('{"step": 1, "loss": 0.1, "rows/s": 9.0}\n{"step": 2, "loss": NaN}\n')
    assert differences(one, two) == []


@pytest.mark.parametrize(
    ("tensors", "name"),
    [
        ({"a": torch.tensor([-0.0, float("nan")]), "b": torch.arange(3)}, "a"),
        ({"a": torch.tensor([0.0, 1.0]), "b": torch.arange(3)}, "a"),
        ({"a": torch.tensor([0.0, float("nan")]), "b": torch.arange(3).int()}, "b"),
        ({"a": torch.tensor([0.0, float("nan")])}, "b is missing"),
        ({"a": torch.tensor([0.0, float("nan")]), "b": torch.arange(3), "c": torch.ones(1)}, "c is there"),
    ],
)
def test_a_differing_tensor_is_named(folders, tensors, name):
    one, two = folders
    save_file(tensors, two / "last/learner.safetensors")
    assert differences(one, two) == [f"last/learner.safetensors: {name}"]


@pytest.mark.parametrize(
    ("file", "text", "found"),
    [
        ("last/state.json", '{"progress": {"best": 0.25}, "scaler": null}', ["last/state.json: progress.best"]),
        ("metrics.jsonl", '{"step": 1, "loss": 0.1}\n', ["metrics.jsonl has 1 lines in place of 2"]),
        ("metrics.jsonl", '{"step": 1, "loss": 0.2}\n{"step": 2, "loss": NaN}\n', ["metrics.jsonl, line 1: loss"]),
        ("nonfinite-0.json", "{}", ["nonfinite-0.json is there"]),
        ("last/learner.safetensors", "cut", None),
    ],
)
def test_a_differing_file_is_named(folders, file, text, found):
    one, two = folders
    (two / file).write_text(text)
    if found is None:
        assert "is not a whole safetensors file" in differences(one, two)[0]
    else:
        assert differences(one, two) == found
