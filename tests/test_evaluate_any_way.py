"""An evaluation's figures do not depend on how it is run, and what cannot be evaluated is refused with what to type."""

from __future__ import annotations

import json
from pathlib import Path
from unittest import mock

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from conftest import call, experiment, refused, rows_of_three, settings, write
from forked import together

from mmkt import cli, launch, report, retrieval

FILES = ("metrics", "subsets", "missing", "corruptions", "retrieval", "zero_shot", "few_shot")
ASKED = ["corruptions=[jpeg,white_noise,typos]", "severities=[2,5]", "shots=[1,2]", "episodes=4"]


@pytest.fixture(scope="module")
def aligned(tmp_path_factory, tiny_bert) -> Path:
    """A run on rows of which some lack a modality or the label."""
    folder = tmp_path_factory.mktemp("any")
    rows = rows_of_three(160)
    for k, row in enumerate(rows):
        row["image"] = None if k % 9 == 0 else row["image"]
        row["audio"] = None if k % 11 == 0 else row["audio"]
        row["kind"] = None if k % 13 == 0 else row["kind"]
    data = settings(write(rows, folder / "rows.parquet"), tiny_bert, folder / "run")
    data["objectives"]["near"] = "align"
    launch.train(experiment(data, "train.steps=20", "train.evaluate_every=20"))
    names = ["red", "blue", "round", "square", "small", "large", "loud", "quiet"]
    prompts = {"en": {"templates": ["{}", "the {}"], "classes": {f"k{k}": name for k, name in enumerate(names)}}}
    (folder / "prompts.yaml").write_text(yaml.safe_dump(prompts))
    return folder


def typed(folder: Path, out: Path, *more: str) -> list[str]:
    asked = [*ASKED, f"prompts={folder}/prompts.yaml", "item=domain"]
    return [str(folder / "run/best"), "--out", str(out), *(f"evaluate.{text}" for text in asked), *more]


def figures(out: Path) -> dict:
    """Every row of every file, values and intervals; a row is known by all else."""
    rows = [row for name in FILES for row in report.read(out / f"{name}.jsonl")]
    assert len(rows) > 250
    return {tuple(row[:9]): (row.value, row.n, row.low, row.high) for row in rows}


def apart(one: dict, two: dict) -> dict:
    assert one.keys() == two.keys()
    return {key: (one[key], two[key]) for key in one if not np.array_equal(one[key], two[key], equal_nan=True)}


@pytest.fixture(scope="module")
def plain(aligned) -> dict:
    cli.main(["evaluate", *typed(aligned, aligned / "plain")])
    return figures(aligned / "plain")


@pytest.fixture(scope="module")
def nearly(aligned) -> dict:
    """For every figure of retrieval its bounds: between what it is with a few ties more and with a few fewer.

    Similarities that differ by the tolerance, to rounding, are tied or not as another batch has it. Ties count against the
    model, so that its figures only fall (a rank: rise) as the tolerance grows.
    """
    found = []
    for k, tie in enumerate((retrieval.TIE - 4e-7, retrieval.TIE + 4e-7)):
        with mock.patch.object(retrieval, "TIE", tie):
            cli.main(["evaluate", *typed(aligned, aligned / f"tie-{k}")])
        found.append(figures(aligned / f"tie-{k}"))
    some = apart(*found)
    assert len(some) < len(found[0]) / 20  # almost all have to be equal to the bit
    return {key: np.sort(pair, 0) for key, pair in some.items()}  # (2, 4): value, rows, interval


# of real numbers: another batch adds up in another order, which moves the last digits of float32
REAL = ("nll", "ece", "brier", "auroc", "auprc", "gap", "alignment", "uniformity")


def within(found: tuple, bounds: np.ndarray) -> bool:
    return bool(((bounds[0] - 1e-12 <= found) & (found <= bounds[1] + 1e-12)).all())


def close(one: dict, two: dict, nearly: dict) -> None:
    """Counted figures to the bit, or where a tie is one by rounding alone within its bounds; real ones to 1e-5."""
    for key, (x, y) in apart(one, two).items():
        if key in nearly:
            assert within(y, nearly[key]), (key, x, y)
            continue
        assert key[7].split(".")[0] in REAL, (key, x, y)
        assert x == pytest.approx(y, abs=1e-5, nan_ok=True), key


@pytest.mark.parametrize("size", [1, 7, 64])
def test_whatever_the_batch(aligned, plain, nearly, capfd, tmp_path, size):
    status, _, err = call(capfd, "evaluate", *typed(aligned, tmp_path / "out", f"data.batch_size={size}"))
    assert status == 0, err
    close(plain, figures(tmp_path / "out"), nearly)


def test_the_check_can_fail(plain, nearly):
    key = next(key for key in plain if key[7] == "accuracy")
    value, *rest = plain[key]
    with pytest.raises(AssertionError):
        close(plain, plain | {key: (value + 0.01, *rest)}, nearly)
    key = next(key for key in plain if key[7] == "map" and key not in nearly)
    value, *rest = plain[key]
    with pytest.raises(AssertionError):
        close(plain, plain | {key: (value + 1e-4, *rest)}, nearly)


def test_whatever_the_number_of_processes(aligned, plain, nearly, tmp_path):
    together(2, cli.main, ["evaluate", *typed(aligned, tmp_path / "out")], said=tmp_path)
    close(plain, figures(tmp_path / "out"), nearly)
    one, two = (pq.read_table(folder / "predictions.parquet") for folder in (aligned / "plain", tmp_path / "out"))
    assert one["row"] == two["row"]
    assert one["kind.prediction"] == two["kind.prediction"]
    np.testing.assert_allclose(*(np.array(table["kind.logits"].to_pylist()) for table in (one, two)), atol=1e-5, rtol=0)


def test_whatever_the_order_of_rows(aligned, plain, nearly, capfd, tmp_path):
    """What a bootstrap or a corruption draws is by a row's place, so other places have others: clean figures alone."""
    table = pq.read_table(aligned / "rows.parquet")
    order = np.random.default_rng(3).permutation(len(table))
    pq.write_table(table.take(order), tmp_path / "shuffled.parquet")
    status, _, err = call(capfd, "evaluate", *typed(aligned, tmp_path / "out", f"data.manifest={tmp_path}/shuffled.parquet"))
    assert status == 0, err
    one, two = ({key: x for key, x in some.items() if "@" not in key[6] or "missing" in key[6]}
                for some in (plain, figures(tmp_path / "out")))  # fmt: skip
    fixed = [key for key in one if not key[7].endswith("relative") and "few-shot" not in key[6]]
    assert len(fixed) > 200
    for key in fixed:
        if key in nearly:
            assert within(two[key], nearly[key]), key
            continue
        assert one[key][:2] == pytest.approx(two[key][:2], abs=1e-5, nan_ok=True), key


# ---------------------------------------------------------------- what cannot be


def manifest(tmp_path: Path, change) -> str:
    rows = rows_of_three(40)
    changed = [row for k, row in enumerate(rows) if change(k, row) is not False]
    return f"data.manifest={write(changed, tmp_path / 'other.parquet')}"


def test_no_label_column(trained, capfd, tmp_path):
    other = manifest(tmp_path, lambda k, row: row.pop("kind") and None)
    message = refused(capfd, "evaluate", trained, other)
    assert "kind" in message
    assert "data.labels.kind: there is no column 'kind'" in message
    assert "mmkt embed" in message
    other = manifest(tmp_path, lambda k, row: row.update(kind=None))
    assert "the column 'kind' is empty in all 8 rows of test" in refused(capfd, "evaluate", trained, other)


def test_a_modality_that_the_checkpoint_has_never_seen(trained, capfd):
    assert "there is no modality 'video'; the model has text, image, audio" in refused(
        capfd, "evaluate", trained, "data.columns.video=clip"
    )


def test_a_modality_absent_from_every_row(trained, capfd, tmp_path):
    other = manifest(tmp_path, lambda k, row: row.update(audio=None))
    assert "modality 'audio'" in refused(capfd, "evaluate", trained, other)


def test_classes_unknown_to_the_head(trained, capfd, tmp_path):
    other = manifest(tmp_path, lambda k, row: row.update(kind="new"))
    message = refused(capfd, "evaluate", trained, other)
    assert "'new' is not one of the classes" in message


def test_one_class_only(trained, capfd, tmp_path):
    other = manifest(tmp_path, lambda k, row: row["kind"] == "k1")
    status, out, err = call(capfd, "evaluate", trained, other, "--out", tmp_path / "out", "evaluate.page=true")
    assert status == 0, err
    found = {(row.metric, row.group): row.value for row in report.read(tmp_path / "out/metrics.jsonl")}
    assert np.isnan(found["auroc", "all"])
    assert 0 <= found["accuracy", "all"] <= 1
    assert "two or more are told apart" in refused(capfd, "evaluate", trained, other, "evaluate.shots=[1]")


def test_an_empty_split(trained, capfd):
    message = refused(capfd, "evaluate", trained, "evaluate.split=tset")
    assert "the split 'tset' is empty: the manifest has" in message
    assert "test (24 rows)" in message


def test_wrong_settings(trained, capfd, tmp_path):
    assert "evaluate.corruption" in refused(capfd, "evaluate", trained, "evaluate.corruption=true")
    assert "evaluate.missing.0" in refused(capfd, "evaluate", trained, "evaluate.missing=[2]")
    assert "evaluate.prompts" in refused(capfd, "evaluate", trained, f"evaluate.prompts={tmp_path}/none.yaml")
    status, out, _ = call(capfd, "evaluate", trained, "--json", "--out", tmp_path / "out", "evaluate.resamples=0")
    assert status == 0
    assert json.loads(out)["rows"]


def test_shots_judge_no_row_that_they_are_drawn_from_or_chosen_on(trained, capfd, tmp_path):
    for split, words in (("validation", "settings are chosen on"), ("train", "shots are drawn from")):
        message = refused(capfd, "evaluate", trained, f"evaluate.split={split}", "evaluate.shots=[1]")
        assert f"evaluate.shots: judges other rows than {words}" in message
    assert "ask for up to 9" in refused(capfd, "evaluate", trained, "evaluate.shots=[1,10]")
    assert "is of zero- and few-shot" in refused(capfd, "evaluate", trained, "evaluate.label=kind")
    status, _, err = call(
        capfd, "evaluate", trained, "evaluate.shots=[9]", "evaluate.episodes=2", "data.validation=null", "--out", tmp_path / "out"
    )
    assert status == 0, err
    assert "data.validation is null" in err
    assert "ncm" in {row.condition.split()[-1] for row in report.read(tmp_path / "out/few_shot.jsonl")}


def test_other_heads_and_none(tiny_settings, capfd, tmp_path):
    """Tags of which some subsets name none, numbers, sets of a calibrated classifier; without a head nothing is judged."""
    tiny_settings["model"]["heads"] = {"tags": "tag", "size": "regress", "kind": "classify"}
    tiny_settings["objectives"] = {"tags": {"name": "tag", "task": "tags"}, "size": {"name": "regress", "task": "size"},
                                   "kind": {"name": "classify", "task": "kind"}}  # fmt: skip
    launch.train(experiment(tiny_settings, "train.steps=2", "train.evaluate_every=2"))
    best = f"{tiny_settings['run']}/best"
    assert call(capfd, "calibrate", best)[0] == 0
    status, out, err = call(
        capfd, "evaluate", best, "evaluate.page=true", "evaluate.corruptions=[typos]", "evaluate.severities=[1]"
    )
    assert status == 0, err
    found = report.read(Path(best) / "evaluation-test/missing.jsonl")
    assert {(row.task, row.metric) for row in found} == {("tags", "macro_f1"), ("size", "mae"), ("kind", "accuracy")}
    tiny_settings["model"]["heads"], tiny_settings["run"] = {}, str(tmp_path / "none")
    tiny_settings["objectives"] = {"near": "align"}
    tiny_settings["transfer"] = {"name": "full", "frozen": ["fusion", "space.missing"]}
    launch.train(experiment(tiny_settings, "train.steps=2", "train.evaluate_every=2", "train.select=loss"))
    assert "the model has no head" in refused(capfd, "evaluate", tmp_path / "none/best", "evaluate.corruptions=true")


def test_bad_rows_are_left_out_of_the_pool_too(trained, capfd, tmp_path):
    other = manifest(tmp_path, lambda k, row: row.update(image=b"no picture") if k in (3, 25) else None)
    typed = ["evaluate", trained, other, "--out", tmp_path / "out", "evaluate.shots=[1]", "evaluate.episodes=2"]
    assert "no image format" in refused(capfd, *typed)
    status, _, err = call(capfd, *typed, "data.bad_rows=drop")
    assert status == 0, err
    assert "2 of 40 rows cannot be decoded" in err
