"""Prompt files, classes by their names, and generalised zero-shot."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
import torch
import torch.nn.functional as F
import yaml
from conftest import call, experiment, refused

from mmkt import launch, prompts, report, zero_shot
from mmkt.model import Model
from mmkt.parts import ConfigError
from mmkt.score import About
from mmkt.types import Predictions

CLASSES = [f"k{k}" for k in range(8)]


@pytest.fixture(scope="module")
def aligned(tmp_path_factory, tiny_manifest, tiny_bert):
    """A checkpoint whose modalities were aligned."""
    from conftest import settings

    data = settings(tiny_manifest, tiny_bert, tmp_path_factory.mktemp("aligned") / "run")
    data["objectives"]["near"] = "align"
    launch.train(experiment(data, "train.steps=6", "train.evaluate_every=6"))
    return f"{data['run']}/best"


def file(tmp_path, **languages):
    path = tmp_path / "prompts.yaml"
    path.write_text(yaml.safe_dump(languages, allow_unicode=True))
    return path


def test_a_class_is_the_mean_of_its_texts(aligned, tmp_path):
    model = Model.from_pretrained(aligned)
    read = prompts.read(
        str(file(tmp_path, en={"templates": ["what is {}", "the {}"], "classes": {"a": ["red", "blue"], 7: "loud"}}))
    )
    vectors = prompts.class_vectors(model, read["en"])
    each = []
    for texts in (["what is red", "the red", "what is blue", "the blue"], ["what is loud", "the loud"]):
        x = torch.stack([_vector(model, text) for text in texts])
        each.append(F.normalize(F.normalize(x, dim=1).mean(0), dim=0))
    assert torch.allclose(vectors, torch.stack(each), atol=1e-5)
    assert list(read["en"].names) == ["a", "7"]
    plain = prompts.read(str(file(tmp_path, en={"classes": {"a": "red", 7.0: "loud"}})))["en"]
    assert list(plain.names) == ["a", "7"], "as a column of integers with gaps has it"
    assert plain.templates == ["{}"]
    assert not torch.allclose(prompts.class_vectors(model, plain), vectors, atol=1e-3)


def _vector(model, text):
    """By the path that rows of a manifest take."""
    from mmkt.data.collate import Collate
    from mmkt.data.rows import Rows

    processors = {m: e.processor() for m, e in model.encoders.items()}
    none = torch.full((1,), -1)
    item = Rows(None, {m: m for m in processors}, processors, seed=0, train=False).item({"text": text})
    with torch.inference_mode():
        return model(Collate(model.modalities, processors, {}, none, none)([item])).encoded["text"].pooled[0]


def test_files_that_cannot_be(tmp_path):
    with pytest.raises(ConfigError, match=r"evaluate.prompts: there is no file .*none\.yaml; it says by language"):
        prompts.read(str(tmp_path / "none.yaml"))
    (tmp_path / "twice.json").write_text('{"en": {"classes": {"a": "x", "a": "y"}}}')
    with pytest.raises(ConfigError, match="given twice: a"):
        prompts.read(str(tmp_path / "twice.json"))
    wrong = {
        "en": {"templates": ["no place"], "classes": {"a": "x"}},
        "de": {"klassen": {}},
        "fr": {"classes": {"a": [" "]}},
        "zh": {"classes": {"a": "x"}, "template": "{}"},
        "it": {"classes": {"a": "x"}, "templates": "{}"},
        "es": {"classes": {1: "uno", "1": "one"}},
    }
    with pytest.raises(ConfigError) as found:
        prompts.read(str(file(tmp_path, **wrong)))
    expected = (
        "en.templates: is a list of texts with {}",
        "de: should hold templates and classes",
        "fr.classes.a: is a name or a",
        "zh: should hold",
        "it.templates",
        "es.classes: '1' is there twice, as a number and as a text",
    )
    for words in expected:
        assert words in str(found.value)
    with pytest.raises(ConfigError, match="holds no language"):
        prompts.read(str(file(tmp_path)))


def rows_of(vectors, labels, **columns) -> Predictions:
    n = len(labels)
    there = np.ones(n, dtype=bool)
    table = {"row": np.arange(n), "domain": [None] * n, "group": [None] * n, "has.m": there, "vector.m": pa.array(list(vectors))}
    return Predictions(pa.table(table | columns), {}, {})


def test_figures_by_hand():
    """Two seen classes, two unseen; harmonic mean of accuracies a class."""
    named = F.normalize(torch.eye(4, 6), dim=1)
    truth = ["a", "a", "a", "b", "c", "c", "c", "c", "d", None]
    said = [0, 0, 1, 1, 2, 2, 2, 0, 0, 0]
    vectors = np.eye(4, 6, dtype=np.float32)[said] + 0.01
    vectors[8, 3] += 0.5  # d comes second, and first among unseen
    domains = pa.array(["x"] * 5 + ["y"] * 5)
    predictions = rows_of(vectors, truth)
    predictions = predictions._replace(table=predictions.table.set_column(1, "domain", domains))
    rows = zero_shot.measure(
        predictions, truth, {"en": (["a", "b", "c", "d"], named)}, ["m"], {"a", "b"}, "t", about=About(), resamples=100
    )
    found = {(row.metric, row.group): row.value for row in rows}
    assert found["accuracy", "all"] == pytest.approx(6 / 9)
    s, u = (2 / 3 + 1) / 2, (3 / 4 + 0) / 2
    assert found["seen", "all"] == pytest.approx(s)
    assert found["unseen", "all"] == pytest.approx(u)
    assert found["harmonic", "all"] == pytest.approx(2 * s * u / (s + u))
    assert found["unseen_alone", "all"] == 1.0  # of five rows: 'a' is no candidate
    assert found["chance", "all"] == 0.25
    assert found["unseen_alone.chance", "all"] == 0.5
    assert found["accuracy", "domain=x"] == pytest.approx(4 / 5)
    assert found["accuracy", "domain=y"] == pytest.approx(2 / 4)
    assert {row.condition for row in rows} == {"zero-shot en"}
    assert {row.n for row in rows if row.group == "all"} == {9, 5}
    one = next(row for row in rows if (row.metric, row.group) == ("harmonic", "all"))
    assert one.low < one.value < one.high


def test_all_seen_is_no_generalised_zero_shot():
    named = torch.eye(2, 4)
    rows = zero_shot.measure(
        rows_of(np.eye(2, 4, dtype=np.float32), ["a", "b"]), ["a", "b"], {"en": (["a", "b"], named)}, ["m"], {"a", "b"}, "t",
        about=About(), resamples=0,
    )  # fmt: skip
    assert {row.metric for row in rows} == {"accuracy", "chance"}
    assert rows[0].value == 1


def test_the_command(aligned, capfd, tmp_path):
    names = dict(zip(CLASSES, ["red", "blue", "round", "square", "small", "large", "loud", "quiet"]))
    path = file(tmp_path, en={"templates": ["{}", "the {}"], "classes": names}, xx={"classes": names})
    typed = ["evaluate", aligned, "--out", tmp_path / "out", f"evaluate.prompts={path}"]
    status, out, err = call(capfd, *typed)
    assert status == 0, err
    assert "kind by name, zero-shot (n = 24)" in out
    rows = report.read(tmp_path / "out/zero_shot.jsonl")
    assert {(row.modalities, row.condition) for row in rows} == {
        (m, f"zero-shot {language}") for m in ("image", "audio") for language in ("en", "xx")
    }
    assert {row.metric for row in rows} == {"accuracy", "top5", "chance"}
    first = {(row.modalities, row.condition, row.metric, row.group): row.value for row in rows}
    call(capfd, *typed, "data.batch_size=5")
    again = report.read(tmp_path / "out/zero_shot.jsonl")
    assert {(row.modalities, row.condition, row.metric, row.group): row.value for row in again} == first
    names.pop("k3")
    names.pop("k4")
    message = refused(capfd, "evaluate", aligned, f"evaluate.prompts={file(tmp_path, en={'classes': names})}")
    assert "en.classes: lacks 2 of the 8 classes of 'kind': k3, k4; name them" in message
    assert "there is no column 'kinds'; did you mean 'kind'" in refused(
        capfd, "evaluate", aligned, f"evaluate.prompts={path}", "evaluate.label=kinds"
    )
    assert "the column 'tags' holds strings or numbers" in refused(
        capfd, "evaluate", aligned, f"evaluate.prompts={path}", "evaluate.label=tags"
    )
    assert "told apart" in refused(capfd, "evaluate", aligned, f"evaluate.prompts={path}", "evaluate.label=split")
