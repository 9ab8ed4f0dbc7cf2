"""Attacks found on one checkpoint and answered by another: equal on itself, weaker from others, refused where inputs differ."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from conftest import call, refused
from test_robust_accuracy import QUICK, figures, many

from mmkt import attacked
from mmkt.checkpoint import read_json
from mmkt.config import check
from mmkt.evaluate import feed_of, revived
from mmkt.experiment import Attacked, Experiment
from mmkt.model import Model
from mmkt.parts import ConfigError, Parts
from mmkt.robust_accuracy import NOTHING, Kind, Trial, found_on, measure, sheets, warnings
from mmkt.score import About
from mmkt.siege import plan, ways
from mmkt.surrogate import surrogate

FEW = {"pgd": {"name": "pgd", "steps": 3}, "square": {"name": "square", "queries": 2}}
SYMBOLS = {"hotflip": {"name": "hotflip", "flips": 1}, "characters": {"name": "characters", "edits": 1, "tries": 3}}
ASKED = {"rows": 12, "curve": [], "threats": {"image": {"eps": 0.1}, "audio": {"db": -20}, "text": {"norm": "linf", "db": -10}}}
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def opened(trained):
    model, config = revived(str(trained), [], Parts(), Accelerator(), ("data", "evaluate"))
    return model, feed_of(model, config, ["test"], Parts())[0]


@pytest.fixture(scope="module")
def other_seed(trained, tmp_path_factory):
    return changed(trained, tmp_path_factory.mktemp("other"), weights=0.1)


def changed(trained, folder, change=None, weights=0.0, classes=None, run="elsewhere/other"):
    """The checkpoint with other settings, built anew, or with weights that another seed's training could have left."""
    before = Model.from_pretrained(trained)
    data = before.config.settings() | {"run": run}
    if change:
        change(data)
    vocabularies = copy.deepcopy(before.vocabularies)
    if classes:
        vocabularies["kind"]["classes"] = classes(vocabularies["kind"]["classes"])
    torch.manual_seed(1)
    model = Model.from_config(check(Experiment, data, Parts()), vocabularies)
    kept = {name: x for name, x in before.state_dict().items() if name in model.state_dict()}
    kept = {name: x for name, x in kept.items() if x.shape == model.state_dict()[name].shape}
    model.load_state_dict(kept, strict=False)
    with torch.no_grad():
        for x in model.parameters():
            x += weights * x.std(correction=0) * torch.randn_like(x)
    model.save_pretrained(folder / "best")
    return folder / "best"


def asks(**more) -> Attacked:
    return check(Attacked, ASKED | {"attacks": FEW} | more, Parts())


def laid(opened, source, **more):
    model, feed = opened
    asked = asks(**{"source": str(source)} | more)
    siege = plan(model, feed, feed.rows("test"), asked, 0, Parts())
    return siege, attacked.lay(model, feed, siege, CPU)


def test_found_on_itself_it_is_the_white_box(opened, trained):
    siege, found = laid(opened, trained, attacks=FEW | SYMBOLS)
    over = {t: x for t, x in found.outcomes.items() if t.attack.endswith(" from run")}
    assert {str(t).removesuffix(" from run") for t in over} == {
        *("text.pgd", "image.pgd", "audio.pgd", "joint.pgd"),
        *("text edits.hotflip", "text edits.characters"),
    }  # square sees no gradients: it is found where it answers
    for trial, outcome in over.items():
        own = found.outcomes[trial._replace(attack=trial.attack.partition(" from ")[0])]
        for one, two in ((outcome.right, own.right), (outcome.said, own.said), *((outcome.far[m], own.far[m]) for m in own.far)):
            np.testing.assert_array_equal(one, two)
    assert any((~x.right & found.outcomes[NOTHING].right).any() for x in over.values())


def test_from_another_model_it_hurts_less_than_its_own(opened, other_seed, capfd):
    before = {name: x.clone() for name, x in opened[0].state_dict().items()}
    opened[0].train()
    siege, found = laid(opened, other_seed, attacks=FEW | SYMBOLS)
    assert opened[0].training
    opened[0].eval()
    assert all(torch.equal(x, before[name]) for name, x in opened[0].state_dict().items())
    assert not any(p.grad is not None for model in (opened[0], siege.surrogate.model) for p in model.parameters())
    assert "other has other token embeddings of text, or none" in capfd.readouterr().err
    over = {t: x.right for t, x in found.outcomes.items() if t.attack.endswith(" from other")}
    # one tokenizer, two embedding tables: words and ids go over, embeddings and what they take part in do not
    assert {str(t).removesuffix(" from other") for t in over} == {
        *("image.pgd", "audio.pgd", "text edits.hotflip", "text edits.characters"),
    }
    white = {t: found.outcomes[t._replace(attack=t.attack.partition(" from ")[0])].right for t in over}
    clean = found.outcomes[NOTHING].right
    assert all((right <= clean).all() for right in over.values())
    assert np.mean([right.mean() for right in over.values()]) >= np.mean([right.mean() for right in white.values()])
    assert any((right < clean).any() for right in over.values())
    for m in ("image", "audio"):  # moved as far as is allowed, and elsewhere than by this model's own gradients
        far = found.outcomes[Trial(m, "pgd from other")].far[m]
        assert far.max() > 0
        assert ((far > 0) <= clean).all()


def test_classes_in_another_order_are_told_apart_by_name(opened, trained, tmp_path):
    def turn(data):
        data["run"] = "elsewhere/turned"

    path = changed(trained, tmp_path, turn, classes=lambda names: names[::-1])
    model = Model.from_pretrained(path)
    with torch.no_grad():
        for x in model.heads["kind"].parameters():
            x.copy_(x.flip(0))  # the same function, its answers in the other order
    model.save_pretrained(path)
    _, found = laid(opened, path)
    for m in ("text", "image", "audio", "joint"):
        np.testing.assert_array_equal(found.outcomes[Trial(m, "pgd from turned")].right, found.outcomes[Trial(m, "pgd")].right)


# ---------------------------------------------------------------- refusals


def smaller(data):
    data["model"]["encoders"]["image"]["size"] = 24


def slower(data):
    data["model"]["encoders"]["audio"]["rate"] = 4000


def cropped(data):
    data["model"]["encoders"]["image"]["crop"] = 0.5


def without_audio(data):
    del data["model"]["encoders"]["audio"]


def vectors(data):
    data["model"]["encoders"]["image"] = {"name": "spectrogram", "rate": 8000, "width": 32, "layers": 1, "heads": 2}


def elsewhere(data):
    data["model"]["encoders"]["smell"] = data["model"]["encoders"]["image"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (smaller, "other reads image as 1 × 24 × 24 numbers, needed are 1 × 32 × 32"),
        (slower, r"other reads audio as \d+ numbers, needed are \d+ \(4000 Hz there, 8000 Hz here\)"),
        (cropped, "other reads image as other numbers of the same size"),
        (without_audio, "other has no audio, which is attacked; it has text, image"),
        (vectors, "other reads image by an encoder of the kind audio, needed is image"),
        (elsewhere, "other reads smell from smell, which the manifest does not have"),
    ],
)
def test_what_reads_otherwise_is_refused(opened, trained, tmp_path, change, words):
    model, feed = opened
    path = changed(trained, tmp_path, change)
    with pytest.raises(ConfigError, match=rf"evaluate\.robustness\.source: {words}"):
        surrogate(str(path), model, feed, feed.rows("test"), "kind", asks().threats)


def test_inputs_that_differ_further_on_are_refused_where_they_come(opened, trained, tmp_path):
    def shorter(data):  # than some clips, not than the first
        data["model"]["encoders"]["audio"]["seconds"] = 0.25

    model, feed = opened
    sizes = {k: len(feed.manifest.table["audio"][k].as_py()) for k in feed.rows("test").tolist()}
    first = next(k for k, size in sizes.items() if size < 4000)  # bytes, two a sample
    later = next(k for k, size in sizes.items() if size > 4100 and k > first)
    path = changed(trained, tmp_path, shorter)
    siege = plan(model, feed, np.array([first, later]), asks(source=str(path)), 0, Parts())
    with pytest.raises(ConfigError, match="other reads audio as 2000 numbers, needed are"):
        attacked.lay(model, feed, siege, CPU)


def test_other_questions_are_refused(opened, trained, tmp_path, tiny_manifest, tiny_bert, capfd):
    model, feed = opened
    path = changed(trained, tmp_path, classes=lambda names: ["z", *names[1:]])
    given = model, feed, feed.rows("test"), "kind", asks().threats
    with pytest.raises(ConfigError, match=r"other tells other classes of kind apart: z are there alone, k0 here"):
        surrogate(str(path), *given)

    def renamed(data):
        data["model"]["heads"] = {"sort": data["model"]["heads"]["kind"]}
        data["objectives"] = {"sort": {"name": "classify", "task": "sort"}}

    vocabulary = read_json(trained / "vocabularies.json")
    before = Model.from_pretrained(trained)
    data = before.config.settings() | {"run": "elsewhere/other"}
    renamed(data)
    Model.from_config(check(Experiment, data, Parts()), {"sort": vocabulary["kind"]}).save_pretrained(tmp_path / "sort")
    with pytest.raises(ConfigError, match=r"other has no classifier of 'kind', which is attacked; those that it has: sort"):
        surrogate(str(tmp_path / "sort"), *given)
    words = refused(capfd, "evaluate", trained, f"evaluate.robustness.source={tmp_path}/none", *QUICK)
    assert "evaluate.robustness.source: there is no" in words
    black = f"evaluate.robustness={{source: {trained}, threats: {{image: {{eps: 0.1}}}}, attacks: {{square: square}}, curve: []}}"
    assert "none of square goes over from" in refused(capfd, "evaluate", trained, black, *QUICK)


# ---------------------------------------------------------------- figures


KINDS = {"pgd": Kind(True, True), found_on("pgd", "b.1"): Kind(False, True, own=False)}


def test_it_counts_for_warnings_and_not_for_the_worst():
    outcomes = {NOTHING: many(0.9), Trial("image", "pgd"): many(0.5), Trial("image", "pgd from b.1"): many(0.2)}
    rows = measure(outcomes, KINDS, "t", About(), 10)
    own = figures([row._asdict() for row in rows])
    assert own["image.worst"]["value"] == pytest.approx(0.5)
    assert own["image.pgd from b.1"]["value"] == pytest.approx(0.2)
    assert Trial.of("image.pgd from b.1") == Trial("image", "pgd from b.1")
    ((words, by),) = warnings(outcomes, KINDS)
    assert words == "image: pgd from b.1 sees another model alone and beats all gradients"
    assert by == pytest.approx(0.3)
    assert not list(warnings(outcomes | {Trial("image", "pgd from b.1"): many(0.6)}, KINDS))
    first, second = sheets(rows)
    assert first.headings == ["attacked", "pgd", "worst"]
    assert second.headings == ["attacked", "pgd"]
    assert "attacks found on b.1" in second.title
    assert second.rows == [["image", "0.200"]]


def test_the_command_shows_them(trained, other_seed, capfd, tmp_path):
    asked = f"evaluate.robustness={{source: {other_seed}, rows: 6, threats: {{image: {{eps: 0.1}}}}, curve: [2], "
    asked += "attacks: {fgsm: fgsm, pgd: {name: pgd, steps: 2}}}"
    status, out, err = call(capfd, "evaluate", trained, asked, *QUICK, "--out", tmp_path / "e")
    assert status == 0, err
    assert "attacks found on other" in out
    page = (tmp_path / "e/report.html").read_text()
    assert "attacks found on other" in page


def test_a_first_head_without_classes_hides_no_attack(opened):
    model, feed = opened
    siege = plan(model, feed, feed.rows("test"), asks(), 0, Parts())
    before = [str(way.trial) for way in ways(siege, model)]
    heads = dict(model.heads.items())
    tag = copy.deepcopy(heads["kind"])
    tag.vocabulary = {}
    try:
        model.heads = torch.nn.ModuleDict({"size": tag, **heads})
        assert [str(way.trial) for way in ways(siege, model)] == before
        assert before
    finally:
        model.heads = torch.nn.ModuleDict(heads)
