"""The table encoder: numbers and categories, normalised on the training split, missing values, a reference figure."""

from __future__ import annotations

import copy
import json
import math

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from conftest import call, experiment, refused, settings, write

from mmkt import launch
from mmkt.data.decode import DecodeError, record
from mmkt.data.manifest import from_rows
from mmkt.data.rows import Draw, Rows, is_absent
from mmkt.encoders.table import Table
from mmkt.model import Model
from mmkt.start import start
from mmkt.stop import Stopped

SMALL = {"width": 16, "layers": 2, "heads": 2, "dropout": 0.0}
COLUMNS = ["age", "weight", "sex", "smokes", "grade"]


def patients(count: int, seed: int = 0) -> list[dict]:
    """Rows whose label takes the table (older than 60, or a woman) and the text (large or small)."""
    random, rows = np.random.default_rng(seed), []
    for k in range(count):
        age, sex, large = float(random.uniform(20, 100)), str(random.choice(["f", "m"])), int(random.integers(2))
        rows.append(
            {
                "id": f"p{k}",
                "split": "train" if k < count * 0.6 else "validation" if k < count * 0.8 else "test",
                "text": "it is large" if large else "it is small",
                "age": age,
                "weight": None if k % 7 == 3 else float(random.normal(70, 12)),
                "sex": None if k % 11 == 5 else sex,
                "smokes": bool(random.integers(2)),
                "grade": int(random.integers(1, 4)),
                "kind": f"k{2 * (age > 60) + large}",
            }
        )
    return rows


def column(rows: list[dict]) -> pa.ChunkedArray:
    return pa.chunked_array([pa.array(rows)])


def learn(rows: list[dict], categories=("grade",), most=1000) -> dict:
    chosen = [{name: row.get(name) for name in COLUMNS if name in row} for row in rows]
    return Table.learn(column(chosen), {"categories": list(categories), "max_categories": most})


@pytest.fixture(params=["both", "numbers", "categories"])
def encoder(request):
    torch.manual_seed(0)
    kept = {"both": COLUMNS, "numbers": ["age", "weight"], "categories": ["sex", "smokes", "grade"]}[request.param]
    rows = [{name: row[name] for name in kept} for row in patients(50)]
    return Table({}, None, learn(rows, ["grade"] if "grade" in kept else []), **SMALL).eval()


def some(encoder, *places: int) -> dict[str, torch.Tensor]:
    processor, rows = encoder.processor(), patients(50)
    return processor.pad([processor({name: rows[k][name] for name in processor.columns}) for k in places])


# ---------------------------------------------------------------- what every encoder has to do


def test_stages_name_every_parameter_once(encoder):
    names = [name for stage in encoder.stages() for name in stage]
    assert len(encoder.stages()) == 4
    assert sorted(names) == sorted(name for name, _ in encoder.named_parameters())


def test_a_batch_changes_nothing(encoder):
    with torch.no_grad():
        many = encoder(some(encoder, 0, 3, 5))
        for k, place in enumerate((0, 3, 5)):
            torch.testing.assert_close(encoder(some(encoder, place)).tokens[0], many.tokens[k], atol=1e-5, rtol=0)
    assert many.mask.all()
    assert many.tokens.shape == (3, 1 + len(encoder.vocabulary), 16)
    assert torch.equal(many.pooled, many.tokens[:, 0])


def test_the_gradient_reaches_the_raw_numbers_and_is_finite_where_they_are_missing():
    encoder = Table({}, None, learn(patients(50)), **SMALL).eval()
    inputs = some(encoder, 0, 3, 5)
    leaf = inputs["numbers"].requires_grad_()
    (encoder(inputs).pooled * torch.linspace(-1, 1, 16)).sum().backward()
    missing = leaf.isnan()
    assert missing.tolist() == [[False, False], [False, True], [False, False]]
    assert leaf.grad.isfinite().all()
    assert (leaf.grad[~missing] != 0).all()
    assert (leaf.grad[missing] == 0).all()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in encoder.parameters())
    assert encoder.missing.grad[1].any()  # weight
    assert encoder.missing.grad[2].any()  # sex
    assert not encoder.missing.grad[[0, 3, 4]].any()


def test_bf16_and_compile_give_the_eager_answer():
    encoder = Table({}, None, learn(patients(50)), **SMALL | {"layers": 1}).eval()
    inputs = some(encoder, 0, 3)
    with torch.no_grad():
        eager = encoder(inputs)
        with torch.autocast("cpu", torch.bfloat16):
            half = encoder(inputs)
        torch.testing.assert_close(half.pooled.float(), eager.pooled, atol=0.1, rtol=0.1)
        torch._dynamo.reset()
        compiled = torch.compile(encoder, backend="aot_eager")(inputs)
        torch.testing.assert_close(compiled.pooled, eager.pooled, atol=1e-5, rtol=1e-5)


def test_activations_computed_again_give_the_same_gradients(encoder):
    inputs, found, kept = some(encoder, 0, 3), [], []

    def note(x):
        kept[-1] += x.numel()
        return x

    encoder.train()
    for block in encoder.blocks:
        block.drop.p = block.attention.dropout = 0.3  # drawn alike again
    for again in (False, True):
        if again:
            encoder.checkpoint_gradients()
        encoder.zero_grad()
        kept.append(0)
        torch.manual_seed(1)
        with torch.autograd.graph.saved_tensors_hooks(note, lambda x: x):
            out = encoder(inputs)
        (out.pooled * torch.linspace(-1, 1, 16)).sum().backward()
        found.append({name: p.grad for name, p in encoder.named_parameters()})
    assert kept[1] < 0.7 * kept[0]
    for name, grad in found[0].items():
        torch.testing.assert_close(found[1][name], grad, atol=1e-6, rtol=1e-6)


def test_blank_is_finite(encoder):
    out = encoder(encoder.blank())
    assert out.pooled.isfinite().all()
    assert out.pooled.shape == (1, encoder.width)


# ---------------------------------------------------------------- what is learned


def test_numbers_are_standardised_by_what_is_there():
    rows = [{"age": 20.0, "weight": 5}, {"age": 40.0, "weight": 5}, {"age": None, "weight": 5}, {"age": math.nan, "weight": None}]
    found = learn(rows, [])
    assert found == {"age": {"mean": 30.0, "std": 10.0, "count": 2}, "weight": {"mean": 5.0, "std": 0.0, "count": 3}}
    encoder = Table({}, None, found, **SMALL | {"layers": 1}).eval()
    seen = []
    encoder.blocks[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
    processor = encoder.processor()
    encoder(processor.pad([processor(record({"age": age, "weight": 6}, processor.columns)) for age in (20, 45, None)]))
    expected = torch.stack([encoder.bias + encoder.weight * torch.tensor([[x], [1.0]]) for x in (-1.0, 1.5, 0.0)])
    torch.testing.assert_close(seen[0][:, 1:], expected)  # a constant column stays finite; missing is the mean at the start
    assert torch.equal(seen[0][:, 0], encoder.token.expand(3, -1))


def test_categories_by_frequency_with_an_entry_for_the_unknown():
    rows = [
        {"sex": s, "smokes": b, "grade": g}
        for s, b, g in (("m", True, 3.0), ("f", None, 1.0), ("m", False, 3.0), ("", True, None))
    ]
    found = learn(rows)
    assert found == {
        "sex": {"values": ["m", "f"], "counts": [2, 1]},
        "smokes": {"values": ["true", "false"], "counts": [2, 1]},
        "grade": {"values": ["3", "1"], "counts": [2, 1]},
    }
    processor = Table({}, None, found, **SMALL).processor()
    codes = processor(record({"sex": "f", "smokes": False, "grade": 3}, processor.columns))
    assert codes["categories"].tolist() == [2, 2, 1]
    assert not codes["unknown"]
    codes = processor(record({"sex": "x", "grade": np.float32(7)}, processor.columns))
    assert codes["categories"].tolist() == [0, -1, 0]
    assert codes["unknown"]
    assert not codes["numbers"].numel()


def test_arrow_types_and_several_records_a_cell():
    table = pa.table(
        {
            "a": pa.array(["x", "y", "x"]).dictionary_encode(),
            "b": pa.array([1, 2, 3], pa.decimal128(5, 2)),
            "c": pa.array([2**60, 2**60 + 1, 2**60], pa.int64()),
            "d": pa.array([1, 2, 4], pa.float16()),
        }
    )
    cells = pa.chunked_array(table.to_struct_array())
    found = Table.learn(cells, {"categories": ["c"], "max_categories": 9})
    assert found["a"]["values"] == ["x", "y"]
    assert found["b"]["mean"] == 2.0
    assert found["c"]["values"] == [str(2**60), str(2**60 + 1)]
    assert found["d"]["count"] == 3
    many = pa.chunked_array([pa.array([[{"a": 1.0}, {"a": 3.0}], None, [{"a": 5.0}]])])
    assert Table.learn(many, {"categories": [], "max_categories": 9})["a"]["mean"] == 3.0


@pytest.mark.parametrize(
    ("rows", "categories", "words"),
    [
        ([{"age": None}, {"age": 1.0}], ["agee"], r"no column 'agee'; did you mean 'age'\?"),
        ([{"age": None, "weight": 1.0}], [], "column 'age' has no value in the whole training split"),
        ([{"age": [1.0]}], [], "column 'age' holds list<.*>; a table's columns hold numbers"),
        ([{"age": f"n{k}"} for k in range(9)], [], "column 'age' has 9 different values.*max_categories: 8"),
        ([{"age": 1e-40 * k} for k in range(9)], [], "column 'age' has the mean 4e-40 .* divide"),
        ([{"age": 1e39}], [], "column 'age' has no value in the whole"),
        ([{"age": 1.7e9 + k} for k in range(9)], [], "column 'age' has the mean 1.7e.09 .* subtract"),
    ],
)
def test_what_cannot_be_learned_is_refused_in_words(rows, categories, words):
    with pytest.raises(ValueError, match=words):
        learn(rows, categories, most=8)


def test_one_column_that_holds_no_objects_is_refused():
    with pytest.raises(ValueError, match=r"several columns, data.columns: .* this one holds string"):
        Table.learn(pa.chunked_array([["a text"]]), {"categories": [], "max_categories": 9})


# ---------------------------------------------------------------- records


def test_records_are_checked():
    columns = {"age": "number", "sex": "category"}
    assert record({"age": np.int64(3), "sex": np.bool_(True)}, columns) == {"age": 3, "sex": True}
    assert record({"age": np.float32("nan"), "sex": ""}, columns) == {"age": None, "sex": None}
    assert record({}, columns) == {"age": None, "sex": None}
    for cell, words in (
        ({"agee": 3}, r"no column 'agee' in this table; did you mean 'age'\?"),
        ({"age": "old"}, "'age' holds numbers, not str 'old'"),
        ({"age": True}, "'age' holds numbers, not bool"),
        ({"age": math.inf}, "not finite"),
        ({"age": 10**400}, "not finite or too large"),
        ({"sex": ["f"]}, "'sex' holds strings, numbers, true and false, not list"),
        ("a text", "an object {column: value}, not str 'a text'"),
    ):
        with pytest.raises(DecodeError, match=words):
            record(cell, columns)


def test_a_row_without_any_value_lacks_the_table():
    assert is_absent({"age": None, "weight": math.nan, "sex": ""})
    assert not is_absent({"age": None, "weight": 0.0})
    assert not is_absent({"smokes": False})
    assert is_absent({"bytes": None, "path": ""})
    assert not is_absent({"bytes": b"", "path": None})  # an empty file is a bad one, not an absent one
    rows = [{"age": 1.0, "sex": "f"}, {"age": None, "sex": None}, {"age": None, "sex": "m"}]
    encoder = Table({}, None, learn(rows, []), **SMALL)
    source = Rows(from_rows(rows), {"it": ["age", "sex"]}, {"it": encoder.processor()}, seed=0, train=False)
    assert ["it" in source[Draw(k, 0, 0)].inputs for k in range(3)] == [True, False, True]


def test_a_missing_value_is_not_zero():
    torch.manual_seed(0)
    encoder = Table({}, None, learn(patients(50)), **SMALL).eval()
    inputs = some(encoder, 0, 0, 0)
    inputs["numbers"][:, 0] = torch.tensor([0.0, math.nan, encoder.mean[0]])
    zero, missing, mean = encoder(inputs).pooled
    assert (zero - missing).abs().max() > 1e-2
    torch.testing.assert_close(missing, mean)  # until training has seen it missing
    with torch.no_grad():
        encoder.missing[0] += 0.5
    assert (encoder(inputs).pooled[1] - mean).abs().max() > 1e-2


# ---------------------------------------------------------------- whole experiments


@pytest.fixture
def hospital(tiny_bert, tmp_path) -> dict:
    """An experiment on a table and a text."""
    data = settings(write(patients(150), tmp_path / "patients.parquet"), tiny_bert, tmp_path / "run")
    data["data"]["columns"] = {"measurements": COLUMNS}
    data["model"]["encoders"] = {
        "text": data["model"]["encoders"]["text"],
        "measurements": {"name": "table", **SMALL, "dropout": 0.1, "categories": ["grade"]},
    }
    return data


def test_trained_on_a_table_and_a_text_resumed_to_the_bit_and_asked(capfd, hospital, config_file, tmp_path):
    hospital["train"] |= {"steps": 60, "lr": 6e-3, "evaluate_every": 30, "log_every": 5}
    hospital["data"] |= {"dropout": {"measurements": 0.1}, "batch_size": 16}
    file = config_file(hospital)
    status, out, err = call(capfd, "train", file, "--json")
    assert status == 0, err
    figures = {row["metric"]: row["value"] for row in json.loads(out)["rows"] if row["group"] == "all"}
    assert figures["accuracy"] > 0.8  # 0.5 from either alone
    whole = Model.from_pretrained(tmp_path / "run/best")
    # stopped at once, then resumed
    with pytest.raises(Stopped):
        launch.train(experiment(hospital, f"run={tmp_path}/cut"), max_time=0.01)
    assert call(capfd, "train", file, "--resume", f"run={tmp_path}/cut")[0] == 0
    again = Model.from_pretrained(tmp_path / "cut/best")
    assert all(torch.equal(x, again.state_dict()[name]) for name, x in whole.state_dict().items())
    (tmp_path / "patients.parquet").unlink()
    row = {"text": "it is large", "measurements": {"age": 90, "sex": "f"}}
    answer = whole.predict([row, {"text": "it is large", "measurements": {"age": 25, "weight": 60.0}}])
    assert [a["kind"]["prediction"] for a in answer] == ["k3", "k1"]
    best = tmp_path / "run/best"
    status, out, _ = call(capfd, "predict", best, "--text", row["text"], "--measurements", '{"age": 90, "sex": "f"}', "--json")
    assert json.loads(out)["kind"]["confidence"] == pytest.approx(answer[0]["kind"]["confidence"], abs=1e-5)
    status, _, err = call(capfd, "predict", best, "--measurements", '{"sex": "x"}')
    assert "measurements: 1 of 1 items read have values that the training split does not have" in err
    assert "did you mean 'age'?" in refused(capfd, "predict", best, "--measurements", '{"agee": 61}')
    assert "--measurements takes JSON" in refused(capfd, "predict", best, "--measurements", "age 61")
    assert "lacks encoders.measurements" in without_vocabulary(capfd, best)


def without_vocabulary(capfd, best) -> str:
    file = best / "vocabularies.json"
    file.write_text(json.dumps({k: v for k, v in json.loads(file.read_text()).items() if "." not in k}))
    return refused(capfd, "predict", best, "--measurements", '{"age": 61}')


def test_statistics_are_those_of_the_training_split(hospital, tmp_path):
    def model(where):
        rows = patients(150)
        for row in rows:
            if row["split"] == where:
                row |= {"age": 1e6, "sex": "alien", "weight": -1e6}
        data = copy.deepcopy(hospital)
        data["data"]["manifest"] = str(write(rows, tmp_path / f"wild-{where}.parquet"))
        return launch.build(experiment(data)).learner.model

    plain, wild = model("none"), model("test")
    ages = np.array([row["age"] for row in patients(150) if row["split"] == "train"])
    found = plain.vocabularies["encoders.measurements"]
    assert found["age"] == {"mean": pytest.approx(ages.mean()), "std": pytest.approx(ages.std()), "count": 90}
    assert wild.vocabularies == plain.vocabularies
    assert all(torch.equal(x, wild.state_dict()[name]) for name, x in plain.state_dict().items())
    assert model("train").vocabularies != plain.vocabularies  # the control


def test_objects_in_one_column_are_the_same_table(hospital, tmp_path):
    lines = []
    for row in patients(150):
        cell = {name: row.pop(name) for name in COLUMNS}
        lines.append(json.dumps(row | {"measurements": {k: v for k, v in cell.items() if v is not None}}))
    (tmp_path / "objects.jsonl").write_text("\n".join(lines))
    columns = launch.build(experiment(hospital))
    objects = launch.build(
        experiment(hospital, f"data.manifest={tmp_path}/objects.jsonl", "data.columns.measurements=measurements")
    )
    assert columns.learner.model.vocabularies == objects.learner.model.vocabularies
    one, other = (next(setup.feed.training(0, 1)).inputs["measurements"] for setup in (columns, objects))
    assert torch.equal(one["categories"], other["categories"])
    torch.testing.assert_close(one["numbers"], other["numbers"], equal_nan=True)


def test_a_value_of_the_wrong_type_is_a_bad_row(capfd, hospital, config_file, tmp_path):
    rows = patients(150)
    rows[3]["weight"] = math.inf
    hospital["data"]["manifest"] = str(write(rows, tmp_path / "infinite.parquet"))
    file = config_file(hospital)
    assert "row 'p3', column 'measurements': 'weight' holds the number inf" in refused(
        capfd, "train", file, "train.epochs=1", "train.steps=null"
    )
    status, _, err = call(capfd, "train", file, "data.bad_rows=drop", f"run={tmp_path}/other")
    assert status == 0, err
    (line,) = [json.loads(x) for x in (tmp_path / "other/bad_rows.jsonl").read_text().splitlines()]
    assert (line["id"], line["column"]) == ("p3", "measurements")
    learned = json.loads((tmp_path / "other/best/vocabularies.json").read_text())["encoders.measurements"]
    assert learned["age"]["count"] == 89  # of 90: learned again without the bad row
    rows = patients(20)
    for k, row in enumerate(rows):
        row |= {"age": "old" if k == 2 else None, "split": "test"}
    strings = write(rows, tmp_path / "strings.parquet")
    best = tmp_path / "other/best"
    settings = [f"data.manifest={strings}", "data.bad_rows=refuse"]
    assert "row 'p2', column 'measurements': 'age' holds numbers, not str 'old'" in refused(capfd, "evaluate", best, *settings)
    status, out, err = call(capfd, "embed", best, strings, "data.bad_rows=drop", "--out", tmp_path / "vectors.parquet")
    assert status == 0, err
    table = pq.read_table(tmp_path / "vectors.parquet")
    assert len(table) == 19
    assert len(table["measurements"][0].as_py()) == 32


def test_the_desk_knows_tables(capfd, hospital, config_file):
    file = config_file(hospital)
    status, out, err = call(capfd, "train", file, "--dry-run", "--json")
    assert status == 0, err
    shapes = json.loads(out)["shapes"]
    assert shapes["input measurements.numbers"] == [12, 2]
    assert shapes["encoded measurements"] == [12, 6, 16]  # in the encoder's width
    assert "is a table: its rows have one length" in refused(capfd, "train", file, "data.group_by_length=measurements")
    words = refused(capfd, "train", file, "data.columns.text=[text, sex]")
    assert "data.columns.text: names a list of columns" in words
    words = refused(capfd, "train", file, "data.columns.measurements=text")
    assert "model.encoders.measurements: a table takes several columns" in words
    assert "did you mean 'age'?" in refused(capfd, "train", file, "data.columns.measurements=[agee]")
    assert "names one or more, each once" in refused(capfd, "train", file, "data.columns.measurements=[age, age]")


def test_starting_from_a_table_of_other_columns_goes_by_name(hospital, tmp_path):
    old = launch.build(experiment(hospital)).learner.model
    old.save_pretrained(tmp_path / "old")
    data = copy.deepcopy(hospital) | {"seed": 1}
    data["data"]["columns"]["measurements"] = ["weight", "smokes", "sex", "age"]  # as many numbers, in another order
    data["model"]["encoders"]["measurements"]["categories"] = []
    new = launch.build(experiment(data)).learner.model
    before = new.encoders["measurements"].weight.clone()
    found = start(new, tmp_path / "old")
    one, other = old.encoders["measurements"], new.encoders["measurements"]
    assert not torch.equal(before, other.weight)
    assert torch.equal(one.weight[[1, 0]], other.weight)
    assert torch.equal(one.bias[[1, 0, 3, 2]], other.bias)
    assert torch.equal(one.blocks[0].fc1.weight, other.blocks[0].fc1.weight)
    assert "by name in encoders.measurements: " in str(found)
    assert "encoders.measurements.values" in found.classes


def test_what_is_missing_can_be_the_answer(tiny_bert, tmp_path):
    random = np.random.default_rng(0)
    rows = []
    for k in range(160):
        kind = "tested" if random.random() < 0.5 else "untested"
        value = float(random.choice([-1.0, 1.0])) if kind == "tested" else None
        rows.append({"split": "train" if k < 100 else "test", "a": value, "b": float(random.normal()), "kind": kind})
    data = settings(write(rows, tmp_path / "m.parquet"), tiny_bert, tmp_path / "run")
    data["data"] |= {"columns": {"it": ["a", "b"]}, "validation": None}
    data["model"]["encoders"] = {"it": {"name": "table", **SMALL}}
    data["train"] |= {"steps": 60, "lr": 1e-2, "evaluate_every": 60}
    figures = launch.train(experiment(data))
    assert next(row.value for row in figures if row.metric == "accuracy") > 0.95


def test_the_reference_of_a_linear_model_on_real_measurements(tiny_bert, tmp_path):
    """569 tumours of 30 measurements (scikit-learn's breast-cancer table): as good as logistic regression."""
    from sklearn.datasets import load_breast_cancer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    table = load_breast_cancer()
    names = [str(name) for name in table.feature_names]
    train = np.random.default_rng(0).random(len(table.target)) < 0.7
    reference = make_pipeline(StandardScaler(), LogisticRegression()).fit(table.data[train], table.target[train])
    expected = reference.score(table.data[~train], table.target[~train])
    rows = [
        dict(zip(names, map(float, x))) | {"kind": int(y), "split": "train" if on else "test"}
        for x, y, on in zip(table.data, table.target, train)
    ]
    data = settings(write(rows, tmp_path / "tumours.parquet"), tiny_bert, tmp_path / "run")
    data["data"] |= {"columns": {"it": names}, "validation": None, "batch_size": 32}
    data["model"]["encoders"] = {"it": {"name": "table", **SMALL, "width": 32}}
    data["train"] |= {"steps": 100, "lr": 3e-3, "evaluate_every": 100}
    figures = launch.train(experiment(data))
    found = next(row.value for row in figures if row.metric == "accuracy")
    print(f"table {found:.3f}, logistic regression {expected:.3f}")
    assert expected > 0.95
    assert found > expected - 0.02
