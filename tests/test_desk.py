"""What stands around runs: mmkt doctor, mmkt runs, mmkt push."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import call, refused

from mmkt import doctor


def status(found: list[doctor.Finding]) -> dict[str, str]:
    return {finding.name: finding.status for finding in found}


# ---------------------------------------------------------------- doctor


def test_doctor_finds_this_machine_able(capfd, tmp_path):
    code, out, err = call(capfd, "doctor", tmp_path / "not/yet", "--json")
    found = {finding["name"]: finding for finding in json.loads(out)["findings"]}
    assert code == 0, out
    assert found["import torchaudio"]["status"] == "ok"
    assert "gloo" in found["distributed"]["words"]
    assert "offline mode" in found["hub"]["words"]
    assert str(tmp_path) in found["disk for runs"]["words"]
    doctor.show([doctor.Finding(**finding) for finding in found.values()])
    assert "note    hub" in capfd.readouterr().out


def test_doctor_explains_a_torchaudio_that_does_not_load(tmp_path):
    """A package of that name which fails as the real one does beside another torch."""
    (tmp_path / "torchaudio").mkdir()
    (tmp_path / "torchaudio/__init__.py").write_text("raise OSError('undefined symbol: torch_library_impl')")
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-m", "mmkt.cli", "doctor"],
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    line = next(line for line in done.stdout.splitlines() if "import torchaudio" in line)
    assert line.startswith("problem")
    assert "undefined symbol" in line
    assert "torch>=2.11,<2.15" in line
    assert "problem import torch " not in done.stdout


def test_doctor_on_a_full_disk_and_without_extras(monkeypatch, tmp_path):
    usage = doctor.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: usage._replace(free=10_000_000))
    monkeypatch.setattr(doctor.util, "find_spec", lambda name: None)
    monkeypatch.setattr(doctor, "_python", lambda code: ("", "not asked"))  # torch's imports are examined above
    found = status(doctor.examine(tmp_path))
    assert found["disk for runs"] == "problem"
    assert found["extra demo"] == "note"


def test_doctor_says_when_the_hub_does_not_answer(monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    finding = doctor._hub()
    assert finding.status == "note"
    assert "can't be reached" in finding.words


# ---------------------------------------------------------------- runs


def test_runs_shows_states_figures_and_what_differs(capfd, tiny_settings, config_file, tmp_path):
    import shutil

    folder, file = tmp_path / "runs", config_file(tiny_settings)
    for name, lr in (("a", 3e-3), ("b", 1e-3)):
        assert call(capfd, "train", file, f"run={folder / name}", f"train.lr={lr}", "--json")[0] == 0
    shutil.copytree(folder / "b", folder / "deep/c")
    shutil.rmtree(folder / "deep/c/best/evaluation-test")
    assert call(capfd, "evaluate", folder / "deep/c/best")[0] == 0
    (folder / "deep/c/best/README.md").unlink()  # as if cut off before its end, and evaluated by hand
    code, out, err = call(capfd, "runs", folder, "--json")
    assert code == 0, err
    found = {one["name"]: one for one in json.loads(out)["runs"]}
    assert found["a"]["settings"] == {"train.lr": 3e-3}
    assert found["a"]["state"] == "finished, 6 steps"
    assert found["deep/c"]["state"] == "saved at step 6"
    log = [json.loads(line) for line in (folder / "a/metrics.jsonl").read_text().splitlines()]
    assert found["a"]["figures"]["validation/kind/accuracy"] == max(line.get("validation/kind/accuracy", 0) for line in log)
    rows = [json.loads(line) for line in (folder / "a/best/evaluation-test/metrics.jsonl").read_text().splitlines()]
    accuracy = next(r["value"] for r in rows if r["metric"] == "accuracy" and r["group"] == "all")
    assert found["a"]["figures"]["test/kind/accuracy"] == accuracy
    assert found["deep/c"]["figures"]["test/kind/accuracy"] == found["b"]["figures"]["test/kind/accuracy"]
    code, out, _ = call(capfd, "runs", folder)
    assert code == 0
    assert "deep/c" in out
    assert "train.lr=0.003" in out
    assert "train.lr=0.001" not in out, "what most runs have is not said"
    assert max(map(len, out.splitlines())) <= 80


def test_runs_refuses_what_is_none(capfd, tmp_path):
    assert "there are no runs in" in refused(capfd, "runs", tmp_path)
    assert "there is no folder" in refused(capfd, "runs", tmp_path / "nowhere")


# ---------------------------------------------------------------- push


class Hub:
    """As much of HfApi as pushing uses; it notes what it is asked."""

    asked: list = []  # noqa: RUF012
    private = True

    def create_repo(self, name, **settings):
        from huggingface_hub import RepoUrl

        Hub.asked.append(("create", name, settings))
        return RepoUrl(f"https://huggingface.co/{name}")

    def model_info(self, name):
        return type("Info", (), {"private": Hub.private})()

    def upload_folder(self, *, folder_path, allow_patterns, repo_id, commit_message):
        from huggingface_hub.utils import filter_repo_objects

        files = [str(file.relative_to(folder_path)) for file in sorted(Path(folder_path).rglob("*")) if file.is_file()]
        Hub.asked.append(("upload", repo_id, list(filter_repo_objects(files, allow_patterns=allow_patterns))))


@pytest.fixture
def hub(monkeypatch):
    import huggingface_hub
    from huggingface_hub import constants

    monkeypatch.setattr(Hub, "asked", [])
    monkeypatch.setattr(Hub, "private", True)
    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "a token")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    return Hub


def test_push_uploads_the_checkpoint_and_no_predictions(capfd, trained, hub):
    code, out, err = call(capfd, "push", trained, "me/tiny", "--private", "--json")
    assert code == 0, err
    assert json.loads(out)["address"].endswith("me/tiny")
    (_, name, settings), (_, target, files) = hub.asked
    assert name == target == "me/tiny"
    assert settings["private"]
    assert {"README.md", "config.json", "vocabularies.json", "model.safetensors"} <= set(files)
    assert any(file.startswith("assets/text/") for file in files)
    assert not [file for file in files if "predictions" in file]


def test_push_refuses(capfd, trained, hub, monkeypatch, tmp_path):
    import huggingface_hub
    from huggingface_hub import constants

    assert "is missing" in refused(capfd, "push", tmp_path, "me/tiny")
    hub.private = False
    assert "is there and public" in refused(capfd, "push", trained, "me/tiny", "--private")
    assert [what for what, *_ in hub.asked] == ["create"]
    assert "me//tiny" in refused(capfd, "push", trained, "me//tiny")
    monkeypatch.setattr(hub, "upload_folder", lambda self, **_: 1 / 0)
    assert "the Hub did not take me/tiny" in refused(capfd, "push", trained, "me/tiny")
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    assert "hf auth login" in refused(capfd, "push", trained, "me/tiny")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "offline mode" in refused(capfd, "push", trained, "me/tiny")


def test_the_card_is_what_the_hub_reads(capfd, tiny_settings, config_file):
    from huggingface_hub import ModelCard

    tiny_settings["card"] = {"license": "mit", "language": ["en"], "datasets": ["me/shapes"], "tags": ["tiny"]}
    assert call(capfd, "train", config_file(tiny_settings))[0] == 0
    best = Path(tiny_settings["run"]) / "best"
    data = ModelCard.load(best / "README.md", ignore_metadata_errors=False).data
    assert (data.license, data.language, data.datasets, data.library_name) == ("mit", ["en"], ["me/shapes"], "mmkt")
    assert {"multimodal", "text", "image", "audio", "tiny"} == set(data.tags)
    rows = [json.loads(line) for line in (best / "evaluation-test/metrics.jsonl").read_text().splitlines()]
    expected = {row["metric"]: row["value"] for row in rows if row["group"] == "all" and row["value"] is not None}
    assert {result.metric_type: result.metric_value for result in data.eval_results} == pytest.approx(expected)
    assert {(result.dataset_type, result.dataset_split) for result in data.eval_results} == {("me/shapes", "test")}
