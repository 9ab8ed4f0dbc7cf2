"""Accuracy under attack as an evaluation: the matrix, the worst by row, curves, warnings, the page, what is refused."""

from __future__ import annotations

import json
import math

import numpy as np
import pyarrow.parquet as pq
import pytest
from conftest import call, experiment, refused, rows_of_three, write

from mmkt.robust_accuracy import BROKEN, FAR, METRIC, NOTHING, Kind, Outcome, Trial, measure, sheets, warnings
from mmkt.score import About

FEW = "evaluate.robustness.attacks={fgsm: fgsm, pgd: {name: pgd, steps: 2}, square: {name: square, queries: 3}"
ATTACKS = (
    FEW + ", cw: {name: cw, steps: 4, searches: 2, c: 10, lr: 0.05}, absent: absent, characters: {name: characters, edits: 1}}"
)
THREATS = "evaluate.robustness.threats={image: {eps: 0.1}, audio: {db: -20}, text: {norm: linf, db: -10}}"
QUICK = ["evaluate.subsets=false", "evaluate.resamples=50", "evaluate.page=true"]


@pytest.fixture(scope="module")
def evaluated(trained, tmp_path_factory):
    from mmkt.evaluate import evaluate

    folder = tmp_path_factory.mktemp("attacked")
    asked = [ATTACKS, THREATS, "evaluate.robustness.rows=20", "evaluate.robustness.curve=[0.5,1]", *QUICK]
    found, _ = evaluate(str(trained), asked, out=str(folder / "e"))
    return folder / "e", found


def figures(rows, metric=METRIC):
    return {row["condition"]: row for row in rows if row["metric"] == metric}


def test_the_matrix_of_a_checkpoint(evaluated):
    folder, found = evaluated
    rows = [json.loads(line) for line in (folder / "attacks.jsonl").read_text().splitlines()]
    own = figures(rows)
    predictions = pq.read_table(folder / "predictions.parquet").to_pydict()
    right = np.array(predictions["kind.label"]) == np.array(predictions["kind.prediction"])
    assert own["none"]["n"] == 20
    assert len(right) == 24
    assert abs(own["none"]["value"] * 20 - right.sum()) <= 4  # twenty of the 24 rows are drawn
    surfaces = {Trial.of(name).surface for name in own} - {"none"}
    assert surfaces == {"text", "image", "audio", "joint", "text edits", "missing modality"}
    for name, row in own.items():
        assert row["value"] <= own["none"]["value"], name
        assert row["low"] <= row["value"] <= row["high"]
    for surface in ("text", "image", "audio", "joint"):
        each = [own[f"{surface}.{attack}"]["value"] for attack in ("fgsm", "pgd", "square")]
        assert own[f"{surface}.worst"]["value"] <= min(each)
        assert {f"{surface}.pgd@0.5", f"{surface}.pgd@inf"} <= own.keys()
    assert "missing modality.worst" not in own  # a count of edits is no ε
    assert "image.absent" not in own
    far = [row for row in rows if row["metric"] == FAR]
    assert {row["condition"].partition(".")[2] for row in far} == {"cw"}
    assert all(row["value"] > 0 for row in far)
    assert min(row["value"] for row in own.values()) < own["none"]["value"]  # something was found


def test_the_page_shows_rows_as_they_came_and_as_they_were_made(evaluated):
    folder, found = evaluated
    page = (folder / "report.html").read_text()
    section = page[page.index('id="attacks"') :]
    assert "Under attack" in page
    assert "allowed)" in section  # distances beside what was allowed
    assert section.count("<img") >= 2
    assert "along ε (pgd)" in section
    shown = "".join(line for one in sheets(found.across["attacks"]) for row in one.rows for line in row)
    assert "text edits" in shown


def test_one_row_at_a_time_changes_nothing(evaluated, trained, tmp_path):
    from mmkt.evaluate import evaluate

    asked = [ATTACKS, THREATS, "evaluate.robustness.rows=20", "evaluate.robustness.curve=[]", *QUICK, "data.batch_size=3"]
    found, _ = evaluate(str(trained), asked, out=str(tmp_path / "e"))
    folder, _ = evaluated
    before = figures([json.loads(line) for line in (folder / "attacks.jsonl").read_text().splitlines()])
    after = figures([row._asdict() for row in found.across["attacks"]])
    # a gradient that is nearly zero may change its sign with the last digit, and a row on the edge with it
    assert all(abs(before[name]["value"] - row["value"]) <= 1 / 20 + 1e-9 for name, row in after.items())
    assert sum(before[name]["value"] == row["value"] for name, row in after.items()) >= len(after) - 3


# ---------------------------------------------------------------- known answers


def outcome(*right):
    right = np.array(right, dtype=bool)
    return Outcome(right, (~right).astype(int), {"image": np.where(right, 0.0, 2.0)}, np.ones(len(right), dtype=bool))


KINDS = {"fgsm": Kind(True, True), "pgd": Kind(True, True), "square": Kind(False, True), "cw": Kind(True, False)}


def test_the_worst_is_by_row():
    outcomes = {
        NOTHING: outcome(1, 1, 1, 1, 0),
        Trial("image", "fgsm"): outcome(0, 1, 1, 1, 0),
        Trial("image", "pgd"): outcome(1, 0, 1, 1, 0),
        Trial("image", "cw"): outcome(0, 0, 0, 1, 0),  # counts for the distance alone
        Trial("image", "pgd", 2.0): outcome(0, 0, 0, 1, 0),
    }
    rows = measure(outcomes, KINDS, "t", About(), 200)
    own = figures([row._asdict() for row in rows])
    assert {name: row["value"] for name, row in own.items()} == {
        "none": 0.8,
        "image.fgsm": pytest.approx(0.6),
        "image.pgd": pytest.approx(0.6),
        "image.cw": pytest.approx(0.2),
        "image.pgd@2": pytest.approx(0.2),
        "image.worst": pytest.approx(0.4),
    }
    (far,) = (row for row in rows if row.metric == FAR)
    assert (far.condition, far.value, far.n) == ("image.cw", 2.0, 3)
    assert own["image.worst"]["low"] < 0.4 < own["image.worst"]["high"]
    assert Trial.of("text edits.hotflip@inf") == Trial("text edits", "hotflip", math.inf)


def many(share, n=200):
    return outcome(*(np.arange(n) < share * n))


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({}, None),
        ({Trial("image", "square"): many(0.2)}, "square sees answers alone and beats all gradients"),
        ({Trial("image", "fgsm"): many(0.1)}, "one step hurts more than many"),
        ({Trial("image", "pgd", 2.0): many(0.5)}, "accuracy rises again at 2 times ε"),
        ({Trial("image", "pgd", math.inf): many(0.1)}, "with nearly everything allowed some rows stay right"),
        ({Trial("image", "square"): many(0.295)}, None),  # one row: no sign
    ],
)
def test_signs_of_masked_gradients(changed, words):
    outcomes = {
        NOTHING: many(0.9),
        Trial("image", "fgsm"): many(0.5),
        Trial("image", "pgd"): many(0.3),
        Trial("image", "square"): many(0.4),
        Trial("image", "pgd", 2.0): many(0.1),
        Trial("image", "pgd", math.inf): many(0.0),
    }
    found = list(warnings(outcomes | changed, KINDS))
    assert [text.partition(": ")[2] for text, _ in found] == ([words] if words else [])
    rows = measure(outcomes | changed, KINDS, "t", About(), 10)
    assert len([row for row in rows if row.metric == BROKEN]) == len(found)
    notes = [note for one in sheets(rows) for note in one.notes]
    assert all(words in note for note in notes)
    assert bool(notes) == bool(words)


# ---------------------------------------------------------------- as a command


def test_the_flag_asks_for_the_usual_attacks(trained, capfd, tmp_path):
    small = ["evaluate.robustness.rows=2", "evaluate.robustness.curve=[]", "data.batch_size=2", "evaluate.page=false"]
    status, out, err = call(capfd, "evaluate", trained, "--robustness", *small, *QUICK[:2], "--out", tmp_path / "e")
    assert status == 0
    assert "robust accuracy" in out
    status, out, _ = call(capfd, "evaluate", trained, *QUICK[:2], "evaluate.page=false", "--out", tmp_path / "plain")
    assert "robust accuracy" not in out
    assert not (tmp_path / "plain/attacks.jsonl").exists()


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ("threats={smell: {eps: 0.1}}", "evaluate.robustness.threats.smell: there is no modality 'smell'"),
        ("threats={image: {eps: 0}}", "evaluate.robustness.threats.image.eps: 0 lets nothing move"),
        ("threats={image: {eps: -1}}", "-1 lets nothing move"),
        ("threats={image: {epsilon: 1}}", "epsilon"),
        ("along=pgdd", "there is no attack 'pgdd'; did you mean 'pgd'?; allowed: fgsm, pgd"),
        ("along=hotflip", "hotflip does not keep to ε"),
        ("target=k99", "there is no class 'k99'; allowed: k0, k1"),
        ("curve=[-1]", "-1 is no factor on ε"),
        ("curve=[.inf]", "inf is no factor on ε"),
        ("threats={image: {eps: 1.0e+40}}", "1e+40 is beyond all raw numbers"),
        ("attacks={worst: pgd}", "is what the worst case by row is called"),
        ("task=size", "there is no task 'size'"),
        ("attacks={pgd: {name: pgd, steps: 0}}", "steps"),
        ("attacks={pgd: pgdd}", "did you mean 'pgd'"),
    ],
)
def test_what_cannot_be_asked_for_is_refused(trained, capfd, asked, words):
    assert words in refused(capfd, "evaluate", trained, f"evaluate.robustness.{asked}", *QUICK)


def test_an_attack_that_fits_nothing_here_is_refused(trained, capfd):
    asked = ["evaluate.robustness.attacks={pgd: pgd, square: square}", "evaluate.robustness.joint=false"]
    threats = "evaluate.robustness.threats={image: {norm: l2, eps: 1}}"
    err = refused(capfd, "evaluate", trained, *asked, threats, *QUICK)
    assert "evaluate.robustness.attacks.square: is of other inputs, norms or bounds" in err


def test_a_model_that_answers_nan_withstands_nothing(trained, tmp_path, capfd):
    import shutil

    from safetensors.torch import load_file, save_file

    broken = shutil.copytree(trained, tmp_path / "broken")
    tensors = load_file(broken / "model.safetensors")
    name = next(name for name in tensors if name.startswith("heads.") and name.endswith("weight"))
    tensors[name][0] = math.nan
    save_file(tensors, broken / "model.safetensors")
    small = ["evaluate.robustness.attacks={pgd: pgd}", "evaluate.metrics={}", "evaluate.resamples=0", "evaluate.page=false"]
    assert "kind's logits are not finite for" in refused(capfd, "evaluate", broken, *small, "evaluate.subsets=false")


@pytest.fixture(scope="module")
def few(tmp_path_factory, tiny_bert):
    """Half of the test rows have no text, three quarters no picture; and a model of one modality."""
    folder = tmp_path_factory.mktemp("few")
    rows = rows_of_three(60)
    for k, row in enumerate(rows):
        row["text"] = None if k % 2 else row["text"]
        row["image"] = None if k % 4 else row["image"]
    return write(rows, folder / "rows.parquet")


def test_rows_without_what_is_attacked_say_nothing(trained, few, tmp_path):
    from mmkt.evaluate import evaluate

    asked = ["evaluate.robustness.attacks={pgd: {name: pgd, steps: 3}, absent: absent}", "evaluate.robustness.curve=[]"]
    asked += ["evaluate.robustness.threats={image: {eps: 0.9}, text: {norm: l2, db: 10}}", f"data.manifest={few}", *QUICK[:2]]
    found, _ = evaluate(str(trained), [*asked, "data.batch_size=1", "evaluate.page=false"], out=str(tmp_path / "e"))
    own = figures([row._asdict() for row in found.across["attacks"]])
    counts = {name: row["n"] for name, row in own.items()}
    assert counts["text.pgd"] == counts["joint.pgd"] == counts["none"]  # rows with neither are not drawn
    assert counts["image.pgd"] * 2 == counts["text.pgd"]
    assert any("image: of the" in note for one in sheets(found.across["attacks"]) for note in one.notes)
    assert own["image.pgd"]["value"] in np.arange(counts["image.pgd"] + 1) / counts["image.pgd"]


@pytest.mark.parametrize("m", ["image", "text", "audio"])
def test_the_usual_attacks_fit_a_model_of_one_modality(tiny_settings, capfd, m):
    from mmkt import launch

    data = tiny_settings
    data["model"]["encoders"] = {m: data["model"]["encoders"][m]}
    data["train"] |= {"steps": 1, "evaluate_every": 1}
    launch.train(experiment(data))
    small = ["evaluate.robustness.rows=2", "evaluate.robustness.curve=[]", "evaluate.page=false", "evaluate.resamples=0"]
    status, out, err = call(capfd, "evaluate", f"{data['run']}/best", "--robustness", *small)
    assert status == 0, err
    assert "are left out: " in out + err
    assert f"{m} " in out[out.index("robust accuracy") :]


def test_no_row_that_could_be_attacked_is_refused(trained, capfd, tmp_path):
    rows = [row | ({"text": None} if row["split"] == "test" else {}) for row in rows_of_three(40)]
    manifest = f"data.manifest={write(rows, tmp_path / 'rows.parquet')}"
    asked = "evaluate.robustness.threats={text: {norm: l2, db: 10}}"
    assert "labelled rows has any of text" in refused(capfd, "evaluate", trained, asked, manifest, *QUICK)


def test_an_attacker_may_want_a_class(trained, tmp_path):
    from mmkt.evaluate import evaluate

    asked = ["evaluate.robustness.attacks={pgd: {name: pgd, steps: 8, loss: margin}}", "evaluate.robustness.curve=[]", *QUICK[:2]]
    asked += ["evaluate.robustness.threats={image: {eps: 0.5}, text: {norm: l2, db: 10}}", "evaluate.page=false"]
    own = []
    for more in ([], ["evaluate.robustness.target=k3"]):
        found, _ = evaluate(str(trained), [*asked, *more], out=str(tmp_path / f"e{len(more)}"))
        own.append(figures([row._asdict() for row in found.across["attacks"]]))
        notes = [note for one in sheets(found.across["attacks"]) for note in one.notes]
        assert any("wants 'k3' to be said" in note for note in notes) == bool(more)
    any_other, wanted = own
    assert any_other["none"]["n"] == 24
    assert wanted["none"]["n"] == 21  # three of the test rows are of that class
    # whoever wants one class turns no more rows than whoever takes any, but does turn some
    assert any_other["joint.pgd"]["value"] <= wanted["joint.pgd"]["value"] + 1 / 21
    assert wanted["joint.pgd"]["value"] < wanted["none"]["value"]
