"""On a CUDA device: what it answers is what a CPU answers, and a run that was stopped goes on as if it had not been."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import experiment, rows_of_three, settings, write

from mmkt import checkpoint, launch, report, retrieval, subsets, train
from mmkt.copies import on_device
from mmkt.evaluate import evaluate, feed_of
from mmkt.model import Model
from mmkt.parts import Parts
from mmkt.predictions import predict, predict_subsets
from mmkt.score import About
from mmkt.types import Batch

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")]
HOME = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def aligned(tmp_path_factory, tiny_bert) -> Path:
    """Trained on the GPU, with figures in every room of an evaluation."""
    folder = tmp_path_factory.mktemp("gpu")
    data = settings(write(rows_of_three(200), folder / "rows.parquet"), tiny_bert, folder / "run")
    data["objectives"]["near"] = "align"
    launch.train(experiment(data, "train.steps=40", "train.evaluate_every=20", "data.dropout.text=0.3"))
    return folder / "run/best"


def test_answers_are_the_cpus(aligned):
    model = Model.from_pretrained(aligned)
    feed, _ = feed_of(model, model.config, ["test"], Parts())
    rows, names = feed.rows("test"), model.modalities
    every = subsets.power_set(names)
    here = predict_subsets(model, feed, rows, every, vectors=True)
    model.to("cuda")
    there = predict_subsets(model, feed, rows, every, vectors=True, device="cuda")
    for a, b in zip(here, there, strict=True):
        assert logits(a) == pytest.approx(logits(b), abs=2e-3)
    assert logits(there[-1]) == pytest.approx(logits(predict(model, feed, rows, device="cuda")), abs=1e-5)
    items = np.arange(len(rows))
    cells = dict.fromkeys(names, items)
    found = [retrieval.measure(x[-1], names, items, cells, about=About(), resamples=0) for x in (here, there)]
    assert [row.value for row in found[0]] == pytest.approx([row.value for row in found[1]], abs=0.06)


def logits(predictions) -> np.ndarray:
    return np.array(predictions.table["kind.logits"].to_pylist())


def test_the_whole_evaluation(aligned, tmp_path):
    (tmp_path / "prompts.json").write_text(json.dumps({"en": {"classes": {f"k{k}": f"large {k}" for k in range(8)}}}))
    more = ["corruptions=true", "severities=[5]", f"prompts={tmp_path}/prompts.json", "shots=[1,4]", "episodes=5", "page=true"]
    found, folder = evaluate(str(aligned), [f"evaluate.{text}" for text in more], out=str(tmp_path / "out"))
    assert set(found.across) == {"subsets", "missing", "corruptions", "retrieval", "zero_shot", "few_shot"}
    assert (folder / "report.html").stat().st_size > 50_000
    full = next(row for row in found.rows if (row.metric, row.group) == ("accuracy", "all"))
    assert full.value > 0.3, "chance is one in eight"


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_a_stopped_run_goes_on_as_if_it_had_not_been(tmp_path, tiny_bert, precision):
    data = settings(write(rows_of_three(120), tmp_path / "rows.parquet"), tiny_bert, tmp_path / "whole")
    steps = ["train.steps=12", "train.evaluate_every=6", "train.save_every=6", f"train.precision={precision}"]
    launch.train(experiment(data, *steps))
    data["run"] = str(tmp_path / "halves")
    from accelerate.state import AcceleratorState, PartialState

    from mmkt.stop import Stopped

    AcceleratorState._reset_state()
    PartialState._reset_state()
    with pytest.raises(Stopped):
        launch.train(experiment(data, *steps), max_time=1e-9)
    AcceleratorState._reset_state()
    PartialState._reset_state()
    launch.train(experiment(data, *steps), resume=True)
    one, two = (checkpoint.read_tensors(tmp_path / name / "last/learner.safetensors") for name in ("whole", "halves"))
    if precision == "bf16":
        apart = [name for name in one if not torch.equal(one[name], two[name])]
        assert not apart, f"{len(apart)} of {len(one)} tensors"
    for name in one:  # in full precision convolutions' gradients are added up in no fixed order
        assert torch.allclose(one[name].double(), two[name].double(), atol=2e-3), name


def test_sharding_on_one_device(tmp_path, tiny_bert):
    """FSDP2 through accelerate, on NCCL: it trains, evaluates, and the figures are those of a plain evaluation."""
    data = settings(write(rows_of_three(120), tmp_path / "rows.parquet"), tiny_bert, tmp_path / "run")
    file = tmp_path / "experiment.json"
    file.write_text(json.dumps(data))
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(HOME / "configs/accelerate/fsdp2.yaml"),
               "--num_processes", "1", str(HOME / "scripts/train.py"), str(file)]  # fmt: skip
    done = subprocess.run(
        command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    sharded = {(r.metric, r.group): r.value for r in report.read(tmp_path / "run/best/evaluation-test/metrics.jsonl")}
    found, _ = evaluate(str(tmp_path / "run/best"), ["evaluate.subsets=false"], out=str(tmp_path / "out"))
    assert {(r.metric, r.group): r.value for r in found.rows} == pytest.approx(sharded, abs=1e-3, nan_ok=True)


@pytest.mark.parametrize(
    "more",
    [
        [],
        ["train.precision=bf16", "train.accumulate=2"],
        ["model.fusion=mopoe", "train.clip=null"],
        ["model.fusion=dynamic_gate"],
    ],
)
def test_no_step_makes_the_host_wait(tmp_path, tiny_bert, monkeypatch, more):
    """The device itself objects; the first step, in which libraries set themselves up, is let pass."""
    data = settings(write(rows_of_three(120), tmp_path / "rows.parquet"), tiny_bert, tmp_path / "run")
    data["data"]["validation"] = None
    step, done = train._Loop.step, []

    def strict(*arguments):
        torch.cuda.set_sync_debug_mode("error" if done else "default")
        try:
            step(*arguments)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        done.append(None)

    monkeypatch.setattr(train._Loop, "step", strict)
    launch.train(experiment(data, "train.steps=6", "data.dropout={text: 0.3, audio: 0.6}", "train.log_every=6", *more))
    assert len(done) == 6


def test_batches_copied_ahead_are_the_same_batches():
    """Through slow steps and freed memory: a copy that were handed out too early, or overwritten, would differ."""
    x = torch.arange(8)
    batches = [Batch({"m": {"x": torch.full((512, 512), float(k))}}, {"m": x > 3}, {}, {}, {}, x + k, x, x, x) for k in range(20)]
    heavy = torch.randn(2048, 2048, device="cuda")
    for k, batch in enumerate(on_device(iter([batch.pinned() for batch in batches]), torch.device("cuda"))):
        heavy = torch.tanh(heavy @ heavy)
        sums = batch.inputs["m"]["x"].mean(), batch.row - k
        del batch
        torch.full((512, 512), -1.0, device="cuda")
        assert float(sums[0]) == k
        assert torch.equal(sums[1].cpu(), x)
