"""Accelerate's configs, trackers and the compiled forward."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.utils import LoggerType
from conftest import experiment

from mmkt import experiment as settings_of
from mmkt import launch, launcher
from mmkt.parts import ConfigError

HOME = Path(__file__).parent.parent
CONFIGS = sorted((HOME / "configs/accelerate").glob("*.yaml"))


def losses(run: Path) -> list[float]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: file.stem)
def test_accelerate_reads_its_configs(file):
    config = load_config_from_file(str(file))
    assert config.num_processes == (1 if file.stem in ("cpu", "single") else 2)
    assert config.use_cpu == (file.stem == "cpu")


@pytest.mark.parametrize("name", ["cpu", "ddp", "fsdp2"])
def test_accelerate_launches_with_them(tiny_settings, config_file, name):
    for modality in ("text", "image"):  # whose libraries take long to import
        del tiny_settings["model"]["encoders"][modality]
    environment = os.environ | {"ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1"}
    words = ["-m", "accelerate.commands.launch", "--config_file", HOME / f"configs/accelerate/{name}.yaml"]
    words += [HOME / "scripts/train.py", config_file(tiny_settings), "--json"]
    done = subprocess.run(
        [sys.executable, *map(str, words)], env=environment, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout)["rows"]  # once, however many processes there are
    facts = json.loads((Path(tiny_settings["run"]) / "environment.json").read_text())
    assert facts["processes"] == (1 if name == "cpu" else 2)
    assert ("FSDP needs GPUs" in done.stderr) == (name == "fsdp2")


@pytest.mark.parametrize("name", ["DEEPSPEED", "MEGATRON_LM", "PARALLELISM_CONFIG"])
def test_other_ways_to_split_the_model_are_refused(tiny_settings, monkeypatch, name):
    monkeypatch.setenv(f"ACCELERATE_USE_{name}", "true")
    with pytest.raises(ConfigError, match=rf"asks for {name}.*fsdp2\.yaml"):
        launch.train(experiment(tiny_settings))


def test_fsdp_with_other_settings_is_refused(tiny_settings, monkeypatch):
    """What accelerate launch hands on for FSDP1 with everything on."""
    for name, value in {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "1", "FSDP_AUTO_WRAP_POLICY": "SIZE_BASED_WRAP"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("FSDP_CPU_RAM_EFFICIENT_LOADING", "true")
    with pytest.raises(ConfigError) as refused:
        launch.train(experiment(tiny_settings))
    for line in ("fsdp_version: is 1", "fsdp_auto_wrap_policy: is size_based_wrap", "fsdp_cpu_ram_efficient_loading: is true"):
        assert f"fsdp_config.{line}: set " in str(refused.value)
    assert "fsdp2.yaml has it so" in str(refused.value)
    assert not Path(tiny_settings["run"]).exists()


# ---------------------------------------------------------------- trackers


def test_trackers_are_those_that_accelerate_knows():
    known = {kind.value for kind in LoggerType} - {"all"}
    assert set(settings_of.Tracker.__args__) == known


def test_a_tracker_that_is_not_installed_is_refused(tiny_settings, monkeypatch):
    monkeypatch.setattr(launcher.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="wandb is not installed: pip install wandb"):
        launch.train(experiment(tiny_settings, "trackers=[wandb]"))


def test_the_tracker_is_told_every_setting(tiny_settings):
    from accelerate.tracking import TensorBoardTracker

    told, plain = {}, TensorBoardTracker.store_init_configuration
    TensorBoardTracker.store_init_configuration = lambda self, values: (told.update(values), plain(self, values))
    try:
        launch.train(experiment(tiny_settings, "trackers=[tensorboard]", "seed=3", "train.steps=2"))
    finally:
        TensorBoardTracker.store_init_configuration = plain
    assert told["seed"] == 3
    assert told["train.lr"] == 3e-3
    assert told["model.fusion.name"] == "concat"
    assert list((Path(tiny_settings["run"]) / "tensorboard").rglob("events.out.tfevents*"))


# ---------------------------------------------------------------- the compiled forward


@pytest.mark.slow  # a minute of tracing; every encoder and fusion is traced in its own test
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # torch's own, while it traces
def test_compiled_training_has_the_losses_of_the_plain_one(tiny_settings, tmp_path, monkeypatch):
    calls, plain = [], torch.nn.Module.compile

    def quick(module):
        calls.append(module)
        plain(module, backend="aot_eager")  # traces as the default does, without the compiler's minutes

    monkeypatch.setattr(torch.nn.Module, "compile", quick)
    for name in ("plain", "compiled"):
        # the pictures' network is traced in its encoder's own test
        more = ["model.encoders.image=null", f"run={tmp_path / name}", f"train.compile={name == 'compiled'}"]
        launch.train(experiment(tiny_settings, *more))
        torch._dynamo.reset()
    assert len(calls) == 1
    one, two = losses(tmp_path / "plain"), losses(tmp_path / "compiled")
    assert len(one) == 6
    assert two == pytest.approx(one, abs=1e-5)


def test_the_first_process_of_a_study_leads_it_and_the_others_have_nothing_to_do(monkeypatch):
    launched = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "TORCHELASTIC_RUN_ID": "x"}
    for rank, jobs in (("0", 2), ("1", 0)):
        for name, value in (launched | {"RANK": rank, "LOCAL_RANK": rank}).items():
            monkeypatch.setenv(name, value)
        assert launcher.lead() == jobs
        assert not any(name in os.environ for name in (*launched, "RANK", "LOCAL_RANK"))  # it is a process by itself now
    assert launcher.lead() == 1
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="--part 1/2"):
        launcher.lead()
