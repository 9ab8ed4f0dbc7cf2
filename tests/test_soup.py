"""Checkpoints averaged into one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState, PartialState
from conftest import call, experiment, refused, settings
from safetensors.torch import load_file

import mmkt
from mmkt import launch, soup
from mmkt.evaluate import evaluate
from mmkt.model import Model
from mmkt.parts import ConfigError
from mmkt.start import start


@pytest.fixture(scope="module")
def members(tmp_path_factory, tiny_manifest, tiny_bert) -> Path:
    """Three runs from one seed at other rates (the last one far too high), one from another seed, one that starts from a run."""
    folder = tmp_path_factory.mktemp("members")
    data = settings(tiny_manifest, tiny_bert, folder / "x")
    del data["model"]["encoders"]["image"]
    data["train"] |= {"steps": 20, "evaluate_every": 20}
    begun = f"model.start={folder}/a/best"
    for name, more in {
        "a": [],
        "b": ["train.lr=1e-3"],
        "c": ["train.lr=0.5", "train.clip=null"],
        "seed": ["seed=1"],
        "tuned": [begun, "seed=2"],
        "other": [begun, "seed=3"],
    }.items():
        launch.train(experiment(data, *more, f"run={folder / name}"))
        AcceleratorState._reset_state()
        PartialState._reset_state()
    return folder


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def test_a_uniform_soup_is_the_mean_and_loads(members, tmp_path):
    paths = [str(members / name / "best") for name in ("a", "b")]
    found = soup.soup(paths, out=tmp_path / "soup")
    one, two, mixed = weights(Path(paths[0])), weights(Path(paths[1])), weights(tmp_path / "soup")
    assert one.keys() == mixed.keys()
    for name in one:
        torch.testing.assert_close(mixed[name], (one[name] + two[name]) / 2)
    assert any(not torch.equal(one[name], mixed[name]) for name in one)
    note = json.loads((tmp_path / "soup/average.json").read_text())
    assert note["members"] == paths
    assert [line["name"] for line in note["tried"]] == [*paths, "the average of 2"]
    evaluated, _ = evaluate(str(tmp_path / "soup"), ["evaluate.split=validation"])
    row = next(r for r in evaluated.rows if r.metric == "accuracy" and r.group == "all")
    assert row.value == found.value == note["value"]
    assert row.run == "soup"
    assert mmkt.load(tmp_path / "soup").predict([{"text": "it is large"}])


def test_a_greedy_soup_leaves_out_what_harms(members, tmp_path):
    paths = [str(members / name / "best") for name in ("c", "a", "b")]
    uniform = soup.soup(paths, out=tmp_path / "uniform")
    greedy = soup.soup(paths, out=tmp_path / "greedy", greedy=True)
    values = {line.name: line.value for line in uniform.tried}
    assert paths[0] not in greedy.members
    assert greedy.value >= max(values[path] for path in paths) > uniform.value
    mixed = weights(tmp_path / "greedy")
    expected = soup.mean([weights(Path(path)) for path in greedy.members])
    assert all(torch.equal(mixed[name], expected[name]) for name in mixed)


def test_the_mean_of_equals_is_themselves_to_the_bit():
    x = {"w": torch.randn(50), "n": torch.tensor(7)}
    three = soup.mean([x, x, x])
    assert all(torch.equal(three[name], x[name]) for name in x)
    other = {"w": torch.randn(50), "n": torch.tensor(9)}
    mixed = soup.mean([x, other], [0.25, 0.75])
    torch.testing.assert_close(mixed["w"], 0.25 * x["w"] + 0.75 * other["w"])
    assert mixed["n"] == 7


def test_between_start_and_end(members, tmp_path):
    path = members / "tuned/best"
    found = soup.soup([str(path)], out=tmp_path / "half", with_start=[0.5])
    end, mixed = weights(path), weights(tmp_path / "half")
    torch.manual_seed(2)
    began = Model.from_config(experiment(json.loads((path / "config.json").read_text())), mmkt.load(path).vocabularies)
    start(began, str(members / "a/best"))
    origin = began.state_dict()
    assert found.alpha == 0.5
    for name in end:
        torch.testing.assert_close(mixed[name], (end[name] + origin[name]) / 2)
    whole = soup.soup([str(path)], out=tmp_path / "grid", with_start=())
    tried = {line.name: line.value for line in whole.tried}
    assert len([name for name in tried if name.startswith("α")]) == 11
    assert tried["α = 1"] == tried[str(path)]
    assert tried["α = 0"] == soup.soup([str(members / n / "best") for n in "ab"], out=tmp_path / "ab").tried[0].value
    assert whole.value == max(value for name, value in tried.items() if name.startswith("α"))


def test_what_has_no_average_is_refused(members, tmp_path, tiny_manifest, tiny_bert):
    a, seed = (str(members / name / "best") for name in ("a", "seed"))
    with pytest.raises(ConfigError, match=r"the seed 0, .* at the seed 1: weights that were drawn apart"):
        soup.soup([a, seed], out=tmp_path / "x")
    both = [str(members / name / "best") for name in ("tuned", "other")]
    assert soup.soup(both, out=tmp_path / "both").members == both  # other seeds, but all weights come from one checkpoint
    data = settings(tiny_manifest, tiny_bert, tmp_path / "wide")
    del data["model"]["encoders"]["image"]
    launch.train(experiment(data, "model.fusion=sum", "train.steps=3"))
    with pytest.raises(ConfigError, match=r"other models: they differ in model\.fusion\.name"):
        soup.soup([a, str(tmp_path / "wide/best")], out=tmp_path / "x")
    for paths, more, words in (
        ([a], {}, "two checkpoints or more"),
        ([a, a], {}, "named twice"),
        ([a], {"with_start": [1.5]}, "between 0 and 1"),
        ([a, str(members / "b/best")], {"metric": "kind/mae"}, "there is no 'kind/mae'"),
        ([a, str(members / "b/best")], {"metric": "loss"}, "give --metric"),
    ):
        with pytest.raises(ConfigError, match=words):
            soup.soup(paths, out=tmp_path / "x", **more)
    assert not (tmp_path / "x").exists()


def test_the_command(members, tmp_path, capfd):
    paths = [members / name / "best" for name in ("a", "b")]
    status, out, err = call(capfd, "average", *paths, "--greedy", "--out", tmp_path / "soup", "--with-start", "0", "1")
    assert status == 0
    assert "kind/accuracy on validation" in out
    assert "α = 1" in out
    assert "mmkt evaluate" in err
    assert "is there already" in refused(capfd, "average", *paths, "--out", tmp_path / "soup")
    status, out, _ = call(capfd, "average", *paths, "data.batch_size=5", "--out", tmp_path / "json", "--json")
    assert json.loads(out)["members"] == [str(path) for path in paths]
