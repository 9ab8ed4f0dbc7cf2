"""What a run logs beside its losses: whose gradients, probes, waiting, memory, FLOPs; and a window that is profiled."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from accelerate import Accelerator
from conftest import experiment
from sklearn.linear_model import Ridge
from torch import nn

from mmkt import launch, peaks, probes, telemetry
from mmkt.checkpoint import read_tensors
from mmkt.run import Run
from mmkt.telemetry import CLOCK, Meter, peak_memory
from mmkt.types import Batch, Predictions


def lines(run: object) -> list[dict]:
    return [json.loads(line) for line in (Path(str(run)) / "metrics.jsonl").read_text().splitlines()]


def steady(run: object) -> list[dict]:
    return [{k: v for k, v in line.items() if k not in CLOCK} for line in lines(run)]


# ---------------------------------------------------------------- every run


def test_two_runs_log_the_same_but_for_the_clock_and_probes_change_no_bit(tiny_settings, tmp_path):
    more = ["model.space.dropout=0.2", "train.log_every=2"]
    for run, probed in (("one", "true"), ("two", "true"), ("off", "false")):
        launch.train(experiment(tiny_settings, *more, f"run={tmp_path / run}", f"train.probes={probed}"))
    assert steady(tmp_path / "one") == steady(tmp_path / "two")
    bare = [{k: v for k, v in line.items() if not k.startswith("probe/")} for line in steady(tmp_path / "one")]
    assert steady(tmp_path / "off") == bare != steady(tmp_path / "one")
    for file in ("last/learner", "last/optimizer", "last/generators", "best/model"):
        tensors = [read_tensors(tmp_path / run / f"{file}.safetensors") for run in ("one", "off")]
        assert all(torch.equal(tensors[0][name], tensors[1][name]) for name in tensors[0]), file
    trained = [line for line in lines(tmp_path / "one") if "loss" in line]
    for line in trained:
        assert CLOCK - {"MFU"} <= line.keys()
        assert "MFU" not in line  # on a CPU
        assert 0 < line["data wait"] < 1
        assert line["memory GB"] > 0.1
        shares = [line[f"gradient share/{m}"] for m in ("text", "image", "audio")]
        assert sum(shares) == pytest.approx(1)
        assert min(shares) > 0
    assert [line["step"] for line in trained] == [2, 3, 4, 6]  # logged, or evaluated
    probed = [line for line in lines(tmp_path / "one") if "validation/kind/accuracy" in line]
    assert all({f"probe/kind/{m}" for m in ("text", "image", "audio")} <= line.keys() for line in probed)


def test_what_does_not_train_has_no_share_and_one_modality_no_probe(tiny_settings, tmp_path):
    tiny_settings["train"] |= {"steps": 2, "evaluate_every": 1}
    launch.train(experiment(tiny_settings, "transfer={name: full, frozen: [encoders.text, space.project.text]}"))
    launch.train(experiment(tiny_settings, "model.encoders.text=null", "model.encoders.audio=null", f"run={tmp_path / 'alone'}"))
    launch.train(experiment(tiny_settings, "train.select=loss", f"run={tmp_path / 'loss'}"))
    first = lines(tiny_settings["run"])[0]
    assert {k for k in first if k.startswith("gradient share/")} == {"gradient share/image", "gradient share/audio"}
    assert not [k for line in lines(tmp_path / "alone") for k in line if k.startswith(("gradient share/", "probe/"))]
    assert not [k for line in lines(tmp_path / "loss") for k in line if k.startswith("probe/")]


def test_shares_by_hand(tiny_settings):
    config = experiment(tiny_settings)
    setup = launch.build(config)
    learner, meter = setup.learner, Meter(setup.learner, Run(config.run, config, "x"), Accelerator())
    learner.begin(launch.plan_of(setup, config)[0])
    squares: dict[str, float] = dict.fromkeys(("text", "image", "audio"), 0.0)
    for name, p in learner.named_parameters():
        if p.requires_grad:
            p.grad = torch.randn_like(p)
            words = name.split(".")
            m = words[2] if words[1] == "encoders" else words[3] if words[1:3] == ["space", "project"] else None
            if m:
                squares[m] += float(p.grad.double().square().sum())
    meter.graded()
    found = meter._shares()
    for m, value in squares.items():
        assert found[f"gradient share/{m}"] == pytest.approx(value / sum(squares.values()), rel=1e-5)
    for p in learner.parameters():
        p.grad = None if p.grad is None else torch.full_like(p.grad, torch.inf)
    meter.graded()
    assert meter._shares() == {}


# ---------------------------------------------------------------- probes


class Head:
    vocabulary: dict = {}  # noqa: RUF012

    @staticmethod
    def outputs(vocabulary: dict) -> int:
        return 3


class Classify(Head):
    pass


class Regress(Head):
    pass


class Pieces:
    """As much of a model and of a feed as probes read."""

    def __init__(self, **labels):
        self.modalities = ("good", "noise")
        self.heads = {"kind": Classify(), "size": Regress()}
        self.labels = labels


def predictions(vectors: dict[str, list], rows: np.ndarray) -> Predictions:
    columns = {f"vector.{m}": pa.array(x, pa.list_(pa.float32())) for m, x in vectors.items()}
    there = {f"has.{m}": np.array([x is not None for x in some]) for m, some in vectors.items()}
    return Predictions(pa.table({"row": rows} | there | columns), {}, {})


def test_probes_find_what_is_there_and_nothing_in_noise():
    random, n = np.random.default_rng(0), 400
    y = random.integers(3, size=n)
    good = np.eye(3, 6)[y] + 0.8 * random.standard_normal((n, 6))
    vectors = {"good": list(good), "noise": list(random.standard_normal((n, 6)))}
    for k in range(0, n, 7):
        vectors["good"][k] = None
    rows = np.arange(100, 100 + n)
    labels, labelled = torch.full((600,), 99), torch.ones(600, dtype=torch.bool)
    labels[rows] = torch.from_numpy(y)
    labelled[rows[::5]] = False
    pieces = Pieces(kind=(labels, labelled))
    found = probes.measure(pieces, pieces, predictions(vectors, rows))
    assert found.keys() == {"probe/kind/good", "probe/kind/noise"}
    # the same by scikit-learn, on the rows that have a label and the modality
    kept = np.array([k % 5 != 0 and k % 7 != 0 for k in range(n)])
    x = good[kept].astype(np.float32) / np.linalg.norm(good[kept], axis=1, keepdims=True)
    order = np.random.default_rng(0).permutation(len(x))
    fitted, tested = order[: len(x) // 2], order[len(x) // 2 :]
    ridge = Ridge(alpha=probes.PENALTY).fit(x[fitted], np.eye(3)[y[kept][fitted]])
    expected = (ridge.predict(x[tested]).argmax(1) == y[kept][tested]).mean()
    assert found["probe/kind/good"] == pytest.approx(expected, abs=1e-6)
    assert expected > 0.6
    assert abs(found["probe/kind/noise"] - 1 / 3) < 0.12
    assert probes.measure(pieces, pieces, predictions(vectors, rows)) == found


def test_probes_of_few_rows_and_of_what_is_not_finite():
    rows = np.arange(6)
    pieces = Pieces(kind=(torch.arange(6) % 3, torch.ones(6, dtype=torch.bool)))
    vectors = {"good": [np.ones(4)] * 3 + [None] * 3, "noise": [np.full(4, np.nan)] * 6}
    found = probes.measure(pieces, pieces, predictions(vectors, rows))
    assert found.keys() == {"probe/kind/noise"}
    assert np.isnan(found["probe/kind/noise"])
    pieces.modalities = ("good",)
    assert probes.tasks(pieces) == []


# ---------------------------------------------------------------- the machine


def test_memory_is_a_peak():
    before = peak_memory()
    block = torch.ones(50_000_000)
    after = peak_memory()
    del block
    assert before > 5e7
    slack = 5e6  # the kernel counts a process's pages in batches
    assert after >= before - slack
    assert peak_memory() >= after - slack


def test_peaks_by_name():
    assert peaks.peak("NVIDIA H100 80GB HBM3", "bf16") == 989e12
    assert peaks.peak("NVIDIA H100 PCIe", "bf16") == 756e12
    assert peaks.peak("NVIDIA A100-SXM4-40GB", "tf32") == 156e12
    assert peaks.peak("NVIDIA L40S", "fp32") == 91.6e12
    assert peaks.peak("NVIDIA L4", "fp32") == 30.3e12
    assert peaks.peak("Tesla T4", "bf16") is None  # it has none
    assert peaks.peak("a card of tomorrow", "bf16") is None
    assert peaks.peak_of(Accelerator(cpu=True)) is None


def test_utilisation_is_flops_over_the_peak(tiny_settings, tmp_path, monkeypatch):
    launch.train(experiment(tiny_settings, f"run={tmp_path / 'plain'}"))
    monkeypatch.setattr(telemetry, "peak_of", lambda accelerator: 1e9)
    config = experiment(tiny_settings)
    setup = launch.build(config)
    meter = Meter(setup.learner, Run(tmp_path / "other", config, "x"), Accelerator())
    layers, x, row = nn.Sequential(nn.Linear(5, 7), nn.Linear(7, 3)), torch.randn(4, 5), torch.arange(4)
    with meter.counting(Batch({}, {}, {}, {}, {}, row, row, row, row)):
        layers(x).sum().backward()
    # a row: products of the forward, of the weights' gradients, and of what flows between the layers; two operations each
    assert meter.flops == 2 * (5 * 7 + 7 * 3) + 2 * (5 * 7 + 7 * 3) + 2 * 7 * 3
    launch.train(config)
    for line, plain in zip(lines(config.run), lines(tmp_path / "plain"), strict=True):
        assert {k: v for k, v in line.items() if k not in CLOCK} == {k: v for k, v in plain.items() if k not in CLOCK}
        if "loss" in line:
            assert line["MFU"] > 0
            ratios = line["MFU"] / line["rows/s"]
    assert ratios == pytest.approx(next(a["MFU"] / a["rows/s"] for a in lines(config.run)), rel=1e-6)


# ---------------------------------------------------------------- a window that is profiled


def light(data: dict) -> dict:
    """With one encoder: few operations."""
    data["model"]["encoders"] = {"audio": data["model"]["encoders"]["audio"]}
    return data


def test_a_window_is_profiled_and_changes_no_bit(tiny_settings, tmp_path, capsys):
    light(tiny_settings)
    launch.train(experiment(tiny_settings, f"run={tmp_path / 'plain'}"))
    config = experiment(tiny_settings, "train.profile={start: 2, steps: 3}")
    launch.train(config)
    assert steady(config.run) == steady(tmp_path / "plain")
    folder = Path(config.run) / "profile"
    assert {file.name for file in folder.iterdir()} == {"rank-0.json.gz", "rank-0.txt"}
    with gzip.open(folder / "rank-0.json.gz") as file:
        events = json.load(file)["traceEvents"]
    assert {e["name"] for e in events if str(e.get("name")).startswith("ProfilerStep")} == {
        f"ProfilerStep#{k}" for k in (2, 3, 4)
    }
    assert "aten::" in (folder / "rank-0.txt").read_text()
    assert "profiled: " in capsys.readouterr().err


def test_a_window_that_is_never_reached_is_said(tiny_settings, tmp_path, capsys):
    light(tiny_settings)
    launch.train(experiment(tiny_settings, "train.steps=2", "train.profile={start: 20, steps: 5}"))
    assert "nothing was profiled: training ended before step 21; lower train.profile.start" in capsys.readouterr().err
    assert not (Path(tiny_settings["run"]) / "profile").exists()
    cut = experiment(tiny_settings, "train.steps=4", "train.profile={start: 2, steps: 50}", f"run={tmp_path / 'cut'}")
    launch.train(cut)
    assert (tmp_path / "cut/profile/rank-0.json.gz").exists()  # what there was of it
