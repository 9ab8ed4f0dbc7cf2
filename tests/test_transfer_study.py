"""Transfer studies: rates chosen on validation, seeds, resuming, the table and its verdicts."""

from __future__ import annotations

import html.parser
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml
from conftest import call, rows_of_three, write
from forked import begun
from transformers import AutoModel

from mmkt import cli, report
from mmkt.config import check, read
from mmkt.parts import ConfigError, Parts
from mmkt.run import Run
from mmkt.statistics import Difference
from mmkt.studies import transfer_report
from mmkt.studies.runs import part
from mmkt.studies.transfer_gain import Cell, Transfer
from mmkt.studies.transfer_results import Gain, gather
from mmkt.study import Study


@pytest.fixture(scope="module")
def experiment(tmp_path_factory, tiny_bert) -> Path:
    folder = tmp_path_factory.mktemp("study")
    manifest = write(rows_of_three(80), folder / "rows.parquet")
    image = {"name": "borrow", "reads": "image", "body": str(tiny_bert), "size": 16, "channels": 1, "patch": 8}
    config = {
        "data": {"manifest": str(manifest), "batch_size": 12},
        "model": {"dim": 32, "encoders": {"image": image}, "heads": {"kind": "classify"}},
        "objectives": {"kind": {"name": "classify", "task": "kind"}},
        "train": {"steps": 4, "lr": 0.01, "evaluate_every": 2},
        "evaluate": {"resamples": 0},
        "trackers": [],
    }
    (folder / "experiment.yaml").write_text(yaml.safe_dump(config))
    return folder / "experiment.yaml"


def study_of(experiment: Path, **changes) -> dict:
    return {
        "experiment": str(experiment),
        "run": str(experiment.parent / "runs"),
        "sources": {"pretrained": [], "random": ["model.encoders.image.weights=random"]},
        "methods": {"fpt": ["transfer=fpt"], "full": ["transfer=full"]},
        "grids": [
            {"methods": ["full"], "lr": [0.01, 1e-7], "seeds": [0, 1]},
            {"methods": ["fpt"], "lr": [0.01], "seeds": [0], "fractions": [0.5]},
        ],
        "lr": 0.01,
        "by": "kind",
        "thresholds": [0.2],
    } | changes


def made(study: dict) -> Transfer:
    return Transfer(check(Study, study, Parts()))


@pytest.mark.parametrize("file", [Path(f"configs/study/{name}.yaml") for name in ("fsdd", "mnist")], ids=lambda file: file.stem)
def test_shipped_studies(file):
    assert Transfer(read(Study, file)).grids


@pytest.mark.parametrize(("changes", "words"), [
    ({"lr": 0.5}, "lr: 0.5 is in no grid; it is one of 1e-07, 0.01"),
    ({"metric": "kin/accuracy"}, "no task 'kin'; did you mean 'kind'"),
    ({"metric": "kind/mae"}, "metric: 'mae' does not judge kind"),
    ({"grids": [{"lr": [0.1], "sources": ["pretraind"]}]}, "grids.0.sources: there is no 'pretraind'; did you mean 'pretrained'"),
    ({"grids": [{"lr": [0.1]}, {"lr": [0.2]}]}, r"grids.1: the cell \\(pretrained, fpt\\) is in an earlier grid"),
    ({"grids": [{"lr": [0.1], "seeds": [1, 1]}]}, "grids.0.seeds: .* has a seed twice"),
    ({"sources": {"pretrained": ["model.encoders.image.wieghts=random"]}}, "wieghts.*did you mean 'weights'"),
    ({"settings": ["data.validation=null"]}, "data.validation: is null"),
])  # fmt: skip
def test_mistakes_in_a_study_are_told_before_the_first_run(experiment, changes, words):
    with pytest.raises(ConfigError, match=words.replace("\\\\", "\\")):
        made(study_of(experiment) | {"run": "nowhere"} | changes)
    assert not Path("nowhere").exists()


@pytest.fixture(scope="module")
def finished(experiment):
    transfer = made(study_of(experiment, run=str(experiment.parent / "finished")))
    transfer.carry_out()
    return transfer


def test_a_study_chooses_on_validation_and_reads_test_once(finished):
    transfer = finished
    cells = list(transfer.grids)
    assert len(cells) == 4
    for cell in cells:
        lr = transfer.chosen(cell)
        values = {key.lr: transfer.value(key, "validation") for key in transfer.sweep(cell)}
        assert values[lr] == max(values.values())
        for key in transfer.sweep(cell):
            tested = (transfer.folder(key) / "best" / "evaluation-test").exists()
            assert tested == (key.lr in (lr, 0.01))  # the chosen one's, and the one rate's for all
        assert [key.seed for key in transfer.finals(cell)] == transfer.grids[cell].seeds
    times = {file: file.stat().st_mtime_ns for file in Path(transfer.study.run).rglob("*") if file.suffix == ".jsonl"}
    Transfer(transfer.study).carry_out()
    assert {file: file.stat().st_mtime_ns for file in times} == times  # nothing was trained again
    assert not list(Path(transfer.study.run).rglob("last/*.safetensors"))


def test_the_report(finished, capsys, tmp_path):
    results = gather(finished)
    assert not results.unfinished
    assert [line.cell for line in results.lines] == list(finished.grids)
    gains = {(gain.method, gain.fraction): gain for gain in results.gains}
    assert set(gains) == {("full", 1.0), ("fpt", 0.5)}
    full = gains["full", 1.0]
    own = [[finished.value(key, "test") for key in finished.finals(Cell(s, "full", 1.0))] for s in ("pretrained", "random")]
    assert full.swept.mean == pytest.approx(np.mean(own[0]) - np.mean(own[1]))
    assert full.verdict == full.hypothesis == "sighting"
    assert full.fixed is not None
    lines = {line.cell: line for line in results.lines}
    body = sum(x.numel() for x in AutoModel.from_pretrained(finished_body(finished)).encoder.parameters())
    everything, little = lines[Cell("pretrained", "full", 1.0)], lines[Cell("pretrained", "fpt", 0.5)]
    assert everything.trained == everything.numbers > body
    assert little.trained < everything.trained - 0.8 * body
    assert little.delta < everything.delta
    page = transfer_report.write(results)
    text = page.read_text()
    assert text.count("<svg") == 4
    assert "http" not in text.replace("http://www.w3.org", "")  # nothing is fetched
    html.parser.HTMLParser().feed(text)
    assert "| pretrained, full |" in (page.parent / "report.md").read_text()
    data = json.loads((page.parent / "results.json").read_text())
    assert len(data["cells"]) == 4
    assert {row.study for row in report.read(page.parent / "metrics.jsonl")} == {"finished"}
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(study_of_run(finished)))
    cli.main(["transfer", str(tmp_path / "study.yaml"), "--report", "--json"])
    assert json.loads(capsys.readouterr().out) == data
    cli.main(["transfer", str(tmp_path / "study.yaml"), "--report"])
    assert "sighting" in capsys.readouterr().out


@pytest.mark.parametrize(("low", "p", "corrected", "needed", "words"), [
    (0.01, 0.03, 0.09, 4.0, " (p 0.03 by itself, which the correction over the methods takes to 0.09)"),
    (-0.01, 0.03, 0.09, 4.0, " (p 0.03 by itself, which the correction over the methods takes to 0.09)"),
    (-0.01, 0.01, 0.03, 4.0, " (p 0.01 by itself, but its interval holds 0)"),
    (-0.01, 0.2, 0.4, 17.0, " (it would take 17 seeds at 80 % power)"),
    (0.01, 0.06, 0.1, 7.0, " (it would take 7 seeds at 80 % power)"),
    (-0.01, 0.2, 0.4, np.inf, " (with these test rows a thousand seeds would not tell a difference this small at 80 % power)"),
    (-0.01, 0.2, 0.4, np.nan, ""),
])  # fmt: skip
def test_why_a_gain_cannot_be_told(low, p, corrected, needed, words):
    gain = Gain("full", 1.0, Difference(0.02, low, 0.05, p, 5, needed), corrected, None, None)
    assert gain.verdict == "not distinguishable"
    assert transfer_report._needed(gain) == words


def finished_body(transfer):
    return transfer.config.model.encoders["image"]["body"]


def study_of_run(transfer):
    return transfer.study.model_dump(mode="json")


def test_a_killed_study_ends_with_the_same_table(experiment, finished, tmp_path):
    grids = [{"methods": ["full"], "lr": [0.01], "seeds": [0, 1]}]
    study = study_of(experiment, run=str(tmp_path / "killed"), grids=grids, lr=None)
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(study))
    job = begun(cli.main, ["transfer", str(tmp_path / "study.yaml")], said=tmp_path / "said")
    deadline = time.monotonic() + 120
    while not list((tmp_path / "killed").glob("*/last/state.json")) and time.monotonic() < deadline:
        time.sleep(0.02)
    job.kill()
    job.join()
    transfer = made(study)
    assert gather(transfer).unfinished
    transfer.carry_out()
    for line in gather(transfer).lines:
        keys = finished.finals(line.cell, fixed=True)  # the same trainings, never cut off
        assert line.values == [finished.value(key, "test") for key in keys]
        assert line.validation[0.01] == finished.value(keys[0], "validation")


def test_a_rate_that_ends_in_nan_is_never_chosen(experiment, tmp_path):
    study = study_of(experiment, run=str(tmp_path / "runs"), grids=[{"lr": [1e30, 0.01], "seeds": [0]}], lr=None)
    study |= {"methods": {"full": ["train.clip=null"]}, "sources": {"pretrained": []}, "baseline": "pretrained"}
    transfer = made(study)
    transfer.carry_out()
    assert transfer.chosen(Cell("pretrained", "full", 1.0)) == 0.01
    assert "not finite" in (tmp_path / "runs" / "pretrained-full-lr1e+30-seed0" / "failed.json").read_text()
    study["grids"] = [{"lr": [1e30], "seeds": [0]}]
    with pytest.raises(ConfigError, match=r"every learning rate of \(pretrained, full\) ended in a loss that is not finite"):
        made(study).carry_out()


def test_a_study_stops_in_good_order(experiment, tmp_path, monkeypatch, capfd):
    study = study_of(experiment, run=str(tmp_path / "runs"), grids=[{"methods": ["fpt"], "lr": [0.01], "seeds": [0]}], lr=None)
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(study))
    plain = Run.log

    def log(self, values):
        plain(self, values)
        if values["step"] == 2:
            signal.raise_signal(signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(Run, "log", log)
        status, _, err = call(capfd, "transfer", tmp_path / "study.yaml")
    assert status == 75
    assert "type the same command again" in err
    assert call(capfd, "transfer", tmp_path / "study.yaml")[0] == 0
    assert not gather(made(study)).unfinished


@pytest.mark.parametrize("text", ["0/2", "3/2", "a/b", "2", "1/0"])
def test_parts_that_are_none(text):
    with pytest.raises(ValueError, match="--part takes I/N"):
        part(text)


def test_two_machines_share_the_cells(experiment, tmp_path):
    study = study_of(experiment, run=str(tmp_path / "runs"), grids=[{"methods": ["fpt"], "lr": [0.01], "seeds": [0]}], lr=None)
    made(study).carry_out(part=(2, 2))
    assert gather(made(study)).unfinished == [Cell("pretrained", "fpt", 1.0)]


@pytest.mark.slow
def test_several_at_once_and_a_worker_ends_with_its_parent(tmp_path):
    """A study that is killed and typed again must find nobody at work in its folders."""
    script = tmp_path / "crew.py"
    script.write_text(
        "import os, pathlib, sys, time\n"
        "from mmkt.studies import runs\n"
        "def work(training, threads):\n"
        "    pathlib.Path(training, str(os.getpid())).touch()\n"
        "    time.sleep(60)\n"
        "runs._logged = work\n"
        "if __name__ == '__main__':\n"
        "    with runs.Crew(2) as crew:\n"
        "        crew.run([(k, sys.argv[1]) for k in range(2)], lambda key: [])\n"
    )
    (tmp_path / "seen").mkdir()
    job = subprocess.Popen([sys.executable, str(script), str(tmp_path / "seen")], start_new_session=True)
    deadline = time.monotonic() + 120
    while len(list((tmp_path / "seen").iterdir())) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    workers = [int(file.name) for file in (tmp_path / "seen").iterdir()]
    assert len(workers) == 2
    job.kill()
    job.wait()
    deadline = time.monotonic() + 20
    while any(Path(f"/proc/{pid}").exists() for pid in workers) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(Path(f"/proc/{pid}").exists() for pid in workers)
