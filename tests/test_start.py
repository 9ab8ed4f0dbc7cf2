"""A new experiment from another checkpoint's tensors: equal where kept, as drawn where new."""

from __future__ import annotations

import copy

import pytest
import torch
from conftest import rows_of_three, write

from mmkt import launch
from mmkt.checkpoint import CheckpointError
from mmkt.config import check
from mmkt.experiment import Experiment
from mmkt.parts import Parts
from mmkt.start import start


@pytest.fixture
def models(tiny_settings, tmp_path):
    """Builds a model of the tiny settings, changed by ``change``, with weights of another seed each time."""
    seeds = iter(range(1, 9))

    def make(change=lambda data: None):
        data = copy.deepcopy(tiny_settings)
        data["seed"] = next(seeds)
        change(data)
        return launch.build(check(Experiment, data, Parts())).learner.model

    return make


def state(model):
    return {name: x.clone() for name, x in model.state_dict().items()}


def test_everything_fits_its_own_kind(models, tmp_path):
    old, new = models(), models()
    old.save_pretrained(tmp_path / "old")
    before = state(new)
    found = start(new, tmp_path / "old")
    assert sorted(found.kept) == sorted(before)
    assert not found.new
    assert not found.dropped
    assert not found.shapes
    assert not found.classes
    for name, x in new.state_dict().items():
        assert torch.equal(x, old.state_dict()[name])
    assert any(not torch.equal(before[name], x) for name, x in new.state_dict().items())


def test_new_classes_fusion_and_modality(models, tmp_path):
    rows = rows_of_three(120)
    for row in rows:  # k0 and k1 go, two come
        row["kind"] = {"k0": "a0", "k1": "z1"}.get(row["kind"], row["kind"])
    manifest = write(rows, tmp_path / "other.parquet")

    def two(data):
        del data["model"]["encoders"]["audio"]

    def three(data):
        data["data"]["manifest"] = str(manifest)
        data["model"]["fusion"] = "gated"
        data["model"]["heads"]["size"] = "regress"
        data["objectives"]["size"] = {"name": "regress", "task": "size"}

    old, new = models(two), models(three)
    old.save_pretrained(tmp_path / "old")
    theirs, before = state(old), state(new)
    found = start(new, tmp_path / "old")
    after = new.state_dict()
    for name in after:
        kept = name in theirs and theirs[name].shape == after[name].shape and not name.startswith("heads.")
        assert (name in found.kept) == kept
        if kept:
            assert torch.equal(after[name], theirs[name])
        elif name not in found.classes:
            assert name in found.new
            assert torch.equal(after[name], before[name])
    assert {n for n in after if n.startswith("encoders.audio")} <= set(found.new)
    assert {n for n in after if n.startswith("encoders.text")} <= set(found.kept)
    # the vocabulary has as many classes as before, so the shapes fit: rows still go by name
    classes, former = new.vocabularies["kind"]["classes"], old.vocabularies["kind"]["classes"]
    assert classes == ["a0", *(f"k{i}" for i in range(2, 8)), "z1"]
    assert former == [f"k{i}" for i in range(8)]
    for name in ("heads.kind.linear.weight", "heads.kind.linear.bias"):
        for place, c in enumerate(classes):
            assert torch.equal(after[name][place], theirs[name][former.index(c)] if c in former else before[name][place])
        assert found.classes[name] == classes[1:-1]
    assert {name for name in theirs if name not in after} == set(found.dropped)
    words = str(found)
    for part in ("encoders.text", "encoders.audio", "heads.size", "fusion", "by class name in heads.kind: k2"):
        assert part in words


def test_other_widths_are_named_and_stay(models, tmp_path):
    old, new = models(lambda data: data["model"].update(dim=16)), models()
    old.save_pretrained(tmp_path / "old")
    before = state(new)
    found = start(new, tmp_path / "old")
    assert found.shapes["space.missing.text"] == ((16,), (32,))
    assert "space.missing.text has (16,) there, (32,) here" in str(found) or len(found.shapes) > 10
    assert torch.equal(new.state_dict()["space.missing.text"], before["space.missing.text"])


def test_constants_are_those_of_the_new_settings(models, tmp_path):
    """A filter bank of the same shape for another range of frequencies is not taken over."""

    def rate(data):
        data["model"]["encoders"]["audio"] |= {"rate": 9000}  # 225 samples a window: 256 points, as at 8000

    old, new = models(rate), models()
    old.save_pretrained(tmp_path / "old")
    name = "encoders.audio.front.mel.mel_scale.fb"
    before = state(new)[name]
    assert old.state_dict()[name].shape == before.shape
    assert not torch.equal(old.state_dict()[name], before)
    found = start(new, tmp_path / "old")
    assert name in found.constants
    assert torch.equal(new.state_dict()[name], before)


def test_nothing_that_fits_is_an_error(models, tmp_path):
    def only_text(data):
        data["model"]["encoders"] = {"text": data["model"]["encoders"]["text"]}
        data["model"]["heads"] = {"size": "regress"}
        data["objectives"] = {"size": {"name": "regress", "task": "size"}}
        data["model"]["dim"] = 16

    def only_image(data):
        data["model"]["encoders"] = {"image": data["model"]["encoders"]["image"]}

    old, new = models(only_text), models(only_image)
    old.save_pretrained(tmp_path / "old")
    before = state(new)
    with pytest.raises(CheckpointError, match=r"nothing of .* fits this model"):
        start(new, tmp_path / "old")
    assert all(torch.equal(x, before[name]) for name, x in new.state_dict().items())


def test_the_checkpoint_turns_no_plugin_on_and_training_starts_from_it(models, tiny_settings, tmp_path, capsys):
    old = models()
    old.config = old.config.model_copy(update={"plugins": ["their_lab"]})
    old.save_pretrained(tmp_path / "old")
    tiny_settings["model"]["start"] = str(tmp_path / "old")
    model = launch.build(check(Experiment, tiny_settings, Parts())).learner.model
    assert "kept: encoders.text" in capsys.readouterr().err
    assert all(torch.equal(x, old.state_dict()[name]) for name, x in model.state_dict().items())
