"""Every command and every block of code in the README, run as it stands there, on configs whose budgets are cut."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import yaml
from accelerate.commands import accelerate_cli
from conftest import call, png

from mmkt.conformance import examine, find

HOME = Path(__file__).parent.parent
README = (HOME / "README.md").read_text(encoding="utf-8")
REAL = os.environ.get("MMKT_DATA")
LAUNCHED: set[str] = set()  # scripts that a launcher has started: again they run in this process


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def commands() -> list[str]:
    """Without installing and without the tests themselves, which a fresh environment runs."""
    lines = [line for block in blocks("bash") for line in block.replace("\\\n", " ").splitlines()]
    lines = [re.sub(r'pip install -e "[^"]+" && ', "", line) for line in lines]
    return [line for line in lines if line != "pytest"]


@pytest.fixture(scope="module")
def desk(tmp_path_factory) -> Path:
    """A folder to type in: the project's configs with two steps and few rows, and what the README takes for granted."""
    folder = tmp_path_factory.mktemp("desk")
    (folder / "scripts").symlink_to(HOME / "scripts")
    for file in (HOME / "configs/experiment").glob("*.yaml"):
        config = yaml.safe_load(file.read_text())
        config["train"] = {name: value for name, value in config["train"].items() if name != "epochs"} | {"steps": 2}
        config["evaluate"] = {"resamples": 10}
        config["threads"] = 1
        if file.stem == "numerals":
            config["data"]["batch_size"] = 16
            config["data"]["source"] = {"name": "numerals", "rows": 64, "validation": 20, "test": 30}
        if file.stem == "digits":
            config["data"]["source"] |= {"copies": 1}
        (folder / "configs/experiment").mkdir(parents=True, exist_ok=True)
        (folder / "configs/experiment" / file.name).write_text(yaml.safe_dump(config))
    study = yaml.safe_load((HOME / "configs/study/fsdd.yaml").read_text())
    study["sources"] = {name: [*study["sources"][name], "model.encoders.audio.layers=1"] for name in ("pretrained", "random")}
    study |= {"grids": [{"sources": ["pretrained", "random"], "methods": ["fpt"], "lr": [0.001], "seeds": [0]}]}
    (folder / "configs/study").mkdir()
    ablation = yaml.safe_load((HOME / "configs/study/fusion_numerals.yaml").read_text())
    ablation["factors"]["fusion"] = {name: ablation["factors"]["fusion"][name] for name in ("concat", "sum")}
    ablation["settings"] = [text for text in ablation["settings"] if "epochs" not in text]
    ablation |= {"encoders": "as-is", "lr": [0.003], "seeds": [0, 1], "ensembles": {}, "resamples": 50}
    (folder / "configs/study/fusion_numerals.yaml").write_text(yaml.safe_dump(ablation))
    search = yaml.safe_load((HOME / "configs/search/numerals.yaml").read_text()) | {"trials": 2, "settings": []}
    (folder / "configs/search").mkdir()
    (folder / "configs/search/numerals.yaml").write_text(yaml.safe_dump(search))
    (folder / "configs/study/fsdd.yaml").write_text(yaml.safe_dump(study))
    random = np.random.default_rng(0)
    (folder / "scan.png").write_bytes(png(random.integers(0, 255, (8, 8), dtype=np.uint8)))
    soundfile.write(folder / "clip.wav", 0.1 * random.standard_normal(4000), 8000)
    shutil.copytree(HOME / "checkpoints/numerals-demo", folder / "checkpoints/numerals-demo")
    demo = folder / "checkpoints/numerals-demo/config.json"
    known = json.loads(demo.read_text())
    known["data"]["source"] |= {"rows": 64, "validation": 20, "test": 30}  # as the experiment's above
    known["evaluate"] |= {"resamples": 10, "severities": [5], "episodes": 5}
    known["threads"] = 1
    demo.write_text(json.dumps(known))
    for name in ("cats", "dogs"):
        (folder / "my/pictures" / name).mkdir(parents=True)
        for k in range(12):
            (folder / f"my/pictures/{name}/{k}.png").write_bytes(png(random.integers(0, 255, (9, 9, 3), dtype=np.uint8)))
    photos = [f"pictures/{'cats' if k % 2 else 'dogs'}/{k // 2}.png" for k in range(20)]
    lines = [f"{k},{'train' if k < 15 else 'test'},a {k}th,{photo},{k % 2}" for k, photo in enumerate(photos)]
    (folder / "my/manifest.csv").write_text("\n".join(["id,split,caption,photo,kind", *lines]) + "\n")
    return folder


def entered(command: str, capfd) -> tuple[int, str, str]:
    """A command of ours in this process: the same words, without the seconds that starting Python anew takes."""
    return call(capfd, *shlex.split(command, comments=True)[1:])


def typed(command: str, folder: Path) -> subprocess.CompletedProcess:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(
        command, shell=True, cwd=folder, env=os.environ | {"PATH": path}, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("command", commands(), ids=lambda command: " ".join(shlex.split(command, comments=True))[:60])
def test_command(command, desk, capfd, monkeypatch):
    if "DIR" in command:
        if not REAL:
            pytest.skip("MMKT_DATA is not set: the folder that has the real data sets")
        command = command.replace("DIR", f"{REAL}/digits")
    if command.startswith("mmkt ") and not command.startswith("mmkt runs"):  # one goes the whole way
        monkeypatch.chdir(desk)
        status, out, err = entered(command, capfd)
    elif command.startswith("accelerate launch "):
        monkeypatch.chdir(desk)
        script, *words = shlex.split(command, comments=True)[2:]
        if script in LAUNCHED:
            status, out, err = entered(f"mmkt {Path(script).stem} {shlex.join(words)}", capfd)
        else:  # the launcher starts a script in a process of its own
            LAUNCHED.add(script)
            monkeypatch.setattr(sys, "argv", shlex.split(command, comments=True))
            capfd.readouterr()
            accelerate_cli.main()
            (out, err), status = capfd.readouterr(), 0
    else:
        done = typed(command, desk)
        status, out, err = done.returncode, done.stdout, done.stderr
    assert status == 0, err[-3000:]
    assert out.strip()


def test_the_commands_that_have_to_be_there():
    found = " ".join(commands())
    for words in ("accelerate launch scripts/train.py", "scripts/evaluate.py", "torchrun --nproc_per_node 2", "mmkt predict"):
        assert words in found
    assert len(README.splitlines()) < 250


def test_a_wrong_command_would_be_noticed(desk):
    assert typed("mmkt lsit", desk).returncode


def test_code(desk, monkeypatch, capfd):
    """The Python: predictions in memory, then the fusion as a plugin."""
    monkeypatch.chdir(desk)
    memory, fusion = blocks("python")
    picture, waveform = np.zeros((8, 8), dtype=np.uint8), np.zeros(16_000, dtype=np.float32)
    exec(memory, {"picture": picture, "waveform": waveform})
    lab = desk / "my_lab/fusion"
    lab.mkdir(parents=True)
    (lab / "mean.py").write_text(fusion)
    more = "plugins=[my_lab] model.fusion=mean model.fusion.scale=2 run=runs/mean"
    status, _, err = entered(f"mmkt train configs/experiment/numerals.yaml {more}", capfd)
    assert status == 0, err[-3000:]
    found = examine(find("fusion", "my_lab.mean"), points=(1, 2, 3, 4, 5, 8))
    assert [finding for finding in found if finding.status != "kept"] == []


@pytest.mark.parametrize("alone", [False, True])
def test_experiment_files(desk, alone, capfd, monkeypatch):
    """The file as it stands, and without what it says to leave out for pictures alone; random weights stand in for the Hub's."""
    file = yaml.safe_load(blocks("yaml")[0])
    if alone:
        names = [f"{name}/{k}.png" for name in ("cats", "dogs") for k in range(12)]
        rows = [{"id": name, "image": f"pictures/{name}", "label": name.split("/")[0]} for name in names]
        (desk / "my/manifest.jsonl").write_text(
            "".join(json.dumps(row) + "\n" for row in rows)
        )  # as mmkt data prepare folder does
        file["data"] = {"manifest": "my/manifest.jsonl"}
        del file["model"]["encoders"]["text"], file["model"]["fusion"], file["transfer"]
        file["model"]["heads"], file["objectives"] = {"label": "classify"}, {"label": {"name": "classify", "task": "label"}}
    (desk / "mine.yaml").write_text(yaml.safe_dump(file))
    more = f"run=checkpoints/alone-{alone}" + ("" if alone else " data.validation=null")  # its manifest has two splits alone
    monkeypatch.chdir(desk)
    status, _, err = entered(
        "mmkt train mine.yaml model.encoders.image.weights=random model.encoders.image.size=32 train.epochs=1 "
        f"evaluate.resamples=10 threads=1 {more}",
        capfd,
    )
    assert status == 0, err[-3000:]


def test_transfer_settings(desk, capfd, monkeypatch):
    """What the README says of transfer, laid over the numerals."""
    block = yaml.safe_load(blocks("yaml")[1])
    (desk / "transfer.yaml").write_text(yaml.safe_dump({"base": "configs/experiment/numerals.yaml"} | block))
    monkeypatch.chdir(desk)
    status, out, err = entered("mmkt train transfer.yaml --dry-run", capfd)
    assert status == 0, err[-3000:]
    assert "phase probe" in err
    assert "phase full" in err
    assert re.search(r"encoders.text\D+[\d,]+\D+0 ", err)  # held while the first phase probes
