"""Schedules: what trains in which phase, at which rate; phases that end early; teachers, penalties, alignment."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from conftest import call, experiment, refused, rows_of_three, settings, write
from safetensors.torch import load_file

from mmkt import launch
from mmkt.calibrate import calibrate
from mmkt.layers import text_blocks, transport
from mmkt.learner import Learner
from mmkt.model import Model
from mmkt.objectives.distill import _distances_and_angles
from mmkt.parts import ConfigError
from mmkt.predictions import predict
from mmkt.types import Until


def borrowing(manifest: Path, bert: Path, run: Path, **changes) -> dict:
    """Pictures through a text body, beside the text encoder."""
    data = settings(manifest, bert, run)
    image = {"name": "borrow", "reads": "image", "body": str(bert), "size": 16, "channels": 1, "patch": 8}
    data["model"]["encoders"] = {"text": data["model"]["encoders"]["text"], "image": image}
    data["evaluate"] = {"resamples": 0}
    return data | changes


@pytest.fixture
def data(tiny_manifest, tiny_bert, tmp_path) -> dict:
    return borrowing(tiny_manifest, tiny_bert, tmp_path / "run")


def plan(data: dict, transfer: object, steps: int = 20):
    setup = launch.build(experiment(data | {"transfer": transfer}))
    return setup.learner, setup.parts.build("transfer", setup.learner.model.config.transfer).phases(setup.learner, steps)


def of(names, *starts):
    return {name for name in names if name.startswith(starts)}


TOP = ("space.", "fusion.", "heads.")


def test_lp_ft(data):
    learner, (probe, full) = plan(data, {"name": "lp_ft", "share": 0.3})
    assert (probe.steps, full.steps) == (6, 14)
    assert learner.trained_in(probe) == of(learner.named(), *TOP)
    assert learner.trained_in(full) == set(learner.named())


def test_thaw_goes_from_the_top_down(data):
    learner, phases = plan(data, {"name": "thaw", "groups": 3}, 22)
    assert [phase.steps for phase in phases] == [6, 5, 5, 6]
    trained = [learner.trained_in(phase) for phase in phases]
    assert trained[0] == of(learner.named(), *TOP)
    assert trained[0] < trained[1] < trained[2] < trained[3] == set(learner.named())
    text = [{name.split(".")[5] for name in of(names, "encoders.text.body.encoder")} for names in trained]
    assert text == [set(), {"1"}, {"0", "1"}, {"0", "1"}]
    assert not of(trained[2], "encoders.text.body.embeddings", "encoders.image.embedder")


def test_lock(data):
    learner, (phase,) = plan(data, {"name": "lock", "towers": ["text"]})
    assert learner.trained_in(phase) == set(learner.named()) - of(learner.named(), "encoders.text.")
    learner, (phase,) = plan(data, {"name": "lock", "towers": ["text"], "projection": False})
    assert learner.trained_in(phase) == set(learner.named()) - of(learner.named(), "encoders.text.", "space.project.text.")


def test_layer_decay(data):
    learner, (phase,) = plan(data, {"name": "full", "layer_decay": 0.5, "lr": {"encoders.text": 0.1, "heads": 3.0}})
    factor = {name: learner.factor(name, phase.lr) for name in learner.named()}
    assert {factor[name] for name in of(factor, "heads.")} == {3.0}
    assert {factor[name] for name in of(factor, "encoders.text.body.encoder.layer.1.")} == {0.1}
    assert {factor[name] for name in of(factor, "encoders.text.body.encoder.layer.0.")} == {0.05}
    assert {factor[name] for name in of(factor, "encoders.text.body.embeddings.")} == {0.025}
    assert {factor[name] for name in of(factor, "encoders.image.body.encoder.layer.0.")} == {0.5}
    assert {factor[name] for name in of(factor, "encoders.image.embedder", "encoders.image.positions")} == {0.25}
    plain = plan(data, {"name": "full", "lr": {"heads": 3.0}})[1][0]
    assert plain.lr == {"heads": 3.0}


@pytest.mark.parametrize(("transfer", "words"), [
    ({"name": "lock", "towers": ["txt"]}, r"transfer \(lock\): towers: there is no modality 'txt'; allowed: text, image"),
    ({"name": "lock", "towers": ["text", "image"]}, "towers: text, image are all of them"),
    ({"name": "thaw", "groups": 9}, "groups: 9 makes 10 phases of 6 steps"),
    ({"name": "full", "frozen": ["encoders.txt"]}, "the pattern 'encoders.txt' matches no parameter; there are encoders.image"),
    ({"name": "align_then_refine"}, "objective: 'match' has to be one of the objectives, and not the only one; found kind"),
    ({"name": "align_then_refine", "objective": "kind"}, "and not the only one; found kind"),
    ({"name": "lp_ft", "share": 1.5}, "transfer.share"),
])  # fmt: skip
def test_mistakes(data, config_file, capfd, transfer, words):
    import re

    assert re.search(words, refused(capfd, "train", config_file(data | {"transfer": transfer})))


@pytest.mark.parametrize("transfer", ["probe", "fpt"])
def test_an_adapter_that_no_phase_trains_is_refused(data, config_file, capfd, transfer):
    data["model"]["adapters"] = {"text": "lora"}
    said = refused(capfd, "train", config_file(data | {"transfer": transfer}))
    assert f"model.adapters.text: no phase trains it ({transfer}): say transfer=full" in said
    assert call(capfd, "train", config_file(data | {"transfer": "lp_ft"}), "--dry-run")[0] == 0


def test_a_phase_says_what_trains(data, config_file, capfd):
    data["train"] = {"steps": 2, "lr": 0.01}
    _, _, err = call(capfd, "train", config_file(data | {"transfer": "probe"}))
    learner, (phase,) = plan(data, "probe")
    count = sum(p.numel() for name, p in learner.named().items() if name in learner.trained_in(phase))
    total = sum(p.numel() for p in learner.named().values())
    assert f"phase probe (2 steps): {count:,} of {total:,} numbers train: space " in err


# ---------------------------------------------------------------- alignment, and ending early


@pytest.fixture
def aligning(data, tmp_path) -> dict:
    texts = write(rows_of_three(40, seed=5), tmp_path / "texts.parquet")
    match = {"name": "match", "modality": "image", "texts": str(texts), "model": str(data["model"]["encoders"]["image"]["body"])}
    data["objectives"] = data["objectives"] | {"match": match}
    data["transfer"] = {"name": "align_then_refine", "share": 0.6, "patience": 2, "drop": 0.9}
    data["train"] = {"steps": 10, "lr": 0.01, "log_every": 1, "evaluate_every": 100}
    return data


def test_a_phase_ends_early_and_the_budget_stays(aligning, capfd, config_file):
    _, _, err = call(capfd, "train", config_file(aligning))
    assert "phase align ends after 3 of 6 steps: its loss no longer falls" in err
    assert "phase refine (7 steps on kind)" in err
    lines = [json.loads(line) for line in (Path(aligning["run"]) / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == list(range(1, 11))
    assert ["loss/match" in line for line in lines if "loss" in line] == [True] * 3 + [False] * 7


@pytest.mark.parametrize("stop", [3, 5])
def test_a_run_stopped_while_aligning_resumes_to_the_bit(aligning, tmp_path, monkeypatch, stop):
    from mmkt.run import Run
    from mmkt.stop import Stopped

    launch.train(experiment(aligning))
    again = aligning | {"run": str(tmp_path / "again")}
    plain = Run.log

    def log(self, values):
        plain(self, values)
        if values["step"] == stop:
            import signal

            signal.raise_signal(signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(Run, "log", log)
        with pytest.raises(Stopped):
            launch.train(experiment(again))
    launch.train(experiment(again), resume=True)
    one, two = (load_file(Path(d["run"]) / "last/learner.safetensors") for d in (aligning, again))
    assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize("distance", ["mmd", "sinkhorn", "otdd"])
def test_aligning_moves_the_embedder_alone_and_towards_words(aligning, distance):
    aligning["objectives"]["match"] |= {"distance": distance, "label": "kind"} if distance == "otdd" else {"distance": distance}
    aligning["transfer"] |= {"patience": 100, "share": 0.9}
    aligning["model"]["encoders"]["image"]["weights"] = "pretrained"
    setup = launch.build(experiment(aligning))
    learner = setup.learner
    align, _ = setup.parts.build("transfer", learner.model.config.transfer).phases(learner, 10)
    assert learner.trained_in(align) == {f"encoders.image.{n}" for n in learner.model.encoders["image"].stages()[0]}
    trains = learner.begin(align)
    optimizer = torch.optim.Adam(trains.values(), lr=0.01)
    batch = next(setup.feed.training(0, 1))
    values = []
    for _ in range(30):
        loss, _ = learner(batch, learner.counts([batch]))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        values.append(loss.item())
    assert values[-1] < 0.7 * values[0]
    x = learner.model.encoders["image"].embed(batch.inputs["image"])[0].mean(1)
    if distance == "mmd":  # what the objective says is the distance itself, of each row once
        rows = x[batch.inputs["image"]["items"][:, 0]]
        with torch.no_grad():
            assert learner(batch, learner.counts([batch]))[0].item() == pytest.approx(
                transport.mmd(rows, learner.objectives["match"].words).item(), abs=1e-5
            )


def test_words_are_those_that_enter_the_blocks(aligning):
    learner = launch.build(experiment(aligning)).learner
    words, text = learner.objectives["match"].words, learner.model.encoders["text"]
    rows = [row["text"] for row in rows_of_three(40, seed=5)]
    order = torch.randperm(40, generator=torch.Generator().manual_seed(0))
    ids = text.tokenizer(rows[order[7]], return_tensors="pt")["input_ids"]
    assert torch.allclose(words[7], text_blocks.embed_words(text.body.eval(), ids)[0].mean(0), atol=1e-6)


@pytest.mark.parametrize(("changes", "words"), [
    ({"modality": "picture"}, "objectives.match: modality: there is no 'picture'"),
    ({"modality": "text"}, "objectives.match: modality: the encoder of text hands no tokens to blocks of text"),
    ({"texts": "nowhere.csv"}, "nowhere.csv"),
    ({"column": "txt"}, "txt"),
    ({"distance": "otdd"}, "otdd compares classes"),
])  # fmt: skip
def test_what_cannot_be_matched(aligning, changes, words):
    aligning["objectives"]["match"] |= changes
    with pytest.raises(ValueError, match=words):
        launch.build(experiment(aligning))


# ---------------------------------------------------------------- L2-SP


def test_l2_sp_pulls_to_the_start_and_weight_decay_to_zero(data):
    data["objectives"] = data["objectives"] | {"start": {"name": "l2_sp", "weight": 0.3}}
    setup = launch.build(experiment(data))
    learner = setup.learner
    learner.begin(plan(data, "full")[1][0])
    batch = next(setup.feed.training(0, 1))
    name, parameter = next((n, p) for n, p in learner.named().items() if n.endswith("layer.0.output.dense.weight"))
    start = parameter.detach().clone()
    moved = torch.randn_like(parameter)

    def gradient(weight):
        learner.weights["start"] = weight
        learner.zero_grad()
        torch.manual_seed(0)
        loss, means = learner(batch, learner.counts([batch]))
        loss.backward()
        return parameter.grad.clone(), float(means[1])

    _, at_start = gradient(0.3)
    assert at_start == 0
    with torch.no_grad():
        parameter.add_(moved)
    with_penalty, value = gradient(0.3)
    without, _ = gradient(0.0)
    assert value == pytest.approx(0.5 * float(moved.square().sum()), rel=1e-5)
    torch.testing.assert_close(with_penalty - without, 0.3 * moved, atol=1e-5, rtol=1e-4)
    assert (with_penalty - without - 0.3 * parameter.detach()).abs().max() > 0.1 * start.abs().max()  # not a pull to zero


def test_a_penalty_does_not_hide_what_nothing_reaches(data, config_file, capfd):
    data["objectives"] = data["objectives"] | {"start": {"name": "l2_sp", "parameters": ["encoders", "heads"]}}
    data["model"]["heads"] = data["model"]["heads"] | {"size": "regress"}
    assert "no objective reaches them" in refused(capfd, "train", config_file(data))


def test_the_start_survives_resuming(data, tmp_path):
    data["objectives"] = data["objectives"] | {"start": {"name": "l2_sp"}}
    data["train"] = {"steps": 4, "lr": 0.01, "save_every": 2}
    launch.train(experiment(data))
    state = load_file(Path(data["run"]) / "last/learner.safetensors")
    start = {name: x for name, x in state.items() if "start_" in name}
    model = launch.build(experiment(data)).learner
    kept = model.objectives["start"].names
    assert len(kept) == len(of(model.named(), "encoders."))
    assert all(torch.equal(state[f"objectives.start.{kept[n]}"], model.named()[n]) for n in kept)
    assert len(start) == len(kept)


# ---------------------------------------------------------------- distillation


@pytest.fixture(scope="module")
def teacher(tmp_path_factory, tiny_manifest, tiny_bert) -> Path:
    """Of texts alone, confident."""
    folder = tmp_path_factory.mktemp("teacher")
    data = borrowing(tiny_manifest, tiny_bert, folder / "run")
    del data["model"]["encoders"]["image"]
    data["train"] = {"steps": 40, "lr": 0.01, "evaluate_every": 40}
    launch.train(experiment(data))
    return folder / "run" / "best"


def distilling(data, whom, **more) -> dict:
    return data | {"objectives": data["objectives"] | {"teacher": {"name": "distill", "teacher": str(whom)} | more}}


def test_logits_have_the_gradient_of_hinton(data, teacher):
    setup = launch.build(experiment(distilling(data, teacher, temperature=3.0)))
    objective, batch = setup.learner.objectives["teacher"], next(setup.feed.training(0, 1))
    outputs = setup.learner.model(batch)
    logits = torch.randn_like(outputs.logits["kind"]).requires_grad_()
    objective(setup.learner.model, batch, outputs._replace(logits={"kind": logits})).backward()
    told = objective.target[objective.place[batch.row]]
    expected = 3.0 * (F.softmax(logits / 3.0, 1) - F.softmax(told / 3.0, 1))  # T² · (1 / T) · (softmax_s − softmax_t)
    torch.testing.assert_close(logits.grad, expected.detach())
    model = Model.from_pretrained(teacher)
    rows = setup.feed.manifest.table.take(batch.row.numpy()).to_pylist()
    answers = model.predict([{"text": row["text"]} for row in rows])
    classes = model.heads["kind"].vocabulary["classes"]
    assert [classes[k] for k in told.argmax(1)] == [answer["kind"]["prediction"] for answer in answers]


@pytest.fixture(scope="module")
def untaught(tmp_path_factory, tiny_manifest, tiny_bert) -> dict:
    """The model of a student that had no teacher."""
    data = borrowing(tiny_manifest, tiny_bert, tmp_path_factory.mktemp("untaught") / "run")
    data["train"] = {"steps": 25, "lr": 0.01, "evaluate_every": 25, "select": "loss"}
    launch.train(experiment(data))
    return load_file(Path(data["run"]) / "best/model.safetensors")


@pytest.mark.parametrize("of", ["logits", "features", "relations"])
def test_a_student_comes_to_agree_with_its_teacher(data, teacher, untaught, of):
    data["train"] = {"steps": 25, "lr": 0.01, "evaluate_every": 25, "select": "loss"}
    told = distilling(data, teacher, of=of, weight=5.0)
    told["objectives"]["kind"] = told["objectives"]["kind"] | {"weight": 0.01}
    launch.train(experiment(told))
    setup = launch.build(experiment(told))
    model, objective, apart = setup.learner.model, setup.learner.objectives["teacher"], {}
    for name, tensors in (("plain", untaught), ("told", load_file(Path(told["run"]) / "best/model.safetensors"))):
        model.load_state_dict(tensors)
        if of == "features":  # a map is learned beside: agreement is what a fresh linear fit explains
            table = predict(model, setup.feed, setup.feed.rows("train"), vectors=True).table
            x = torch.tensor(table["vector.fused"].to_pylist())
            y = objective.target[objective.place[torch.tensor(table["row"].to_pylist())]]
            x = torch.cat([x, torch.ones(len(x), 1)], 1)
            fit = torch.linalg.solve(x.T @ x + torch.eye(x.shape[1]), x.T @ y)
            apart[name] = float((x @ fit - y).square().mean())
        else:
            with torch.no_grad():
                batches = setup.feed.evaluation(setup.feed.rows("train"))
                apart[name] = sum(float(objective(model, batch, model.eval()(batch))) for batch in batches)
    assert apart["told"] < 0.8 * apart["plain"]


def test_relations_by_hand():
    x = torch.tensor([[0.0, 0.0], [3.0, 0.0], [0.0, 4.0]])
    distances, angles = _distances_and_angles(x, x)
    mean = (3 + 4 + 5) / 3
    torch.testing.assert_close(distances, torch.tensor([[0, 3, 4], [3, 0, 5], [4, 5, 0]]) / mean, atol=1e-5, rtol=1e-5)
    assert angles[0, 1, 2].item() == pytest.approx(0, abs=1e-5)
    assert angles[1, 0, 2].item() == pytest.approx(0.6, abs=1e-5)
    assert angles[2, 0, 1].item() == pytest.approx(0.8, abs=1e-5)
    turned = torch.randn(3, 3)
    assert (_distances_and_angles(turned, turned)[1] - angles).abs().max() > 0.05


@pytest.mark.parametrize(("more", "words"), [
    ({"teacher": "checkpoints/nowhere"}, "objectives.teacher: there is no"),
    ({"task": "size"}, "objectives.teacher.task: there is no task 'size'"),
])  # fmt: skip
def test_teachers_that_cannot_teach(data, teacher, more, words):
    with pytest.raises(ValueError, match=words):
        launch.build(experiment(distilling(data, teacher, **more)))


def test_a_teacher_answers_in_the_students_unit(data, tmp_path):
    """Each standardises by its own training split: what counts is the value."""
    data["model"]["heads"], data["objectives"] = {"size": "regress"}, {"size": {"name": "regress", "task": "size"}}
    data["train"] = {"steps": 1}
    launch.train(experiment(data))
    rows = rows_of_three(120)
    metres = [row | {"size": 100 * row["size"] + 7} for row in rows]
    data["data"] = data["data"] | {"manifest": str(write(metres, tmp_path / "metres.parquet"))}
    whom = Path(data["run"]) / "best"
    setup = launch.build(experiment(distilling(data, whom)))
    objective, head = setup.learner.objectives["teacher"], setup.learner.model.heads["size"]
    assert len(objective.target) == 96  # what trains or validates; the test split is not read
    told = head.decode(objective.target[objective.place[:5]])["prediction"]
    asked = Model.from_pretrained(whom).predict([{m: row[m] for m in ("text", "image")} for row in rows[:5]])
    assert told == pytest.approx([answer["size"]["prediction"] for answer in asked], abs=1e-4)


def test_a_calibrated_teacher_teaches_what_it_answers(data, teacher, tmp_path):
    whom = shutil.copytree(teacher, tmp_path / "calibrated")
    (one,) = calibrate(str(whom), coverage=0.8)
    told, raw = (launch.build(experiment(distilling(data, path))).learner.objectives["teacher"] for path in (whom, teacher))
    torch.testing.assert_close(told.target, raw.target / one.temperature)


def test_a_teacher_without_the_task_or_with_another_kind_of_head(data, teacher, tmp_path):
    data["model"]["heads"] = {"kind": "classify", "size": "regress"}
    with pytest.raises(ConfigError, match=r"objectives.teacher: task: the teacher .* answers kind, not 'size'; say of: features"):
        launch.build(experiment(distilling(data, teacher, task="size")))
    rows = [row | {"kind": [row["kind"]]} for row in rows_of_three(60)]
    data["model"]["heads"], data["objectives"] = {"kind": "tag"}, {"kind": {"name": "tag", "task": "kind"}}
    data["data"] = data["data"] | {"manifest": str(write(rows, tmp_path / "tags.parquet"))}
    with pytest.raises(ConfigError, match="the task's heads are of two kinds"):
        launch.build(experiment(distilling(data, teacher)))
    rows = [{name: cell for name, cell in row.items() if name != "text"} for row in rows]
    data["data"] = data["data"] | {"manifest": str(write(rows, tmp_path / "textless.parquet"))}
    del data["model"]["encoders"]["text"]
    with pytest.raises(ConfigError, match="reads text, of which the manifest has none: add a column"):
        launch.build(experiment(distilling(data, teacher)))


def test_other_classes_are_refused_and_another_order_is_not(data, teacher, tmp_path):
    rows = [row | {"kind": f"other-{row['kind']}"} for row in rows_of_three(60)]
    data["data"] = data["data"] | {"manifest": str(write(rows, tmp_path / "other.parquet"))}
    with pytest.raises(ConfigError, match=r"the teacher's classes are .*k0.*, the student's .*other-k0.*or say of: features"):
        launch.build(experiment(distilling(data, teacher)))
    launch.build(experiment(distilling(data, teacher, of="features")))


def test_until_is_of_progress():
    from mmkt.resume import Progress

    assert Until(3).drop == 0.01
    assert replace(Progress(), taken=(3,)).taken == (3,)
    assert Learner.factor("a.b", {"a": 2.0, "a.*": 3.0}) == 3.0
