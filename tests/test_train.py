"""The loop: what it learns, stops at, saves, resumes; objectives and schedules against known answers."""

from __future__ import annotations

import json
import textwrap
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from conftest import experiment
from forked import begun
from safetensors.torch import load_file
from torch import nn

import mmkt
from mmkt import cli, launch, optim
from mmkt.checkpoint import CheckpointError
from mmkt.config import check, override
from mmkt.evaluate import evaluate
from mmkt.experiment import Experiment
from mmkt.objectives.align import Align
from mmkt.objectives.classify import Classify
from mmkt.objectives.regress import Regress
from mmkt.objectives.tag import Tag
from mmkt.parts import ConfigError, Parts
from mmkt.run import Run
from mmkt.stop import Stopped
from mmkt.telemetry import CLOCK, TrainingError, better
from mmkt.train import fit
from mmkt.types import Batch, Encoded, Outputs


def lines(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


# ---------------------------------------------------------------- the loop


def test_checkpointing_changes_no_loss_and_only_encoders_that_train(tiny_settings, monkeypatch):
    called, found = [], []
    for name in ("hf_text", "timm_image", "spectrogram"):
        cls = Parts().find("encoders", name)
        plain = cls.checkpoint_gradients
        monkeypatch.setattr(cls, "checkpoint_gradients", lambda self, n=name, f=plain: (called.append(n), f(self)))
    tiny_settings["transfer"] = {"name": "full", "frozen": ["encoders.image"]}
    for on in ("false", "true"):
        run = f"{tiny_settings['run']}-{on}"
        launch.train(experiment(tiny_settings, f"train.checkpointing={on}", f"run={run}"))
        found.append([line["loss"] for line in lines(Path(run)) if "loss" in line])
        assert called == ([] if on == "false" else ["hf_text", "spectrogram"])
    assert found[1] == pytest.approx(found[0], abs=1e-5)


def test_what_is_cut_is_counted_and_said_once(tiny_settings, capsys):
    encoders = tiny_settings["model"]["encoders"]
    encoders["audio"]["seconds"] = 0.2  # clips have 0.15 to 0.3
    launch.train(experiment(tiny_settings))
    said = [line for line in capsys.readouterr().err.splitlines() if "longer than" in line]
    assert len(said) == 1
    cut, seen = (int(word) for word in said[0].split() if word.isdigit())
    # 6 steps of 12 rows and the one that looks for what is unreached, validation twice, the test split
    assert seen == 7 * 12 + 2 * 24 + 24
    assert said[0].startswith("audio: ")
    assert 0.4 < cut / seen < 0.9
    model = mmkt.load(Path(tiny_settings["run"]) / "best")
    model.predict([{"audio": (np.zeros(n, dtype=np.float32), 8000)} for n in (1600, 1601)])
    assert "audio: 1 of 2 items read were longer" in capsys.readouterr().err
    encoders["audio"]["seconds"] = 0.5
    launch.train(experiment(tiny_settings, f"run={tiny_settings['run']}-whole"))
    assert "longer than their encoder takes" not in capsys.readouterr().err


def test_it_learns_what_takes_all_modalities(tiny_settings):
    rows = launch.train(experiment(tiny_settings, "train.steps=60", "train.evaluate_every=20"))
    accuracy = {r.group: r for r in rows if r.metric == "accuracy"}
    assert accuracy["all"].value > 0.8
    assert accuracy["all"].low <= accuracy["all"].value <= accuracy["all"].high
    assert {"domain=indoor", "domain=outdoor", "group=g0"} <= set(accuracy)
    run = Path(tiny_settings["run"])
    assert {"config.json", "environment.json", "metrics.jsonl", "best", "last"} <= {p.name for p in run.iterdir()}
    card = (run / "best/README.md").read_text()
    assert f"{accuracy['all'].value:.4f}" in card
    assert not list(run.rglob("*.pkl")) + list(run.rglob("*.pt")) + list(run.rglob("*.bin"))


def test_deaf_it_cannot_learn_more_than_half(tiny_settings):
    """The negative control of the test above: without the sound one bit of three cannot be known."""
    changed = override(tiny_settings, ["model.encoders.audio=null", "train.steps=60", "train.evaluate_every=20"])
    rows = launch.train(experiment(changed))
    assert next(r.value for r in rows if r.metric == "accuracy") <= 0.75


def test_early_stopping_restores_the_best(tiny_settings):
    """With a rate of nearly zero after the first step nothing gets better, and with a huge one it gets worse."""
    config = experiment(tiny_settings, "train.steps=40", "train.evaluate_every=2", "train.patience=3", "train.lr=1e-9")
    launch.train(config)
    run = Path(config.run)
    values = [line["validation/kind/accuracy"] for line in lines(run) if "validation/kind/accuracy" in line]
    assert len(values) == 1 + 3  # the first, and three that are not better
    state = json.loads((run / "last/state.json").read_text())["progress"]
    assert state["done"]
    assert state["best_step"] == 2
    assert state["best"] == values[0]


def test_resume_gives_the_run_that_was_never_stopped(tiny_settings, tmp_path):
    base = ["train.steps=12", "train.evaluate_every=4", "train.accumulate=2", "data.dropout={text: 0.2, audio: 0.3}"]
    base += ["model.space.dropout=0.1", "model.encoders.image.augment=true"]
    whole = experiment(tiny_settings, *base, f"run={tmp_path / 'whole'}")
    launch.train(whole)
    torch.manual_seed(123)
    stopped = experiment(tiny_settings, *base, f"run={tmp_path / 'stopped'}")

    class Killed(BaseException):
        pass

    def kill(accelerator, model, count=[0]):  # noqa: B006
        count[0] += 1
        if count[0] == 2 * 6 + 1:  # in the seventh step: the last save was after the fourth
            raise Killed
        return accelerator(model)

    original = Accelerator.backward
    Accelerator.backward = lambda self, loss: kill(lambda _: original(self, loss), None)
    try:
        with pytest.raises(Killed):
            launch.train(stopped)
    finally:
        Accelerator.backward = original
    assert json.loads((tmp_path / "stopped/last/state.json").read_text())["progress"]["total"] == 4
    launch.train(stopped, resume=True)
    for name in ("last/learner.safetensors", "last/optimizer.safetensors", "best/model.safetensors"):
        one, two = (load_file(tmp_path / run / name) for run in ("whole", "stopped"))
        assert one.keys() == two.keys()
        assert all(torch.equal(one[k], two[k]) for k in one), name
    one, two = ([{k: v for k, v in x.items() if k not in CLOCK} for x in lines(tmp_path / r)] for r in ("whole", "stopped"))
    assert one == two


def test_a_run_is_never_overwritten_and_resumes_only_unchanged(tiny_settings):
    launch.train(experiment(tiny_settings))
    with pytest.raises(CheckpointError, match="has a run already"):
        launch.train(experiment(tiny_settings))
    with pytest.raises(CheckpointError, match=r"another train\.lr"):
        launch.train(experiment(tiny_settings, "train.lr=1e-5"), resume=True)
    before = lines(Path(tiny_settings["run"]))
    launch.train(experiment(tiny_settings), resume=True)  # finished: evaluates only
    assert lines(Path(tiny_settings["run"])) == before
    with pytest.raises(CheckpointError, match="no run to resume"):
        launch.train(experiment(tiny_settings, "run=" + tiny_settings["run"] + "2"), resume=True)


def test_a_kill_while_training_leaves_a_checkpoint_that_loads(tiny_settings, config_file, tmp_path):
    tiny_settings["train"] |= {"steps": 5000, "evaluate_every": 1, "save_every": 1}
    run = Path(tiny_settings["run"])
    process = begun(cli.main, ["train", str(config_file(tiny_settings))], said=tmp_path / "said")
    try:
        deadline = time.monotonic() + 120
        while not (run / "metrics.jsonl").exists() or len((run / "metrics.jsonl").read_text().splitlines()) < 8:
            assert process.exitcode is None, (tmp_path / "said").read_text()[-3000:]
            assert time.monotonic() < deadline
            time.sleep(0.05)
    finally:
        process.kill()
        process.join()
    assert mmkt.load(run / "best").predict([{"text": "it is large"}])
    state = json.loads((run / "last/state.json").read_text())
    assert state["progress"]["total"] >= 3


def test_a_loss_that_is_not_finite_stops_with_the_rows(tiny_settings):
    config = experiment(tiny_settings, "train.log_every=2")
    setup = launch.build(config)
    objective = setup.learner.objectives["kind"]
    plain = objective.forward
    objective.forward = lambda model, batch, outputs: plain(model, batch, outputs) * (float("nan") if 7 in batch.row else 1.0)
    accelerator = Accelerator()
    run = Run(config.run, config, "x")
    setup.learner.unreached = lambda batch: []
    with pytest.raises(TrainingError, match="nonfinite-0"):
        fit(setup.learner, setup.feed, launch.plan_of(setup, config), run, accelerator, config.train)
    assert 7 in json.loads((run.folder / "nonfinite-0.json").read_text())["rows"]


def test_what_no_objective_reaches_is_named(tiny_settings):
    tiny_settings["model"]["heads"]["size"] = "regress"
    with pytest.raises(TrainingError, match=r"no objective reaches them: heads\.size"):
        launch.train(experiment(tiny_settings))


def test_probe_leaves_encoders_untouched_to_the_bit(tiny_settings):
    config = experiment(tiny_settings, "transfer=probe")
    before = {k: v.clone() for k, v in launch.build(config).learner.model.state_dict().items()}
    launch.train(config)
    after = mmkt.load(Path(config.run) / "best").state_dict()
    changed = {k.split(".")[0] for k in before if not torch.equal(before[k], after[k])}
    assert changed == {"space", "fusion", "heads"}
    saved = load_file(Path(config.run) / "last/learner.safetensors")
    parameters = dict(launch.build(config).learner.named_parameters())
    assert {k.split(".")[1] for k in saved if k in parameters} == {"space", "fusion", "heads"}


def test_patterns_that_match_nothing_are_refused(tiny_settings):
    with pytest.raises(ConfigError, match=r"'encoder\.text' matches no parameter; there are encoders\.audio"):
        launch.train(experiment(tiny_settings, "transfer={name: full, frozen: [encoder.text]}"))


def test_several_tasks_with_partly_missing_labels_and_alignment(tiny_settings, tmp_path):
    from conftest import rows_of_three, write

    rows = rows_of_three(120)
    random = np.random.default_rng(3)
    for row in rows:
        for column in ("kind", "tags", "size"):
            if random.random() < 0.3:
                row[column] = None
    tiny_settings["data"]["manifest"] = str(write(rows, tmp_path / "m.parquet"))
    tiny_settings["model"]["heads"] = {"kind": "classify", "tags": "tag", "size": "regress"}
    tiny_settings["objectives"] = {
        "kind": {"name": "classify", "task": "kind", "class_weights": "balanced", "label_smoothing": 0.05, "focal": 1.0},
        "tags": {"name": "tag", "task": "tags", "weight": 0.5, "class_weights": "balanced"},
        "size": {"name": "regress", "task": "size", "loss": "huber"},
        "align": {"weight": 0.1},
    }
    tiny_settings["data"]["balance"] = "kind"
    tiny_settings["data"]["group_by_length"] = "audio"
    found = launch.train(
        experiment(
            tiny_settings, "train.steps=80", "train.evaluate_every=40", "train.select=loss", "evaluate.metrics={ece: {bins: 5}}"
        )
    )
    value = {(r.task, r.metric): r.value for r in found if r.group == "all"}
    assert value["kind", "accuracy"] > 0.5
    assert value["tags", "macro_f1"] > 0.7
    assert value["size", "r2"] > 0.7
    assert ("kind", "ece") in value
    with pytest.raises(ConfigError, match=r"compare the rows of a batch"):
        launch.train(experiment(tiny_settings, "train.accumulate=2", f"run={tmp_path / 'other'}"))


def test_alignment_alone_is_selected_by_its_loss(tiny_settings):
    tiny_settings["model"]["heads"] = {}
    tiny_settings["objectives"] = {"align": {}}
    assert launch.train(experiment(tiny_settings, "transfer={name: full, frozen: [fusion]}")) == []
    assert any("validation/loss" in line for line in lines(Path(tiny_settings["run"])))


def test_several_captions_a_picture_train_contrastively(tiny_settings, tiny_manifest, tmp_path):
    """A JSONL of pictures with lists of captions: one is drawn at a time, resumed or not; joined is another training."""
    rows = []
    for k, row in enumerate(pq.read_table(tiny_manifest, columns=["image", "text"]).slice(0, 24).to_pylist()):
        (tmp_path / f"{k}.png").write_bytes(row["image"])
        text = [row["text"], "what is it", "the round small red"][: k % 3 + 1]
        rows.append({"image": f"{k}.png", "text": text, "split": "train" if k < 16 else "validation" if k < 20 else "test"})
    manifest = tmp_path / "captions.jsonl"
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    del tiny_settings["model"]["encoders"]["audio"]
    tiny_settings["model"]["heads"] = {}
    tiny_settings["objectives"] = {"align": {}}
    tiny_settings["data"] |= {"manifest": str(manifest), "batch_size": 8}
    tiny_settings["transfer"] = {"name": "full", "frozen": ["fusion"]}
    losses = {}
    for name, more in {"one": ["data.one_of=[text]"], "joined": [], "stopped": ["data.one_of=[text]"]}.items():
        config = experiment(tiny_settings, f"run={tmp_path / name}", *more)
        if name == "stopped":
            with pytest.raises(Stopped):
                launch.train(config, max_time=1e-3)
        launch.train(config, resume=name == "stopped")
        losses[name] = [line["loss"] for line in lines(tmp_path / name) if "loss" in line]
    assert len(losses["one"]) == 6
    assert losses["stopped"] == losses["one"]
    assert losses["joined"] != losses["one"]
    with pytest.raises(ConfigError, match=r"there is no modality 'txt'; the model has text, image"):
        launch.train(experiment(tiny_settings, f"run={tmp_path / 'typo'}", "data.one_of=[txt]"))


def test_predictions_do_not_depend_on_the_batch(tiny_settings):
    launch.train(experiment(tiny_settings))
    best = str(Path(tiny_settings["run"]) / "best")
    tables = []
    for size in (1, 7, 64):
        found, folder = evaluate(best, [f"data.batch_size={size}", "evaluate.resamples=0"])
        tables.append(found.predictions.table)
    assert (folder / "predictions.parquet").exists()
    for table in tables:
        assert table["row"].to_pylist() == sorted(table["row"].to_pylist())
        assert table.num_rows == 24
        assert table["kind.prediction"] == tables[0]["kind.prediction"]
        logits = [np.array(t["kind.logits"].to_pylist()) for t in (table, tables[0])]
        np.testing.assert_allclose(*logits, atol=1e-5, rtol=0)
    with pytest.raises(ConfigError, match=r"model\.dim: is fixed"):
        evaluate(best, ["model.dim=3"])


def test_a_third_partys_fusion_trains_without_touching_the_project(tiny_settings, tmp_path):
    lab = tmp_path / "their_lab/fusion"
    lab.mkdir(parents=True)
    code = '''
    """A fusion from elsewhere."""
    from collections.abc import Mapping, Sequence
    from typing import Annotated
    from pydantic import Field
    from torch import nn
    from mmkt.types import Encoded, Fused, Fusion


    class Mean(Fusion):
        """The mean of what is present, scaled."""

        level = "pooled"
        symmetric = True
        missing = "exact"
        cost = "M·D"
        terms = {"size": 1.0}

        def __init__(self, dim: int, modalities: Sequence[str], outputs: Mapping[str, int], *,
                     scale: Annotated[float, Field(gt=0)] = 1.0):
            super().__init__()
            self.scale, self.linear = scale, nn.Linear(dim, dim)

        def forward(self, parts):
            total = sum(x.pooled * x.present[:, None] for x in parts.values())
            number = sum(x.present for x in parts.values()).clamp(min=1)
            y = self.linear(self.scale * total / number[:, None])
            return Fused(Encoded.of(y), {}, {"size": y.square().mean()}, {})
    '''
    code = textwrap.dedent(code)
    assert code.count("\n") < 60
    (lab / "mean.py").write_text(code)
    tiny_settings |= {"plugins": [str(tmp_path / "their_lab")], "terms": {"size": 0.01}}
    tiny_settings["model"]["fusion"] = {"name": "mean", "scale": 2.0}
    config = check(Experiment, tiny_settings, Parts(tiny_settings["plugins"]))
    launch.train(config)
    run = Path(config.run)
    assert any("loss/size" in line for line in lines(run))
    with pytest.raises(ConfigError, match="whose code loading would run"):
        mmkt.load(run / "best")
    assert mmkt.load(run / "best", plugins=[str(tmp_path / "their_lab")]).fusion.scale == 2.0
    with pytest.raises(ConfigError, match=r"terms\.sise"):
        launch.train(config.model_copy(update={"terms": {"sise": 1.0}, "run": str(tmp_path / "r2")}))


# ---------------------------------------------------------------- schedules and groups


def test_schedule_is_a_pure_function_of_the_step():
    share = [optim.factor(step, 100, "cosine", 0.1) for step in range(100)]
    assert share[0] == pytest.approx(1 / 11)
    assert share[10] == 1.0
    assert share[55] == pytest.approx(0.5)
    assert share[10:] == sorted(share[10:], reverse=True)
    assert optim.factor(55, 100, "linear", 0.1) == pytest.approx(0.5)
    assert optim.factor(99, 100, "constant", 0.1) == 1.0
    reference = torch.optim.lr_scheduler.CosineAnnealingLR(torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=1.0), 100)
    for step in range(5):
        assert optim.factor(step, 100, "cosine", 0.0) == pytest.approx(reference.get_last_lr()[0])
        reference.optimizer.step()
        reference.step()


def test_decay_is_off_for_biases_and_norms():
    module = nn.Sequential(nn.Linear(2, 3), nn.LayerNorm(3))
    groups = optim.groups(dict(module.named_parameters()), 0.1, 0.01, {"0": 0.5, "0.bias": 2.0})
    by_name = {name: (g["lr"], g["weight_decay"]) for g in groups for name in g["names"]}
    assert by_name == {"0.weight": (0.05, 0.01), "0.bias": (0.2, 0.0), "1.weight": (0.1, 0.0), "1.bias": (0.1, 0.0)}


def test_nan_is_never_better():
    assert better(0.1, None, True)
    assert not better(float("nan"), None, True)
    assert better(0.1, 0.2, False)
    assert not better(0.2, 0.2, True)


# ---------------------------------------------------------------- objectives


class Vocabularies:
    """As much of a model as objectives read."""

    def __init__(self, **vocabularies):
        self.heads = {t: type("Head", (), {"vocabulary": v})() for t, v in vocabularies.items()}


def pieces(logits: torch.Tensor, labels: torch.Tensor, labelled: torch.Tensor) -> tuple[Batch, Outputs]:
    row = torch.arange(len(logits))
    batch = Batch({}, {}, {"y": labels}, {"y": labelled}, {}, row, row, row, row)
    return batch, Outputs({}, Encoded.of(logits), {"y": logits}, {}, {})


def test_cross_entropy_against_torch():
    torch.manual_seed(0)
    logits, y, there = torch.randn(9, 4), torch.randint(4, (9,)), torch.rand(9) > 0.4
    counts = [1, 2, 3, 4]
    model = Vocabularies(y={"counts": counts})
    batch, outputs = pieces(logits, y, there)
    plain = Classify(4, [], {}, [], task="y", label_smoothing=0.1)
    torch.testing.assert_close(
        plain(model, batch, outputs), F.cross_entropy(logits[there], y[there], reduction="sum", label_smoothing=0.1)
    )
    assert plain.count(batch) == there.sum()
    weights = 10 / (4 * torch.tensor(counts, dtype=torch.float32))
    balanced = Classify(4, [], {}, [], task="y", class_weights="balanced")
    torch.testing.assert_close(
        balanced(model, batch, outputs), F.cross_entropy(logits[there], y[there], weight=weights, reduction="sum")
    )
    assert (weights * torch.tensor(counts)).sum() / 10 == pytest.approx(1.0)  # the mean weight of a training row
    focal = Classify(4, [], {}, [], task="y", focal=2.0)
    p = logits.softmax(1)[torch.arange(9), y]
    torch.testing.assert_close(focal(model, batch, outputs), (-((1 - p) ** 2) * p.log())[there].sum())


def test_no_label_gives_a_zero_that_is_connected():
    logits = torch.randn(3, 4, requires_grad=True)
    batch, outputs = pieces(logits, torch.zeros(3, dtype=torch.long), torch.zeros(3, dtype=torch.bool))
    loss = Classify(4, [], {}, [], task="y")(Vocabularies(), batch, outputs)
    loss.backward()
    assert loss == 0
    assert logits.grad is not None
    assert not logits.grad.any()


def test_tags_against_torchvision_and_torch():
    from torchvision.ops import sigmoid_focal_loss

    torch.manual_seed(0)
    logits, y = torch.randn(7, 3), (torch.rand(7, 3) > 0.5).float()
    there = torch.tensor([True] * 5 + [False] * 2)
    batch, outputs = pieces(logits, y, there)
    model = Vocabularies(y={"counts": [2, 3, 4], "rows": 10})
    focal = Tag(4, [], {}, [], task="y", focal=2.0)(model, batch, outputs)
    torch.testing.assert_close(focal, sigmoid_focal_loss(logits[there], y[there], alpha=-1, gamma=2).mean(1).sum())
    weighted = Tag(4, [], {}, [], task="y", class_weights="balanced")(model, batch, outputs)
    positive = torch.tensor([8 / 2, 7 / 3, 6 / 4])
    reference = F.binary_cross_entropy_with_logits(logits[there], y[there], pos_weight=positive, reduction="none")
    torch.testing.assert_close(weighted, reference.mean(1).sum())


@pytest.mark.parametrize(("loss", "reference"), [("mse", F.mse_loss), ("l1", F.l1_loss), ("huber", F.huber_loss)])
def test_regression_against_torch(loss, reference):
    torch.manual_seed(0)
    logits, y, there = torch.randn(7, 1), 3 * torch.randn(7), torch.rand(7) > 0.3
    batch, outputs = pieces(logits, y, there)
    found = Regress(4, [], {}, [], task="y", loss=loss)(Vocabularies(), batch, outputs)
    torch.testing.assert_close(found, reference(logits[there, 0], y[there], reduction="sum"))


def test_alignment_is_symmetric_infonce_over_rows_that_have_both():
    torch.manual_seed(0)
    a, b = torch.randn(6, 5), torch.randn(6, 5)
    has = {"a": torch.tensor([1, 1, 1, 0, 1, 1]) > 0, "b": torch.tensor([1, 0, 1, 1, 1, 1]) > 0}
    row = torch.arange(6)
    batch = Batch({}, has, {}, {}, {}, row, row, row, row)
    encoded = {"a": Encoded.of(a, has["a"]), "b": Encoded.of(b, has["b"])}
    objective = Align(5, ["a", "b"], {}, [], temperature=0.2)
    found = objective(None, batch, Outputs(encoded, encoded["a"], {}, {}, {}))
    both = has["a"] & has["b"]
    scores = F.normalize(a[both], dim=1) @ F.normalize(b[both], dim=1).T / 0.2
    here = torch.arange(4)
    expected = (F.cross_entropy(scores, here, reduction="sum") + F.cross_entropy(scores.T, here, reduction="sum")) / 2
    torch.testing.assert_close(found, expected)
    assert objective.count(batch) == 4
    with pytest.raises(ValueError, match="two modalities or more"):
        Align(5, ["a"], {}, [])


def test_trainings_of_one_process_may_differ_in_precision(tiny_settings, tmp_path):
    """A study trains several."""
    found = {}
    for precision in ("no", "bf16", "no"):
        config = experiment(tiny_settings, "train.steps=2", f"train.precision={precision}", f"run={tmp_path}/{len(found)}")
        launch.train(config)
        lines = [json.loads(line) for line in (tmp_path / str(len(found)) / "metrics.jsonl").read_text().splitlines()]
        found[len(found)] = next(line["loss"] for line in lines if "loss" in line)
    assert found[0] == found[2] != found[1]
