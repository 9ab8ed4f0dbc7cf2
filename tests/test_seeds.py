"""scripts/seeds.py: one training over several seeds."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import call

from mmkt.parts import ConfigError

SCRIPT = Path(__file__).parent.parent / "scripts/seeds.py"
spec = importlib.util.spec_from_file_location("seeds", SCRIPT)
assert spec
assert spec.loader
seeds = importlib.util.module_from_spec(spec)
spec.loader.exec_module(seeds)


@pytest.fixture
def typed(monkeypatch, capfd):
    """The script with some arguments, in this process; its trainings too, in which starting Python anew takes longest."""

    plain = subprocess.run

    def run(command: list[str], **more: object) -> subprocess.CompletedProcess:
        if command[:3] != [sys.executable, "-m", "mmkt.cli"]:
            return plain(command, **more)
        status, _, err = call(capfd, *command[3:])
        return subprocess.CompletedProcess(command, status, "", err)

    def type_in(*words: object) -> str:
        monkeypatch.setattr(sys, "argv", [str(SCRIPT), *map(str, words)])
        capfd.readouterr()
        seeds.main()
        return capfd.readouterr().out

    monkeypatch.setattr(seeds.subprocess, "run", run)
    return type_in


def test_arms_are_trained_once_and_compared(tiny_settings, config_file, tmp_path, typed):
    words = [config_file(tiny_settings), "--arm", "few", "--arm", "more:train.steps=30", "--seeds", "3", "--json"]
    rows = json.loads(typed(*words))["rows"]
    assert [row["arm"] for row in rows] == ["few", "more", "more − few"]
    few, more, difference = (np.array(row["values"]) for row in rows)
    np.testing.assert_allclose(difference, more - few)
    reports = sorted(tmp_path.glob("run-*-*/best/README.md"))
    assert len(reports) == 2
    assert rows[0]["low"] is None, "one seed has no interval"
    before = [path.stat().st_mtime_ns for path in reports]
    assert json.loads(typed(*words))["rows"] == rows
    assert [path.stat().st_mtime_ns for path in reports] == before, "a run that has ended is read"


def test_a_mistake_in_any_arm_is_reported_before_the_first_run(tiny_settings, config_file, tmp_path, typed):
    with pytest.raises((SystemExit, ConfigError), match=r"train\.stps"):
        typed(config_file(tiny_settings), "--arm", "a", "--arm", "b:train.stps=3")
    assert not list(tmp_path.glob("run-*"))


def test_an_unknown_metric_names_those_there_are(tmp_path):
    best = tmp_path / "run/best/evaluation-test"
    best.mkdir(parents=True)
    row = dict.fromkeys(("run", "study", "split", "modalities", "condition"), "") | {"seed": 0, "task": "kind"}
    row |= {"metric": "accuracy", "group": "all", "value": 0.5, "n": 4, "low": 0.1, "high": 0.9}
    (best / "metrics.jsonl").write_text(json.dumps(row) + "\n")
    assert seeds.figure(tmp_path / "run", None) == 0.5
    with pytest.raises(SystemExit, match="kind/accuracy"):
        seeds.figure(tmp_path / "run", "kind/acuracy")


def test_missing_in_training_against_missing_in_test(tiny_settings, config_file, tmp_path, monkeypatch, capfd):
    """scripts/missing.py: a table and a plot; a run that has ended is read."""
    monkeypatch.syspath_prepend(SCRIPT.parent)
    import missing

    commands, plain = [], subprocess.run

    def run(command: list[str], **more: object) -> subprocess.CompletedProcess:
        if command[:3] != [sys.executable, "-m", "mmkt.cli"]:
            return plain(command, **more)
        commands.append(command)
        status, _, err = call(capfd, *command[3:])
        return subprocess.CompletedProcess(command, status, "", err)

    monkeypatch.setattr(missing.subprocess, "run", run)  # the same module that seeds.py calls
    words = ["--rates", "0", "0.5", "--tests", "0", "0.75", "--seeds", "1"]
    monkeypatch.setattr(
        sys, "argv", ["missing.py", str(config_file(tiny_settings)), "train.steps=2", "train.evaluate_every=2", *words]
    )
    missing.main()
    capfd.readouterr()
    assert len(commands) == 4, "two trainings, two evaluations"
    trained = json.loads((tmp_path / "run-missing-0.5-1/config.json").read_text())
    assert trained["data"]["dropout"] == dict.fromkeys(("text", "image", "audio"), 0.5)
    assert (tmp_path / "run-missing.png").stat().st_size > 10_000
    sys.argv.append("--json")
    missing.main()
    found = json.loads(capfd.readouterr().out)
    assert len(commands) == 4
    assert found["tests"] == [0, 0.75]
    figures = np.array([found["figures"][rate] for rate in ("0.0", "0.5")])
    assert figures.shape == (2, 1, 2)
    assert (figures[..., 0] != figures[..., 1]).any()
