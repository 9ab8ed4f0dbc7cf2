"""Configs: merging, checking, round trips, renames, plugins, the schema."""

from __future__ import annotations

import json

import jsonschema
import pytest
import yaml
from conftest import experiment

from mmkt import config as configs
from mmkt.config import ConfigError, check, dump, load, merge, override, read, revive
from mmkt.experiment import Experiment
from mmkt.parts import Parts
from mmkt.schema import schema


def problems(data) -> dict[str, str]:
    with pytest.raises(ConfigError) as caught:
        check(Experiment, data, Parts())
    return dict(caught.value.problems)


def test_defaults_are_written_out(tiny_settings):
    config = check(Experiment, tiny_settings, Parts())
    assert config.train.clip == 1.0
    assert config.model.fusion == {"name": "concat", "hidden": None, "dropout": 0.0}
    assert config.objectives["kind"]["weight"] == 1.0
    assert config.transfer == {"name": "full", "frozen": [], "lr": {}, "layer_decay": 1.0}


def test_three_mistakes_at_once_each_by_its_path(tiny_settings):
    tiny_settings["model"]["fuson"] = "gated"
    tiny_settings["model"]["encoders"]["audio"]["mells"] = 3
    tiny_settings["train"]["lr"] = "fast"
    found = problems(tiny_settings)
    assert set(found) == {"model.fuson", "model.encoders.audio.mells", "train.lr"}
    assert "did you mean 'fusion'" in found["model.fuson"]
    assert "did you mean 'mels'" in found["model.encoders.audio.mells"]
    assert "'fast'" in found["train.lr"]


def test_a_misspelt_part_names_the_nearest_and_all(tiny_settings):
    tiny_settings["model"]["fusion"] = {"name": "gatd"}
    text = problems(tiny_settings)["model.fusion"]
    assert "did you mean 'gated'" in text
    assert "concat, crossmodal" in text


@pytest.mark.parametrize(
    ("path", "value", "says"),
    [
        ("train.accumulate", 0, "greater than or equal to 1"),
        ("train.warmup", 1.5, "less than 1"),
        ("train.epochs", True, "number"),
        ("train.schedule", "cosin", "did you mean 'cosine'"),
        ("model.fusion.dropout", 1.0, "less than 1"),
        ("model.encoders", ["text"], "mapping"),
        ("model.fusion", 3, "should be a name"),
        ("data", "manifest.csv", "should hold settings"),
        ("data.columns", {"2d": "x"}, "pattern"),
    ],
)
def test_values_are_checked(tiny_settings, path, value, says):
    data = override(tiny_settings, [f"{path}={json.dumps(value)}"]) if path != "model.encoders" else tiny_settings
    if path == "model.encoders":
        data["model"]["encoders"] = value
    found = problems(data)
    assert says in " ".join(found.values())
    assert any(key.startswith(path) for key in found)


def test_a_required_setting(tiny_settings):
    del tiny_settings["objectives"]["kind"]["task"]
    assert problems(tiny_settings) == {"objectives.kind.task": "is required"}


def test_numbers_in_scientific_notation_are_numbers(tiny_settings):
    """YAML 1.1 reads 3e-4 as a string."""
    assert check(Experiment, override(tiny_settings, ["train.lr=3e-4"]), Parts()).train.lr == 3e-4


@pytest.mark.parametrize(
    ("old", "new", "merged"),
    [
        ({"name": "gated", "dropout": 0.1}, "gated", {"name": "gated", "dropout": 0.1}),
        ({"name": "gated", "dropout": 0.1}, "concat", {"name": "concat"}),
        ({"name": "gated", "dropout": 0.1}, {"name": "merged", "layers": 1}, {"name": "merged", "layers": 1}),
        ({"name": "gated", "dropout": 0.1}, {"dropout": 0.2}, {"name": "gated", "dropout": 0.2}),
        ("gated", {"dropout": 0.2}, {"name": "gated", "dropout": 0.2}),
        ({"a": {"b": 1, "c": 2}}, {"a": {"b": 3}}, {"a": {"b": 3, "c": 2}}),
        ([1, 2], [3], [3]),
    ],
)
def test_merge(old, new, merged):
    assert merge(old, new) == merged


def test_bases_then_own_then_overrides(tmp_path):
    (tmp_path / "a.yaml").write_text("seed: 1\ntrain: {lr: 0.1, epochs: 2}\n")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/b.yaml").write_text("base: [../a.yaml]\ntrain: {lr: 0.2}\n")
    assert load(tmp_path / "sub/b.yaml") == {"seed": 1, "train": {"lr": 0.2, "epochs": 2}}
    assert override(load(tmp_path / "sub/b.yaml"), ["train.lr=0.3"])["train"]["lr"] == 0.3


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a: [1", "not valid YAML"),
        ("seed: 1\nseed: 2", "given twice: seed"),
        ("- 1", "should hold settings"),
        ("base: [x.yaml]", "leads back"),
        ("base: [y.yaml]", "no config"),
    ],
)
def test_files_that_cannot_be_read(tmp_path, text, says):
    (tmp_path / "x.yaml").write_text(text)
    with pytest.raises(ConfigError, match=says):
        load(tmp_path / "x.yaml")


def test_null_takes_an_encoder_away(tiny_settings):
    config = check(Experiment, override(tiny_settings, ["model.encoders.audio=null"]), Parts())
    assert list(config.model.encoders) == ["text", "image"]


def test_an_objective_named_like_its_part_needs_no_name(tiny_settings):
    tiny_settings["objectives"]["align"] = {"weight": 0.1}
    config = check(Experiment, tiny_settings, Parts())
    assert config.objectives["align"]["name"] == "align"
    assert config.objectives["align"]["weight"] == 0.1


def test_round_trip_is_exact(tiny_settings):
    config = check(Experiment, tiny_settings, Parts())
    again = revive(Experiment, json.loads(dump(config)))
    assert again == config
    assert dump(again) == dump(config)


def test_a_future_format_is_refused(tiny_settings):
    with pytest.raises(ConfigError, match="formats 1 to 1, found 99"):
        revive(Experiment, tiny_settings | {"format": 99})


def test_renames_carry_old_configs_over(tiny_settings, monkeypatch):
    monkeypatch.setattr(configs, "FORMAT", 2)
    monkeypatch.setattr(configs, "RENAMES", [(2, "train.rate", "train.lr")])
    tiny_settings["train"]["rate"] = tiny_settings["train"].pop("lr")
    assert revive(Experiment, tiny_settings | {"format": 1}).train.lr == 3e-3
    with pytest.raises(ConfigError, match=r"train\.rate"):  # a config of today's format has no such setting
        revive(Experiment, tiny_settings | {"format": 2})


def test_a_checkpoint_turns_no_plugin_on(tiny_settings, tmp_path):
    (tmp_path / "my_lab_a/fusion").mkdir(parents=True)
    (tmp_path / "my_lab_a/fusion/evil.py").write_text("raise RuntimeError('was imported')\n")
    data = tiny_settings | {"plugins": [str(tmp_path / "my_lab_a")]}
    data["model"]["fusion"] = "evil"
    with pytest.raises(ConfigError, match="whose code loading would run"):
        revive(Experiment, data)
    with pytest.raises(RuntimeError, match="was imported"):
        revive(Experiment, data, [str(tmp_path / "my_lab_a")])


@pytest.mark.parametrize("name", ["os.system", "../../evil", "/tmp/evil", "__init__", "Concat"])
def test_a_class_outside_mmkt_is_no_part(tiny_settings, name):
    tiny_settings["model"]["fusion"] = {"name": name}
    assert "allowed: attention_pool, block" in problems(tiny_settings)["model.fusion"]


def test_plugins_that_clash_or_are_missing(tiny_settings, tmp_path):
    (tmp_path / "my_lab_b/fusion").mkdir(parents=True)
    (tmp_path / "my_lab_b/fusion/concat.py").write_text("")
    with pytest.raises(ConfigError, match="two parts are named 'concat'"):
        Parts([str(tmp_path / "my_lab_b")]).files("fusion")
    with pytest.raises(ConfigError, match="no folder or package"):
        Parts(["no_such_lab"])


def test_schema_accepts_what_check_accepts_and_refuses_what_it_refuses(tiny_settings):
    made = schema(Experiment, Parts())
    jsonschema.Draft202012Validator.check_schema(made)
    validator = jsonschema.Draft202012Validator(made)
    validator.validate(tiny_settings)
    tiny_settings["model"]["fusion"] = {"name": "gated", "dropout": 2}
    assert not validator.is_valid(tiny_settings)
    tiny_settings["model"]["fusion"] = {"name": "gated", "droput": 0.1}
    assert not validator.is_valid(tiny_settings)


def test_every_shipped_config_is_valid(shipped):
    made = {}  # by the plugins that a config turns on
    assert shipped
    for file in shipped:
        plugins = tuple(read(Experiment, file).plugins)
        if plugins not in made:
            made[plugins] = jsonschema.Draft202012Validator(schema(Experiment, Parts(plugins)))
        made[plugins].validate(yaml.safe_load(file.read_text()))


@pytest.fixture
def shipped():
    from pathlib import Path

    return sorted((Path(__file__).parent.parent / "configs/experiment").glob("*.yaml"))


def test_words_are_words_as_yaml_1_2_has_it(tiny_settings, tmp_path):
    """The precision is called no, and so is Norwegian; what is true or false still takes yes and off."""
    found = experiment(tiny_settings, "train.precision=no", "train.compile=off", "evaluate.subsets=yes", "evaluate.page=false")
    assert (found.train.precision, found.train.compile, found.evaluate.subsets, found.evaluate.page) == ("no", False, True, False)
    (tmp_path / "names.yaml").write_text("no: {classes: {hund: hund}}\non: 1\ntrue: 2\n")
    assert list(load(tmp_path / "names.yaml")) == ["no", "on", True]


def test_json_is_read_as_json(tmp_path):
    (tmp_path / "a.json").write_text('{"seed": 3, "data": {"manifest": "no"}}')
    assert load(tmp_path / "a.json") == {"seed": 3, "data": {"manifest": "no"}}
    for text, words in (
        ('{"seed": 3,', "is not valid JSON"),
        ('{"a": 1, "a": 2}', "given twice: a"),
        ("[1]", "should hold settings"),
    ):
        (tmp_path / "b.json").write_text(text)
        with pytest.raises(ConfigError, match=words):
            load(tmp_path / "b.json")
