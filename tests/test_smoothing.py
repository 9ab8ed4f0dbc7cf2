"""Randomised smoothing against closed forms, and training under noise."""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from conftest import experiment
from scipy import stats
from test_adversarial import CLASSES, ROWS, D, Vectors, batch_of, close, crafted, learner_of, logits, tiny

from mmkt import adversary, certified, launch
from mmkt.certified import ABSTAINS, Certificates, Smoothing, lower_bound, radius
from mmkt.evaluate import evaluate, feed_of, revived
from mmkt.experiment import Smoothed
from mmkt.heads.classify import Classify
from mmkt.learner import Learner
from mmkt.model import Model
from mmkt.parts import ConfigError, Parts
from mmkt.score import About
from mmkt.smoothing import certify, counts, plan
from mmkt.space import SharedSpace
from mmkt.threat import Threat, gaussian
from mmkt.types import Encoded, Phase
from mmkt.victim import Victim

DEVICE = torch.device("cpu")
EVERY = np.arange(ROWS)


class Linear(Vectors):
    def forward(self, inputs):
        return Encoded.of(self.map(inputs["vectors"][:, 0]))


def linear(*names: str) -> Model:
    """Two classes, told apart by a linear function of the raw numbers."""
    torch.manual_seed(3)
    space = SharedSpace(D, dict.fromkeys(names, D), projection="none", norm=False)
    fusion = Parts().find("fusion", "sum")(D, list(names), {"y": 2})
    vocabulary = {"classes": ["x", "y"], "counts": [1, 1]}
    return Model({m: Linear() for m in names}, space, fusion, {"y": Classify(D, vocabulary)}).double().eval()


class Feed:
    """As much of one as is asked for."""

    def __init__(self, *names: str, size: int = ROWS, absent=None):
        self.names, self.size, self.absent = names, size, absent

    def evaluation(self, rows):
        for k in range(0, len(rows), self.size):
            yield batch_of(*self.names, rows=rows[k : k + self.size].tolist(), absent=self.absent)


def how(sigma, samples: int = 2000, seed: int = 0, **more) -> Smoothing:
    found = {"task": "y", "rows": EVERY, "sigma": sigma, "selection": 50, "samples": samples, "alpha": 0.001, "radii": [0, 1]}
    return Smoothing(**found | {"seed": seed} | more)


def distances(model: Model, names, sigma) -> tuple[np.ndarray, np.ndarray]:
    """What a linear model says, and how far each row is from where it says the other, in σ: |w·x + b| / ‖σ ⊙ w‖."""
    batch = batch_of(*names)
    leaves = {m: batch.inputs[m]["vectors"].clone().requires_grad_() for m in names}
    moved = batch._replace(inputs={m: batch.inputs[m] | {"vectors": x} for m, x in leaves.items()})
    difference = logits(model, moved) @ torch.tensor([-1.0, 1.0], dtype=torch.float64)
    slopes = torch.autograd.grad(difference.sum(), list(leaves.values()))
    norm = sum((sigma[m] * w[0]).square().sum() for m, w in zip(names, slopes, strict=True)).sqrt()
    return (difference > 0).long().numpy(), (difference.abs() / norm).detach().numpy()


# ---------------------------------------------------------------- certificates


@pytest.mark.parametrize(("names", "share"), [(("a",), 1.0), (("a", "b"), 0.4)])
def test_the_radius_of_a_linear_model_is_its_distance(names, share):
    model = linear(*names)
    _, far = distances(model, names, dict.fromkeys(names, 1.0))
    sigma = {m: float(np.median(far)) * (share if m == "b" else 1.0) for m in names}
    said, far = distances(model, names, sigma)
    alpha = 1e-6  # so that one of these rows is above its distance once in eighty thousand times
    found = certify(model, Feed(*names), how(sigma, alpha=alpha), DEVICE)
    assert (found.radius <= far).all()
    kept = found.said != ABSTAINS
    assert kept.sum() >= 4
    assert np.array_equal(found.said[kept], said[kept])
    assert np.array_equal(found.plain, said)
    # no less than what the bound leaves of so few successes as are seen once in a hundred thousand times
    unlucky = stats.binom.ppf(1e-5, 2000, stats.norm.cdf(far)).astype(int)
    assert (found.radius >= radius(lower_bound(unlucky, 2000, alpha)) - 1e-12).all()
    # one modality's σ is its unit: the certified distance in raw numbers comes near the true one
    if names == ("a",):
        near = (far > 0.3) & (far < 1.5)
        assert near.any()
        assert (found.radius[near] > 0.65 * far[near]).all()
    # and it is no bound if the noise is thought to be twice as large
    assert (2 * found.radius > far).any()


def test_it_abstains_at_ties():
    model = linear("a")
    with torch.no_grad():
        model.heads["y"].linear.bias.zero_()
        model.fusion.project["a"].bias.zero_()
        model.encoders["a"].map.bias.zero_()
    feed = Feed("a")
    batch = batch_of("a")
    batch.inputs["a"]["vectors"].zero_()
    feed.evaluation = lambda rows: iter([batch])
    found = certify(model, feed, how({"a": 1.0}, samples=500), DEVICE)
    assert (found.said == ABSTAINS).all()
    assert not found.radius.any()
    rows = certified.measure(found, how({"a": 1.0}), About(), 0)
    values = {(row.condition, row.metric): row.value for row in rows}
    assert values["noise", "abstained"] == pytest.approx(1)
    assert values["noise@0", "certified accuracy"] == 0
    assert ("noise", "median radius") not in values


def test_the_bound_is_scipys_and_holds_as_often_as_it_says():
    successes = np.array([0, 1, 17, 50, 99, 100])
    for alpha in (0.001, 0.05):
        exact = [stats.binomtest(int(k), 100, alternative="greater").proportion_ci(1 - alpha, "exact").low for k in successes]
        np.testing.assert_allclose(lower_bound(successes, 100, alpha), exact, atol=1e-12)
    drawn = np.random.default_rng(0).binomial(200, 0.8, 20_000)
    assert (lower_bound(drawn, 200, 0.05) > 0.8).mean() <= 0.05
    assert (drawn / 200 > 0.8).mean() > 0.4  # the plain share would not
    np.testing.assert_allclose(radius(np.array([0.2, 0.5, 0.8413447])), [0, 0, 1], atol=1e-6)
    assert how({"a": 1.0}, samples=1000).reach == pytest.approx(stats.norm.ppf(0.001 ** (1 / 1000)))


def test_a_rows_answer_does_not_depend_on_its_batch():
    model, absent = tiny("a", "t").eval(), {"a": [2], "t": [2, 4]}
    asked = how({"a": 0.5, "t": 0.3}, samples=60)
    whole = certify(model, Feed("a", "t", absent=absent), asked, DEVICE)
    parts = certify(model, Feed("a", "t", size=2, absent=absent), asked, DEVICE)
    for one, two in zip(whole, parts, strict=True):
        np.testing.assert_array_equal(one, two)
    other = certify(model, Feed("a", "t", absent=absent), asked._replace(seed=1), DEVICE)
    assert (other.radius != whole.radius).any()
    # draws of one row: none twice, none on padding, of the right size
    victim = Victim(model, batch_of("a", "t"), "y", gaussian({"a": 0.5, "t": 0.3}), seed=0)
    ball = victim.balls["t"]
    drawn = torch.stack([ball.gaussian(0, draw) for draw in range(400)]) - ball.centre
    free = ball.free.expand_as(ball.centre)
    assert not drawn[:, ~free].any()
    assert abs(drawn[:, free].std() - 0.3) < 0.01
    assert abs(drawn[:, free].mean()) < 0.01
    assert len({float(x) for x in drawn[:, 0, 0, 0]}) == 400
    assert torch.equal(counts(victim, 0, 30) + counts(victim, 30, 10), counts(victim, 0, 40))


def test_accuracy_by_radius_is_counted():
    found = Certificates(np.array([0, 0, 1, 1]), np.array([0, 1, 1, 1]), np.array([0, 0, 0, ABSTAINS]), np.array([0.5, 2, 2, 0]))
    rows = certified.measure(found, how({"a": 0.5, "b": 2.0}, radii=[1.0, 0.0, 0.5, 3.0]), About(), 0)
    line = {row.condition: row.value for row in rows if row.metric == certified.METRIC}
    assert line == {"noise@0": 0.5, "noise@0.5": 0.5, "noise@1": 0.25, "noise@3": 0}
    values = {row.metric: row.value for row in rows}
    assert values["accuracy without noise"] == 0.75
    assert values["abstained"] == 0.25
    assert values["median radius"] == 1.25
    (sheet,) = certified.sheets(rows)
    assert sheet.headings == ["radius in σ", "a alone", "b alone", "certified accuracy"]
    assert [row[:3] for row in sheet.rows] == [["0", "0", "0"], ["0.5", "0.25", "1"], ["1", "0.5", "2"], ["3", "1.5", "6"]]
    assert "σ: a 0.5, b 2" in sheet.notes[0]


# ---------------------------------------------------------------- as part of an evaluation


@pytest.fixture(scope="module")
def model(trained):
    found, _ = revived(str(trained), [], Parts(), Accelerator(), ("data", "evaluate"))
    return found


@pytest.fixture(scope="module")
def feed(model):
    return feed_of(model, model.config, ["test"], Parts())[0]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"sigma": {}}, r"evaluate\.smoothing\.sigma: needs one or more"),
        ({"sigma": {"image": 0.0}}, r"evaluate\.smoothing\.sigma\.image: 0 is no standard deviation"),
        ({"sigma": {"image": -1.0}}, r"sigma\.image: -1 is no standard deviation"),
        ({"sigma": {"imag": 0.1}}, r"evaluate\.smoothing\.sigma\.imag: there is no modality 'imag'; did you mean 'image'"),
        ({"sigma": {"image": 0.1}, "task": "sort"}, r"evaluate\.smoothing\.task: there is no task 'sort'"),
        ({"sigma": {"image": 0.1}, "samples": 9}, r"samples: 9 can show no class's half at alpha=0\.001: give 10 or more"),
    ],
)
def test_what_cannot_be_smoothed_is_refused(model, feed, settings, words):
    with pytest.raises(ConfigError, match=words):
        plan(model, feed, feed.rows("test"), Smoothed(**settings), 0)


def test_ten_samples_are_just_enough(model, feed):
    found = plan(model, feed, feed.rows("test"), Smoothed(sigma={"image": 0.1}, samples=10, rows=7), 0)
    assert found.reach > 0
    assert len(found.rows) == 7
    assert found._replace(samples=9).reach == 0


def test_features_and_tasks_without_classes_are_refused(model, feed, monkeypatch):
    settings = Smoothed(sigma={"image": 0.1})
    monkeypatch.setattr(feed, "features", {"image": None})
    with pytest.raises(ConfigError, match=r"data\.features: image comes as cached features, so that no noise"):
        plan(model, feed, feed.rows("test"), settings, 0)
    batch = batch_of("a")
    held = batch._replace(inputs={"a": Encoded.of(torch.randn(ROWS, D).double())})
    other = Feed("a")
    other.evaluation = lambda rows: iter([held])
    with pytest.raises(ConfigError, match="a comes as cached features"):
        certify(tiny("a"), other, how({"a": 0.1}), DEVICE)
    with pytest.raises(ConfigError, match="0 is no standard deviation"):
        certify(tiny("a"), Feed("a"), how({"a": 0.0}), DEVICE)
    monkeypatch.setattr(feed, "features", {})
    monkeypatch.setattr(model.heads["kind"], "vocabulary", {})
    with pytest.raises(ConfigError, match=r"evaluate\.smoothing\.task: .*the model has no classifier"):
        plan(model, feed, feed.rows("test"), settings, 0)
    with pytest.raises(ConfigError, match=r"evaluate\.smoothing\.task: kind has a head classify"):
        plan(model, feed, feed.rows("test"), Smoothed(sigma={"image": 0.1}, task="kind"), 0)


def test_an_evaluation_is_certified_as_it_is_asked(trained, tmp_path):
    asked = "evaluate.smoothing={sigma: {image: 0.05, text: 0.1}, rows: 6, selection: 5, samples: 12, radii: [0, 0.25]}"
    found, folder = evaluate(str(trained), [asked, "evaluate.page=true", "evaluate.subsets=false"], out=str(tmp_path / "out"))
    rows = [json.loads(line) for line in (folder / "certificates.jsonl").read_text().splitlines()]
    assert [row["condition"] for row in rows if row["metric"] == certified.METRIC] == ["noise@0", "noise@0.25"]
    assert {row["modalities"]: row["value"] for row in rows if row["metric"] == "sigma"} == {"image": 0.05, "text": 0.1}
    assert {row["n"] for row in rows if row["metric"] == certified.METRIC} == {6}
    page = (folder / "report.html").read_text()
    assert "Certified" in page
    assert "certified accuracy by radius" in page
    assert found.across["certificates"]


# ---------------------------------------------------------------- training under noise


def test_noise_is_sigma_times_normal_numbers_and_differs_by_step():
    model, batch = tiny("a", "t", "b"), batch_of("a", "t", "b", absent={"a": [3]})
    spec = {"task": "y", "sigma": {"a": 0.5, "t": 0.2}}
    this = Parts().find("objectives", "noise")(D, model.modalities, {"y": CLASSES}, [], **spec)
    learner = Learner(model, {"it": this}).double()
    this.prepare(learner, None)
    found = crafted(learner, batch)
    victim = Victim(model, batch, "y", gaussian(spec["sigma"]), seed=adversary.seed_of(int(this.adversary.seed), 0))
    for m, key in (("a", "vectors"), ("t", "inputs_embeds")):
        ball = victim.balls[m]
        expected = ball.centre + spec["sigma"][m] * ball.noise(victim.seed, 0, torch.randn)
        close(found.inputs[m][key], expected)
        assert ((expected - ball.centre).flatten(1).abs().amax(1) > 0).all()  # unlabelled rows too
    assert found.inputs["b"]["vectors"] is batch.inputs["b"]["vectors"]
    loss, means = learner(found, learner.counts([found]))
    known = batch.labelled["y"]
    close(means[0], F.cross_entropy(logits(model, found)[known], batch.labels["y"][known]))
    loss.backward()
    assert model.encoders["t"].table.weight.grad.abs().max() > 0
    this.stepped(learner, 0.5)
    assert not torch.allclose(crafted(learner, batch).inputs["a"]["vectors"], found.inputs["a"]["vectors"])
    some = copy.deepcopy(learner)
    alone = crafted(some, batch_of("a", "t", "b", absent={"a": [3]}, rows=[4]))
    close(alone.inputs["a"]["vectors"][0], crafted(learner, batch).inputs["a"]["vectors"][3])  # row 3 has none


def test_what_does_not_move_is_not_encoded_for_it():
    model = tiny("a", "b")
    this = Parts().find("objectives", "noise")(D, model.modalities, {"y": CLASSES}, [], task="y", sigma={"a": 0.5})
    this.prepare(Learner(model, {"it": this}).double(), None)
    passes = []
    model.encoders["b"].register_forward_hook(lambda *_: passes.append(1))
    this.craft(Learner(model, {"it": this}), batch_of("a", "b"))
    assert not passes


def test_noise_refuses_what_does_not_go(tiny_settings):
    build = Parts().find("objectives", "noise")
    given = (D, ("a", "b"), {"y": CLASSES}, [])
    for sigma, words in (
        ({}, "needs one or more"),
        ({"a": 0}, r"sigma\.a: 0 is no"),
        ({"c": 1}, r"sigma\.c: there is no modality"),
    ):
        with pytest.raises(ValueError, match=words):
            build(*given, task="y", sigma=sigma)
    noise = build(*given, task="y", sigma={"a": 1.0})
    vat = learner_of("vat", tiny("a", "b"), {"a": Threat(norm="l2", eps=0.1)}).objectives["it"]
    learner = Learner(tiny("a", "b"), {"noise": noise, "vat": vat})
    with pytest.raises(ValueError, match="noise: vat crafts from the same rows"):
        noise.begin(learner, Phase("full", 1))
    model = tiny("a")
    model.encoders["a"].kind = "table"
    this = build(D, ("a",), {"y": CLASSES}, [], task="y", sigma={"a": 1.0})
    with pytest.raises(ConfigError, match=r"sigma\.a: an encoder of table has no raw numbers"):
        this.prepare(Learner(model, {"it": this}), None)


def test_it_trains_in_the_loop(tiny_settings):
    tiny_settings["objectives"] = {"kind": {"name": "noise", "task": "kind", "sigma": {"image": 0.1, "text": 0.1}}}
    rows = launch.train(experiment(tiny_settings, "train.steps=3", "train.accumulate=2"))
    assert next(row for row in rows if row.metric == "accuracy").n == 24
