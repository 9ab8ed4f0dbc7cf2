"""The features encoder: vectors and token sequences as they are, what is refused, a model whose encoders have no parameters."""

from __future__ import annotations

import copy
import io
import json
import math

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from conftest import call, experiment, refused, write
from rich.console import Console

from mmkt import launch
from mmkt.data.check import check, render
from mmkt.data.decode import DecodeError, vectors
from mmkt.data.kinds import kinds
from mmkt.data.manifest import from_rows
from mmkt.data.rows import Draw, Rows
from mmkt.encoders.features import Features
from mmkt.model import Model
from mmkt.stop import Stopped

RANDOM = np.random.default_rng(0)
PLAIN, STANDARD = {"standardize": False}, {"standardize": True}


def column(cells: list, kind: pa.DataType | None = None) -> pa.ChunkedArray:
    return pa.chunked_array([pa.array(cells, kind)])


def built(cells: list, settings: dict = PLAIN) -> Features:
    return Features({}, None, Features.learn(column(cells), settings), **settings).eval()


def inputs(encoder: Features, cells: list) -> dict[str, torch.Tensor]:
    processor = encoder.processor()
    return processor.pad([processor(vectors(cell, encoder.width)) for cell in cells])


# ---------------------------------------------------------------- what every encoder has to do


@pytest.mark.parametrize("settings", [PLAIN, STANDARD], ids=["plain", "standardize"])
def test_tokens_are_the_vectors_and_the_summary_their_mean(settings):
    cells = [RANDOM.normal(5, 3, (t, 4)).tolist() for t in (1, 3, 2, 5)]
    encoder = built(cells, settings)
    assert list(encoder.parameters()) == [] == encoder.stages()
    assert list(encoder.state_dict()) == []  # normalisation is made from the vocabulary
    every = np.concatenate(cells)
    found = encoder(inputs(encoder, cells))
    assert found.tokens.shape == (4, 5, 4)
    assert found.present.tolist() == [True] * 4
    for k, cell in enumerate(cells):
        x = (np.array(cell) - every.mean(0)) / every.std(0) if settings["standardize"] else np.array(cell)
        assert found.mask[k].tolist() == [True] * len(cell) + [False] * (5 - len(cell))
        np.testing.assert_allclose(found.tokens[k, : len(cell)], x, atol=1e-5)
        np.testing.assert_allclose(found.pooled[k], x.mean(0), atol=1e-5)
        assert not found.tokens[k, len(cell) :].any()
        alone = encoder(inputs(encoder, [cell]))
        assert torch.equal(alone.pooled[0], found.pooled[k])
    assert encoder(encoder.blank()).pooled.isfinite().all()
    assert encoder(encoder.blank()).pooled.shape == (1, 4)


def test_the_gradient_reaches_the_vectors_and_nothing_beside_them():
    encoder = built([[[1.0, 2.0]]])
    batch = inputs(encoder, [[[1.0, 2.0]], [[1.0, 2.0], [3.0, 4.0]]])
    leaf = batch["vectors"].requires_grad_()
    encoder(batch).pooled.sum().backward()
    assert leaf.grad[:, :, 0].tolist() == [[1.0, 0.0], [0.5, 0.5]]


# ---------------------------------------------------------------- what is learned


NUMBERS = [pa.float64(), pa.float16(), pa.int16()]
LISTS = [*map(pa.list_, NUMBERS), *map(pa.large_list, NUMBERS), *(pa.list_(kind, 2) for kind in NUMBERS)]


@pytest.mark.parametrize("kind", LISTS, ids=str)
def test_arrow_types_of_vectors(kind):
    cells = pa.chunked_array([column([[1, 3], None]).chunk(0), column([[5, 5]]).chunk(0)]).cast(kind)
    assert Features.learn(cells, STANDARD) == {"width": 2, "count": 2, "mean": [3.0, 4.0], "std": [2.0, 1.0]}
    sequences = column([[[1, 2], [3, 4]], None, [[5, 6]], []]).cast(pa.list_(kind))
    assert Features.learn(sequences, PLAIN) == {"width": 2, "count": 3}


def test_odd_vectors_of_the_training_split_do_not_count_and_constants_stay_finite():
    cells = [[1.0, 7.0], [3.0, 7.0], [1.0], [math.nan, 7.0], [1e300, 7.0], [], [1.0, 2.0, 3.0], [None, 7.0]]
    found = Features.learn(column(cells), STANDARD)
    assert found == {"width": 2, "count": 5, "mean": [2.0, 7.0], "std": [1.0, 0.0]}
    encoder = Features({}, None, found, **STANDARD)
    assert encoder(inputs(encoder, [[3.0, 8.0]])).pooled.tolist() == [[1.0, 1.0]]
    dead = built([[0.1, float(k)] for k in range(7)], STANDARD)  # its deviation is rounding alone
    assert dead.std[0] == 1


@pytest.mark.parametrize(
    ("cells", "words"),
    [
        (["a", "b"], "lists of numbers, .* this one holds string"),
        ([["a"], ["b"]], "this one holds list<.*string>"),
        ([1.0, 2.0], "this one holds double .*for the encoder table"),
        ([[True]], "this one holds list<.*bool>"),
        ([{"x": 1.0}], "this one holds struct"),
        (pa.array([None, []], pa.list_(pa.float32())), "no row of the training split has a vector"),
    ],
)
def test_other_columns_are_refused_in_words(cells, words):
    with pytest.raises(ValueError, match=words):
        Features.learn(pa.chunked_array([pa.array(cells)]), PLAIN)
    with pytest.raises(ValueError, match="no vector of the training split has 2 finite numbers"):
        Features.learn(column([[math.nan, 1.0]]), STANDARD)


# ---------------------------------------------------------------- cells


def test_cells_are_checked():
    for cell, words in (
        (["x", 1.0], r"a list of 2 numbers \(as most are\), or a list of such lists; in this one is 'x'"),
        ([1.0, None], "in this one is None"),
        ([True, False], "in this one is True"),
        ("0.1, 0.2", "not str '0.1, 0.2'"),
        ({"a": 1.0}, "not dict"),
        (0.5, r"the shape of this one is \(\)"),
        ([1.0, 2.0, 3.0], r"the shape of this one is \(3,\)"),
        ([[1.0], [2.0]], r"the shape of this one is \(2, 1\)"),
        ([[1.0, 2.0], [3.0]], "in this one are 1 numbers, 2 numbers"),
        ([[1.0, 2.0], None], "in this one are 2 numbers, None"),
        (np.zeros((0, 2)), r"the shape of this one is \(0, 2\)"),
        (np.zeros((2, 2, 2)), r"the shape of this one is \(2, 2, 2\)"),
        ([1.0, math.inf], "1 of 2 numbers are NaN, infinite or too large"),
        (np.array([[1.0, math.nan], [1e39, 0.0]]), "2 of 4 numbers are NaN"),
    ):
        with pytest.raises(DecodeError, match=words):
            vectors(cell, 2)


@pytest.mark.parametrize(
    "cell",
    [
        [[1, 2], [3, 4]],
        np.array([[1, 2], [3, 4]], np.int8),
        torch.tensor([[1, 2], [3, 4]], dtype=torch.bfloat16, requires_grad=True),
        [np.array([1.0, 2.0]), np.array([3.0, 4.0])],
        [torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0])],
    ],
    ids=["lists", "array", "tensor", "arrays", "tensors"],
)
def test_one_item_of_two_tokens(cell):
    encoder = built([[1.0, 2.0]])
    rows = Rows(None, {"it": "it"}, {"it": encoder.processor()}, seed=0, train=False)
    (item,) = rows.item({"it": cell}).inputs["it"]
    assert item["vectors"].tolist() == [[1.0, 2.0], [3.0, 4.0]]
    assert len(rows.item({"it": [cell, cell]}).inputs["it"]) == 2  # several sequences are several items
    one = rows.item({"it": cell[0]}).inputs["it"]
    assert [x["vectors"].tolist() for x in one] == [[[1.0, 2.0]]]


def test_items_of_a_manifest_and_rows_that_lack_them():
    cells = [[1.0, 2.0], None, [3.0, 4.0], []]
    rows = Rows(from_rows([{"v": c} for c in cells]), {"v": "v"}, {"v": built(cells).processor()}, seed=0, train=True)
    assert [[x["vectors"].tolist() for x in rows[Draw(k, 0, 0)].inputs.get("v", [])] for k in range(4)] == [
        [[[1.0, 2.0]]],
        [],
        [[[3.0, 4.0]]],
        [],
    ]
    several = [[[[1.0, 2.0]], [[3.0, 4.0], [5.0, 6.0]]], [[[7.0, 8.0]]]]
    encoder = built(several)
    assert encoder.vocabulary == {"width": 2, "count": 4}
    rows = Rows(from_rows([{"v": c} for c in several]), {"v": "v"}, {"v": encoder.processor()}, seed=0, train=False)
    assert [len(x["vectors"]) for x in rows[Draw(0, 0, 0)].inputs["v"]] == [1, 2]


def test_the_check_of_a_manifest_knows_them():
    rows = [
        {
            "split": "train" if k < 6 else "test",
            "vector": [float(k), 1.0],
            "tokens": [[k, 1, 2]] * (k % 3 + 1),
            "tags": ["x"],
            "codes": [1, 2],
            "label": k % 2,
        }
        for k in range(12)
    ]
    rows[2]["vector"], rows[4]["vector"], rows[8]["vector"] = [1.0], None, [3.0, 1.0]
    manifest = from_rows(rows)
    assert kinds(manifest) == {"vector": "features", "tokens": "features"}
    for content in (True, False):
        report = check(manifest, kinds(manifest), ["tags", "label"], content=content)
        assert [(cell.row, cell.column) for cell in report.unreadable] == [("2", "vector")]
        assert "the shape of this one is (1,)" in report.unreadable[0].message
        assert report.missing["vector"] == {"train": 1, "test": 0}
        assert report.duplicates["vector"] == [["3", "8"]]
    render(report, Console(file=io.StringIO()))


# ---------------------------------------------------------------- whole experiments


def people(count: int) -> list[dict]:
    """The label takes the sign of a vector and that of a sequence; three rows in four of the training split lack the latter."""
    random, rows = np.random.default_rng(1), []
    for k in range(count):
        one, two = random.choice([-1, 1], 2)
        sequence = (two * 2 + random.normal(0, 0.5, (int(random.integers(1, 4)), 3))).tolist()
        split = "train" if k < count * 0.6 else "validation" if k < count * 0.8 else "test"
        there = split != "train" or k % 2
        rows.append(
            {
                "id": f"p{k}",
                "split": split,
                "domain": "whole" if there else "half",
                "face": (50 + 20 * one + random.normal(0, 5, 5)).tolist(),
                "gait": sequence if there else None,
                "kind": f"k{int(one > 0)}{int(two > 0)}",
            }
        )
    return rows


@pytest.fixture
def crowd(tmp_path) -> dict:
    return {
        "run": str(tmp_path / "run"),
        "data": {"manifest": str(write(people(400), tmp_path / "people.parquet")), "batch_size": 16},
        "model": {
            "dim": 16,
            "encoders": {"face": {"name": "features", "standardize": True}, "gait": "features"},
            "fusion": "concat",
            "heads": {"kind": "classify"},
        },
        "objectives": {"kind": {"name": "classify", "task": "kind"}},
        "transfer": "full",
        "train": {"steps": 80, "lr": 1e-2, "evaluate_every": 40, "log_every": 5},
        "evaluate": {"resamples": 20},
        "trackers": [],
        "threads": 1,
    }


def test_trained_without_any_parameter_of_an_encoder_resumed_saved_and_asked(capfd, crowd, config_file, tmp_path):
    file = config_file(crowd)
    status, out, err = call(capfd, "train", file, "--json")
    assert status == 0, err
    figures = {row["metric"]: row["value"] for row in json.loads(out)["rows"] if row["group"] == "all"}
    assert figures["accuracy"] > 0.9  # 0.5 from either alone
    best = tmp_path / "run/best"
    whole = Model.from_pretrained(best)
    assert not any(name.startswith("encoders") for name in whole.state_dict())
    with pytest.raises(Stopped):
        launch.train(experiment(crowd, f"run={tmp_path}/cut"), max_time=0.01)
    assert call(capfd, "train", file, "--resume", f"run={tmp_path}/cut")[0] == 0
    again = Model.from_pretrained(tmp_path / "cut/best")
    assert all(torch.equal(x, again.state_dict()[name]) for name, x in whole.state_dict().items())
    status, out, err = call(capfd, "evaluate", best, "--json")
    assert status == 0, err
    assert {row["value"] for row in json.loads(out)["rows"] if row["metric"] == "accuracy" and row["group"] == "all"} == {
        figures["accuracy"]
    }
    face, gait = [70.0] * 5, [[-2.0] * 3] * 2
    answers = whole.predict(
        [{"face": face, "gait": gait}, {"face": np.array(face), "gait": torch.tensor(gait)}, {"face": torch.tensor(face)}, {}]
    )
    assert answers[0] == answers[1]
    assert answers[0]["kind"]["prediction"] == "k10"
    status, out, err = call(capfd, "predict", best, "--face", json.dumps(face), "--gait", json.dumps(gait), "--json")
    assert json.loads(out)["kind"]["confidence"] == pytest.approx(answers[0]["kind"]["confidence"], abs=1e-5)
    status, two, _ = call(capfd, "predict", best, "--face", json.dumps(face), *["--gait", "[-2, -2, -2]"] * 2, "--json")
    assert json.loads(two) == json.loads(out)  # vectors one by one are tokens of one item
    assert "a list of 5 numbers" in refused(capfd, "predict", best, "--face", "[1, 2]")
    assert "--face takes JSON, such as '[0.1, 0.2]'" in refused(capfd, "predict", best, "--face", "[1, 2")
    assert "NaN" in refused(capfd, "predict", best, "--face", "[1, NaN, 2, 3, 4]")
    table = tmp_path / "vectors.parquet"
    assert call(capfd, "embed", best, tmp_path / "people.parquet", "--out", table)[0] == 0
    assert len(pq.read_table(table)["face"][0].as_py()) == 16


def test_a_batch_none_of_whose_rows_has_a_modality_trains_all(crowd):
    crowd["data"]["streams"] = {"half": {"quota": 4, "domain": "half"}}
    setup = launch.build(experiment(crowd))
    batch = next(setup.feed.training(0, 1))
    assert "gait" not in batch.inputs
    setup.learner.train()
    assert setup.learner.unreached(batch) == []  # not even the projection of what no row has
    losses = launch.train(experiment(crowd, "train.steps=3", "train.evaluate_every=3"))
    assert losses


def test_statistics_are_those_of_the_training_split(crowd, tmp_path):
    def vocabulary(where: str) -> dict:
        rows = people(400)
        for row in rows:
            if row["split"] == where:
                row["face"] = [1e6] * 5
        data = copy.deepcopy(crowd)
        data["data"]["manifest"] = str(write(rows, tmp_path / f"wild-{where}.parquet"))
        return launch.build(experiment(data)).learner.model.vocabularies["encoders.face"]

    plain = vocabulary("none")
    faces = np.array([row["face"] for row in people(400) if row["split"] == "train"])
    np.testing.assert_allclose(plain["mean"], faces.mean(0))
    np.testing.assert_allclose(plain["std"], faces.std(0))
    assert vocabulary("test") == plain
    assert vocabulary("train") != plain  # the control


def test_a_cell_that_cannot_be_read_is_a_bad_row(capfd, crowd, config_file, tmp_path):
    rows = people(400)
    rows[3]["face"], rows[5]["face"] = [1.0] * 4, [math.inf] * 5
    crowd["data"]["manifest"] = str(write(rows, tmp_path / "bad.parquet"))
    file = config_file(crowd)
    words = refused(capfd, "train", file)
    assert "row 'p3', column 'face': features are a list of 5 numbers" in words or "row 'p5', column 'face': 5 of 5" in words
    status, _, err = call(capfd, "train", file, "data.bad_rows=drop", "train.steps=4", f"run={tmp_path}/other")
    assert status == 0, err
    lines = [json.loads(line) for line in (tmp_path / "other/bad_rows.jsonl").read_text().splitlines()]
    assert [(line["id"], line["column"]) for line in lines] == [("p3", "face"), ("p5", "face")]


def test_the_desk_knows_features(capfd, crowd, config_file):
    file = config_file(crowd)
    status, out, err = call(capfd, "train", file, "--dry-run", "--json")
    assert status == 0, err
    found = json.loads(out)
    assert found["shapes"]["input face.vectors"] == [16, 1, 5]
    assert not any(part.startswith("encoders") for part in found["parameters"])
    assert call(capfd, "train", file, "--dry-run", "train.checkpointing=true", "data.group_by_length=gait")[0] == 0
    assert "model.encoders.face: features are one column of lists" in refused(capfd, "train", file, "data.columns.face=kind")
    words = refused(capfd, "train", file, "data.columns.face=[face, gait]")
    assert "features are one column of lists" in words
    assert "matches no parameter" in refused(capfd, "train", file, "transfer.frozen=[encoders.face]")
    status, out, _ = call(capfd, "list", "encoders", "--json")
    assert json.loads(out)["encoders"]["features"]["settings"] == {"standardize": "False"}
    status, out, _ = call(capfd, "data", "check", crowd["data"]["manifest"], "--labels", "kind", "--json")
    assert json.loads(out)["missing"]["gait"]["train"] == 120


def test_long_cells_are_few_objects_at_a_time(monkeypatch):
    from mmkt.data import columns

    wide = column([[1.0] * 1000] * 100)
    monkeypatch.setattr(columns, "BYTES", 80_000)
    sizes = [len(part) for part in columns.slices(wide, 7)]
    assert sizes == [7] * 14 + [2]
    asked = []
    monkeypatch.setattr(columns, "slices", lambda whole, rows: asked.append(rows) or [whole])
    assert len(list(columns.cells(wide))) == 100
    assert asked == [9]  # of 8,004 bytes each
