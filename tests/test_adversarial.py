"""Adversarial training: formulas by hand, what is drawn, what is watched, one process and two, a run that was killed."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import worker
from conftest import experiment, rows_of_three, settings, write
from forked import together
from test_optim import losses, same_after_resuming
from torch import Tensor, nn

from mmkt import adversary, launch
from mmkt.attacks.characters import Characters
from mmkt.attacks.cw import Cw
from mmkt.attacks.fgsm import Fgsm
from mmkt.attacks.patch import Patch
from mmkt.attacks.pgd import Pgd
from mmkt.config import dump, read, revive
from mmkt.experiment import Experiment
from mmkt.heads.classify import Classify as Answers
from mmkt.learner import Learner
from mmkt.model import Model
from mmkt.objectives.classify import Classify
from mmkt.objectives.trades import Trades
from mmkt.overfitting import Overfitting
from mmkt.parts import ConfigError, Parts
from mmkt.space import SharedSpace
from mmkt.telemetry import TrainingError
from mmkt.threat import Threat
from mmkt.types import Batch, Encoded, Encoder, Phase
from mmkt.victim import Victim

D, CLASSES, ROWS = 5, 3, 6
LINF, L2 = Threat(norm="linf", eps=0.1), Threat(norm="l2", eps=0.4)


class Vectors(Encoder):
    """tanh of a linear map of one vector an item."""

    kind, bounds, width = "features", None, D

    def __init__(self):
        super().__init__()
        self.map, self.drop = nn.Linear(4, D), nn.Dropout(0.0)

    def forward(self, inputs: Mapping[str, Tensor]) -> Encoded:
        return Encoded.of(self.drop(self.map(inputs["vectors"][:, 0]).tanh()))

    def stages(self):
        return [["map.weight", "map.bias"]]

    def processor(self):
        raise NotImplementedError

    def blank(self):
        return {"vectors": torch.zeros(1, 1, 4), "mask": torch.ones(1, 1, dtype=torch.bool)}


class Words(Vectors):
    """The mean of token embeddings, then a linear map."""

    kind = "text"

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(7, 4)

    def embed(self, ids: Tensor) -> Tensor:
        return self.table(ids)

    def forward(self, inputs: Mapping[str, Tensor]) -> Encoded:
        x = inputs["inputs_embeds"] if "inputs_embeds" in inputs else self.embed(inputs["input_ids"])
        mask = inputs["attention_mask"][..., None].to(x)
        return Encoded.of(self.map((x * mask).sum(1) / mask.sum(1)).tanh())

    def blank(self):
        return {"input_ids": torch.ones(1, 2, dtype=torch.long), "attention_mask": torch.ones(1, 2, dtype=torch.long)}


def tiny(*names: str, seed: int = 0) -> Model:
    """A model in float64 of the modalities a, b (vectors) and t (texts)."""
    torch.manual_seed(seed)
    encoders = {m: Words() if m == "t" else Vectors() for m in names}
    fusion = Parts().find("fusion", "concat")(D, list(names), {"y": CLASSES})
    vocabulary = {"classes": ["x", "y", "z"], "counts": [1, 1, 1]}
    model = Model(encoders, SharedSpace(D, dict.fromkeys(names, D)), fusion, {"y": Answers(D, vocabulary)})
    with torch.no_grad():  # answers that depend on what moves by more than at a start
        for name, p in model.named_parameters():
            p.mul_(2.0 if p.ndim == 2 else 0.1 if name.endswith("bias") else 1.0)
    return model.double().train()


def batch_of(*names: str, absent: Mapping[str, list[int]] | None = None, rows: list[int] | None = None) -> Batch:
    random = torch.Generator().manual_seed(1)
    rows, absent = rows or list(range(ROWS)), absent or {}
    inputs, present = {}, {}
    for m in names:
        there = [row not in absent.get(m, []) for row in range(ROWS)]
        if m == "t":
            ids, lengths = torch.randint(7, (ROWS, 4), generator=random), torch.tensor([4, 3, 2, 4, 1, 4])
            own = {"input_ids": ids, "attention_mask": (torch.arange(4) < lengths[:, None]).long()}
        else:
            numbers = torch.randn(ROWS, 1, 4, generator=random, dtype=torch.float64)
            own = {"vectors": numbers, "mask": torch.ones(ROWS, 1, dtype=torch.bool)}
        kept = [row for row in rows if there[row]]
        present[m] = torch.tensor([there[row] for row in rows])
        if kept:
            items = torch.tensor([kept.index(row) if there[row] else -1 for row in rows])[:, None]
            inputs[m] = {key: x[kept] for key, x in own.items()} | {"items": items}
    y, known = torch.tensor([0, 1, 2, 2, 1, 0]), torch.tensor([True, True, False, True, True, True])
    row = torch.tensor(rows)
    none = torch.full_like(row, -1)
    return Batch(inputs, present, {"y": y[row]}, {"y": known[row]}, {}, row, none, none, none)


def learner_of(name: str, model: Model, threats: Mapping[str, Threat], **more) -> Learner:
    objective = Parts().find("objectives", name)(D, model.modalities, {"y": CLASSES}, [], task="y", threats=threats, **more)
    learner = Learner(model, {"it": objective}).double()
    objective.prepare(learner, None)
    return learner


def crafted(learner: Learner, batch: Batch) -> Batch:
    return learner.objectives["it"].craft(learner, batch)


def logits(model: Model, batch: Batch) -> Tensor:
    return model(batch).logits["y"]


def close(a: Tensor, b: Tensor, atol: float = 1e-9) -> None:
    torch.testing.assert_close(a, b, atol=atol, rtol=1e-7, check_dtype=False)


def kl(p: Tensor, q: Tensor) -> Tensor:
    """By the reference library, (B,)."""
    return F.kl_div(q.log_softmax(1), p.log_softmax(1), reduction="none", log_target=True).sum(1)


# ---------------------------------------------------------------- formulas


def test_fgsm_trains_on_the_sign_of_the_gradient():
    model, batch = tiny("a", "b"), batch_of("a", "b")
    learner = learner_of("adversarial", model, {"a": LINF}, attack=Fgsm())
    model.encoders["a"].drop.p = 0.5  # the attack is made in eval(): nothing is drawn
    found = crafted(learner, batch)
    model.eval()
    x = batch.inputs["a"]["vectors"].clone().requires_grad_()
    loss = F.cross_entropy(
        logits(model, batch._replace(inputs=batch.inputs | {"a": batch.inputs["a"] | {"vectors": x}})),
        batch.labels["y"],
        reduction="none",
    )
    (gradient,) = torch.autograd.grad(loss.sum(), x)
    expected = x.detach() + 0.1 * gradient.sign() * batch.labelled["y"][:, None, None]
    close(found.inputs["a"]["vectors"], expected, atol=1e-12)
    assert found.inputs["b"]["vectors"] is batch.inputs["b"]["vectors"]
    assert not torch.allclose(found.inputs["a"]["vectors"], batch.inputs["a"]["vectors"])
    # the loss is the cross-entropy of those rows, and of no others
    means = learner(found, learner.counts([found]))[1]
    each = F.cross_entropy(logits(model, found), batch.labels["y"], reduction="none")[batch.labelled["y"]]
    close(means[0], each.mean())
    assert means[0] > learner(batch, learner.counts([batch]))[1][0] + 0.01


def test_crafting_leaves_the_model_alone():
    model, batch = tiny("a", "t"), batch_of("a", "t")
    model.encoders["a"].drop.eval()
    modes = {name: part.training for name, part in model.named_modules()}
    for name, more in (("adversarial", {"attack": Pgd(steps=2)}), ("trades", {"steps": 2}), ("freelb", {}), ("vat", {})):
        learner = learner_of(name, model, {"a": L2, "t": L2}, **more)
        before, state = torch.get_rng_state(), {key: x.clone() for key, x in learner.state_dict().items()}
        crafted(learner, batch)
        assert torch.equal(before, torch.get_rng_state())
        assert all(torch.equal(x, state[key]) for key, x in learner.state_dict().items())
        assert all(p.grad is None for p in model.parameters())
        assert {part: module.training for part, module in model.named_modules()} == modes


@pytest.mark.parametrize("threat", [LINF, L2], ids=["linf", "l2"])
def test_trades_is_the_papers(threat):
    model, batch = tiny("a", "b"), batch_of("a", "b")
    learner = learner_of("trades", model, {"a": threat}, beta=2.0, steps=3, size=0.5, start=0.2)
    this = learner.objectives["it"]
    found = crafted(learner, batch)
    # by hand: a fifth of the way to the random place, then three steps uphill on the divergence, each projected
    victim = Victim(model, batch, "y", {"a": threat}, seed=adversary.seed_of(int(this.adversary.seed), 0))
    x, eps = batch.inputs["a"]["vectors"], threat.eps
    known = batch.labelled["y"][:, None, None]
    point = torch.where(known, x + 0.2 * (victim.anywhere(0)["a"] - x), x)
    model.eval()
    clean = logits(model, batch).detach()
    with_a = lambda p: batch._replace(inputs=batch.inputs | {"a": batch.inputs["a"] | {"vectors": p}})  # noqa: E731
    for _ in range(3):
        leaf = point.detach().requires_grad_()
        (g,) = torch.autograd.grad(kl(clean, logits(model, with_a(leaf))).sum(), leaf)
        if threat.norm == "linf":
            point = torch.clamp(point + 0.5 * eps * g.sign(), x - eps, x + eps)
        else:
            point = point + 0.5 * eps * g / g.flatten(1).norm(dim=1)[:, None, None]
            far = (point - x).flatten(1).norm(dim=1)[:, None, None]
            point = x + (point - x) * (eps / far).clamp(max=1)
        point = torch.where(known, point, x)
    model.train()
    close(found.views[this.key]["a"]["raw"], point, atol=1e-9)
    point = found.views[this.key]["a"]["raw"]
    one, two = logits(model, batch), logits(model, with_a(point))
    expected = (F.cross_entropy(one, batch.labels["y"], reduction="none") + 2.0 * kl(one, two))[batch.labelled["y"]]
    loss, means = learner(found, learner.counts([found]))
    close(means[0], expected.mean())
    gradients = [torch.autograd.grad(t, list(model.parameters()), allow_unused=True) for t in (loss, expected.mean())]
    for a, b in zip(*gradients):
        assert (a is None) == (b is None)
        if a is not None:
            close(a, b)
    assert kl(one, two)[batch.labelled["y"]].min() > 1e-5
    assert found.inputs["a"]["vectors"] is x  # other objectives see clean rows
    # without a crafted view, in evaluation, it is the cross-entropy
    close(this(model, batch, model(batch)), F.cross_entropy(one, batch.labels["y"], reduction="none")[batch.labelled["y"]].sum())


def test_vat_finds_the_direction_that_changes_answers_most():
    model, batch = tiny("a"), batch_of("a")
    learner = learner_of("vat", model, {"a": Threat(norm="l2", eps=0.01)}, iterations=8, xi=0.5)
    this, x = learner.objectives["it"], batch.inputs["a"]["vectors"]
    found = crafted(learner, batch)
    r = (found.views[this.key]["a"]["raw"] - x).flatten(1)
    close(r.norm(dim=1), torch.full((ROWS,), 0.01))  # unlabelled rows too
    # the leading eigenvector of the divergence's Hessian at r = 0, from autograd in float64
    model.eval()
    for k in range(ROWS):
        clean = logits(model, batch)[k].detach()

        def changed(shift: Tensor, k=k, clean=clean) -> Tensor:
            moved = x + torch.zeros_like(x).index_put((torch.tensor(k),), shift[None])
            there = batch._replace(inputs={"a": batch.inputs["a"] | {"vectors": moved}})
            return kl(clean[None], logits(model, there)[k : k + 1]).sum()

        leading = torch.linalg.eigh(torch.autograd.functional.hessian(changed, torch.zeros(4, dtype=torch.float64)))[1][:, -1]
        assert abs(float(F.cosine_similarity(r[k], leading, dim=0))) > 0.99
        across = torch.linalg.qr(torch.stack([leading, torch.ones(4, dtype=torch.float64)], 1))[0][:, 1]
        assert changed(r[k]) > changed(0.01 * across)
    # and the loss is the mean over all rows, with the clean answers held still
    model.train()
    moved = batch._replace(inputs={"a": batch.inputs["a"] | {"vectors": found.views[this.key]["a"]["raw"]}})
    expected = kl(logits(model, batch).detach(), logits(model, moved)).mean()
    loss, means = learner(found, learner.counts([found]))
    close(means[0], expected, atol=1e-12)
    bias = model.encoders["a"].map.bias
    (one,), (two,) = (torch.autograd.grad(t, bias) for t in (loss, expected))
    close(one, two, atol=1e-7)
    assert this(model, batch, model(batch)) == 0.0


def test_freelb_has_the_mean_of_the_gradients_at_its_points():
    model, batch = tiny("t", "a"), batch_of("t", "a")
    learner = learner_of("freelb", model, {"t": L2}, steps=3, size=0.5)
    this = learner.objectives["it"]
    found = crafted(learner, batch)
    shifts = [found.views[key]["t"]["shift"] for key in this.keys]
    mask, known = batch.inputs["t"]["attention_mask"].bool(), batch.labelled["y"]
    assert all(not x[~mask].any() and not x[~known].any() for x in shifts)
    sizes = torch.stack([x.flatten(1).norm(dim=1) for x in shifts])
    assert (sizes <= 0.4 + 1e-6).all()
    # the second point is one step along the gradient from the first, brought back
    model.eval()
    ids = batch.inputs["t"]["input_ids"]

    def mean_loss(shift: Tensor) -> Tensor:
        rest = {key: x for key, x in batch.inputs["t"].items() if key != "input_ids"}
        own = rest | {"inputs_embeds": model.encoders["t"].table(ids) + shift}
        there = batch._replace(inputs=batch.inputs | {"t": own})
        return F.cross_entropy(logits(model, there)[known], batch.labels["y"][known])

    leaf = shifts[0].clone().requires_grad_()
    (g,) = torch.autograd.grad(mean_loss(leaf), leaf)
    g = g * mask[..., None]
    after = shifts[0] + 0.2 * g / g.flatten(1).norm(dim=1).clamp(min=1e-30)[:, None, None]
    after = after * (0.4 / after.flatten(1).norm(dim=1)[:, None, None]).clamp(max=1)
    close(shifts[1], torch.where(known[:, None, None], after, 0.0), atol=1e-9)
    model.train()
    loss, _ = learner(found, learner.counts([found]))
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    own = dict(zip(named, torch.autograd.grad(loss, list(named.values()), allow_unused=True)))
    each = [torch.autograd.grad(mean_loss(x), list(named.values()), allow_unused=True) for x in shifts]
    for k, name in enumerate(named):
        if own[name] is not None:
            close(own[name], torch.stack([some[k] for some in each]).mean(0))
    assert own["encoders.t.table.weight"].abs().max() > 1e-4  # what is attacked learns
    assert not torch.allclose(own["encoders.a.map.weight"], each[0][list(named).index("encoders.a.map.weight")])


# ---------------------------------------------------------------- who is attacked, and from where


def test_random_starts_differ_by_step_and_not_by_batch():
    model = tiny("a")
    learner = learner_of("adversarial", model, {"a": LINF}, attack=Fgsm(start=True))
    whole = crafted(learner, batch_of("a")).inputs["a"]["vectors"]
    close(crafted(learner, batch_of("a")).inputs["a"]["vectors"], whole, atol=0)
    some = crafted(learner, batch_of("a", rows=[4, 1])).inputs["a"]["vectors"]
    close(some, whole[[4, 1]], atol=1e-12)
    learner.objectives["it"].stepped(learner, 0.5)
    again = crafted(learner, batch_of("a")).inputs["a"]["vectors"]
    known = batch_of("a").labelled["y"]
    assert (again[known] != whole[known]).flatten(1).any(1).all()
    other = learner_of("adversarial", tiny("a"), {"a": LINF}, attack=Fgsm(start=True))
    torch.manual_seed(5)
    other.objectives["it"].prepare(other, None)
    assert not torch.equal(crafted(other, batch_of("a")).inputs["a"]["vectors"], whole)


def test_one_modality_at_a_time_and_a_share_of_the_rows():
    model, batch = tiny("a", "b"), batch_of("a", "b", absent={"b": [0, 3]})
    seen = np.zeros((2, ROWS))

    def moved(found: Batch, m: str) -> np.ndarray:
        items = batch.inputs[m]["items"][:, 0]
        changed = (found.inputs[m]["vectors"] != batch.inputs[m]["vectors"]).flatten(1).any(1)
        return np.array([bool(k >= 0 and changed[k]) for k in items.tolist()])

    learner = learner_of("adversarial", model, {"a": LINF, "b": LINF}, attack=Fgsm(start=True), jointly=False)
    for _ in range(60):
        found = crafted(learner, batch)
        a, b = moved(found, "a"), moved(found, "b")
        known = batch.labelled["y"].numpy()
        assert (a ^ b)[known].all()  # each labelled row in exactly one
        assert not (a | b)[~known].any()
        seen += np.stack([a, b])
        learner.objectives["it"].stepped(learner, 0.5)
    assert seen[0, 0] == seen[0, 3] == 60  # no other to draw
    assert (seen[0, [1, 4, 5]] > 15).all()
    assert (seen[1, [1, 4, 5]] > 15).all()
    joint = crafted(learner_of("adversarial", model, {"a": LINF, "b": LINF}, attack=Fgsm()), batch)
    assert (moved(joint, "a") & moved(joint, "b"))[[1, 4, 5]].all()
    learner = learner_of("adversarial", model, {"a": LINF}, attack=Fgsm(), share=0.3)
    count = 0
    for _ in range(60):
        count += moved(crafted(learner, batch), "a").sum()
        learner.objectives["it"].stepped(learner, 0.5)
    assert 0.2 < count / (60 * 5) < 0.4


def test_beside_leaves_others_their_rows_and_texts_learn_in_place():
    model, batch = tiny("t"), batch_of("t")
    learner = learner_of("adversarial", model, {"t": L2}, attack=Pgd(steps=2), beside=True)
    found = crafted(learner, batch)
    assert found.inputs is batch.inputs
    within = learner_of("adversarial", model, {"t": L2}, attack=Pgd(steps=2))
    replaced = crafted(within, batch)
    assert "input_ids" not in replaced.inputs["t"]
    gradients = []
    for one, rows in ((learner, found), (within, replaced)):
        loss, means = one(rows, one.counts([rows]))
        gradients.append((means[0], torch.autograd.grad(loss, model.encoders["t"].table.weight)[0]))
    close(gradients[0][0], gradients[1][0])
    close(gradients[0][1], gradients[1][1])
    assert gradients[0][1].abs().max() > 1e-4
    assert not torch.allclose(gradients[0][0], learner(batch, learner.counts([batch]))[1][0].double(), atol=1e-3)


@pytest.mark.parametrize("name", ["adversarial", "trades", "freelb", "vat"])
def test_batches_without_the_modality_pass(name):
    model, batch = tiny("a", "b"), batch_of("a", "b", absent={"b": list(range(ROWS))})
    learner = learner_of(name, model, {"b": L2}, **({"attack": Fgsm()} if name == "adversarial" else {}))
    found = crafted(learner, batch)
    assert not found.views
    loss, _ = learner(found, learner.counts([found]))
    assert loss.isfinite()
    assert learner.objectives["it"].count(batch) == (0 if name == "vat" else 5)


# ---------------------------------------------------------------- the watch


class Rows:
    """As much of a feed as the watch asks for."""

    def evaluation(self, rows):
        self.asked = rows
        yield batch_of("a", rows=[int(k) for k in rows])


def test_the_watch_counts_what_withstands():
    model, feed = tiny("a"), Rows()
    learner = learner_of("adversarial", model, {"a": Threat(norm="linf", eps=0.5)}, attack=Fgsm(), watch=5)
    found = learner.objectives["it"].watched(learner, feed, np.arange(ROWS))
    assert feed.asked.tolist() == [0, 1, 2, 4, 5]
    batch = batch_of("a", rows=[0, 1, 2, 4, 5])
    victim = Victim(model, batch, "y", {"a": Threat(norm="linf", eps=0.5)})
    right = (logits(model.eval(), batch).argmax(1) == batch.labels["y"]) & batch.labelled["y"]
    under = {"clean": right}
    for attack, name in ((Fgsm(), "fgsm"), (Pgd(steps=10), "pgd")):
        under[name] = right & (victim.logits(attack(victim)).argmax(1) == batch.labels["y"])
    expected = {name: float(x.sum() / 4) for name, x in under.items()}
    shown = {"robust": expected["pgd"], "robust fgsm": expected["fgsm"], "robust clean": expected["clean"], "overfitted": 0.0}
    assert found == shown
    assert learner_of("trades", model, {"a": LINF}, watch=0).objectives["it"].watched(learner, feed, np.arange(ROWS)) == {}


def test_what_withstands_one_step_alone_is_said(capsys, monkeypatch):
    watch, feed = Overfitting("y", {"a": LINF}, 6), Rows()
    learner = Learner(tiny("a"), {"y": Classify(D, ["a"], {"y": CLASSES}, [], task="y")})
    cases = {  # clean, fgsm, pgd
        (0.99, 0.95, 0.07): True,
        (0.9, 0.8, 0.45): False,
        (0.9, 0.3, 0.3): False,  # both low
        (0.99, 0.25, 0.02): False,  # it was never trained on attacks: most of it falls to one step
        (0.4, 0.2, 0.09): True,
        (0.0, 0.0, 0.0): False,
    }
    for case, expected in cases.items():
        monkeypatch.setattr("mmkt.overfitting._right", lambda *_, case=case: 200 * torch.tensor([1.0, *case]))
        found = watch.watched(learner, feed, np.arange(ROWS))
        out = "".join(capsys.readouterr())
        assert found["overfitted"] == expected == ("catastrophic overfitting: of 200 validation rows" in out)


# ---------------------------------------------------------------- in the loop


@pytest.mark.parametrize(("select", "step"), [("robust/kind", 2), ("robust fgsm/kind", 3), (None, 4)])
def test_the_best_checkpoint_may_be_the_one_that_withstands_most(tiny_settings, monkeypatch, select, step):
    sequences = {"robust": [0.2, 0.5, 0.5, 0.1], "robust fgsm": [0.3, 0.5, 0.6, 0.6]}
    robust, clean = iter(zip(*sequences.values())), iter([0.1, 0.2, 0.3, 0.4])
    monkeypatch.setattr(Overfitting, "watched", lambda *_: dict(zip(sequences, next(robust))))
    monkeypatch.setattr("mmkt.selection.judged", lambda *_: next(clean))
    config = experiment(
        armed(tiny_settings, "adversarial"), "train.steps=4", "train.evaluate_every=1", f"train.select={select or 'null'}"
    )
    launch.train(config)
    progress = json.loads((Path(config.run) / "last/state.json").read_text())["progress"]
    assert progress["best_step"] == step
    lines = [json.loads(line) for line in (Path(config.run) / "metrics.jsonl").read_text().splitlines()]
    evaluated = [line for line in lines if "validation/kind/accuracy" in line]
    assert [line["validation/kind/accuracy"] for line in evaluated] == [0.1, 0.2, 0.3, 0.4]  # logged whatever chooses
    for name, values in sequences.items():
        key = f"validation/{name}/kind" if select == f"{name}/kind" else f"{name}/kind"
        assert [line[key] for line in evaluated] == values


def test_a_watched_figure_of_no_row_cannot_choose(tiny_settings, monkeypatch):
    monkeypatch.setattr(Overfitting, "watched", lambda *_: {})
    with pytest.raises(ConfigError, match=r"train.select: robust/kind is not known: no row .* choose by task"):
        launch.train(experiment(armed(tiny_settings, "adversarial"), "train.select=robust/kind"))


def test_what_no_objective_watches_chooses_nothing(tiny_settings):
    data = armed(tiny_settings, "adversarial")
    with pytest.raises(ConfigError, match=r"train.select: there is no 'robust/kin'; did you mean 'robust/kind'\?; allowed: loss"):
        launch.train(experiment(data, "train.select=robust/kin"))
    with pytest.raises(ConfigError, match=r"train.select: there is no 'overfitted/kind'"):  # the lower the better
        launch.train(experiment(data, "train.select=overfitted/kind"))
    with pytest.raises(ConfigError, match=r"train.select: there is no 'robust/kind'; allowed: loss, kind/accuracy"):
        launch.train(experiment(data, "train.select=robust/kind", "objectives.kind.watch=0"))
    spec = {"name": "classify", "task": "kind"}
    data["objectives"]["plain"] = spec
    data["transfer"] = {"name": "align_then_refine", "objective": "plain", "embedder": ["encoders.*"]}
    with pytest.raises(ConfigError, match=r"the phase 'align' is without kind, which watches robust/kind"):
        launch.train(experiment(data, "train.select=robust/kind"))
    assert not Path(data["run"]).exists()


THREATS = {"image": {"eps": 0.05}, "text": {"norm": "l2", "db": -14}}
FORMS: dict[str, dict] = {
    "adversarial": {"attack": {"name": "fgsm", "start": True, "size": 1.25}, "jointly": False, "share": 0.7, "watch": 12},
    "trades": {"steps": 2, "watch": 0},
    "freelb": {"steps": 2, "watch": 0},
    "vat": {},
}


def armed(data: dict, name: str) -> dict:
    """An experiment of two modalities, small ones, with one of the objectives."""
    data = copy.deepcopy(data)
    del data["model"]["encoders"]["audio"]
    data["model"]["encoders"]["image"]["size"] = 16
    spec = {"name": name, "task": "kind", "threats": THREATS, **FORMS[name]}
    data["objectives"] = data["objectives"] | {"near": spec} if name == "vat" else {"kind": spec}
    return data


@pytest.mark.parametrize("name", ["adversarial", "vat"])
def test_a_killed_run_goes_on_to_the_bit(tiny_settings, name):
    folder, _ = same_after_resuming(armed(tiny_settings, name), "train.accumulate=1")
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    state = launch.checkpoint.read_tensors(folder / "last/learner.safetensors")
    own = "objectives.near" if name == "vat" else "objectives.kind"
    assert state[f"{own}.adversary.step"] == 8
    assert state[f"{own}.adversary.seed"] > 0
    if name == "adversarial":
        evaluated = [line for line in lines if "robust/kind" in line]
        assert len(evaluated) == 2
        assert all(0 <= line["robust/kind"] <= line["robust clean/kind"] <= 1 for line in evaluated)


@pytest.fixture(scope="module")
def curves(tmp_path_factory, tiny_bert) -> Path:
    folder = tmp_path_factory.mktemp("curves")
    rows = [row | {"image": None if row["domain"] == "outdoor" else row["image"]} for row in rows_of_three(40, seed=1)]
    found = {}
    for name in FORMS:
        found[name] = armed(settings(write(rows, folder / "rows.parquet"), tiny_bert, folder / "unused"), name)
        found[name]["data"] |= {"batch_size": 8}
        found[name]["train"] |= {"steps": 4, "lr": 3e-4, "evaluate_every": 4}
        own = found[name]["objectives"]["near" if name == "vat" else "kind"]
        # a sign may turn with the last digit, a direction does not
        own["threats"] = {m: threat | {"norm": "l2"} for m, threat in own["threats"].items()}
    found["accumulated"] = copy.deepcopy(found["adversarial"])
    found["accumulated"]["train"]["accumulate"], found["accumulated"]["data"]["batch_size"] = 2, 4
    for name, data in found.items():
        (folder / f"{name}.json").write_text(json.dumps(data))
    for world, names in ((1, [*FORMS, "accumulated"]), (2, [*FORMS])):
        together(world, worker.curves, folder, world, names, said=folder)
    return folder


NEAR = 1e-4  # batches are padded otherwise, and a climb of ten steps makes more of the last digits than a plain training does


def test_two_processes_and_accumulated_batches_give_what_one_gives(curves):
    for name in FORMS:
        one, two = (losses(curves / f"{name}-{world}") for world in (1, 2))
        assert len(one) == 4
        np.testing.assert_allclose(two, one, atol=NEAR, rtol=0)
    found = [
        [json.loads(line) for line in (curves / f"adversarial-{world}/metrics.jsonl").read_text().splitlines()][-1]
        for world in (1, 2)
    ]
    assert found[0]["robust/kind"] == found[1]["robust/kind"]
    np.testing.assert_allclose(losses(curves / "accumulated-1"), losses(curves / "adversarial-1"), atol=NEAR, rtol=0)
    each = [np.array(losses(curves / f"{name}-1")) for name in FORMS]
    assert all(abs(a - b).max() > 20 * NEAR for a, b in combinations(each, 2))


# ---------------------------------------------------------------- settings and refusals


def test_threats_and_attacks_are_settings_like_others(tiny_settings):
    config = experiment(armed(tiny_settings, "adversarial"))
    spec = config.objectives["kind"]
    assert spec["threats"]["text"] == Threat(norm="l2", db=-14.0)
    assert spec["attack"] == {"name": "fgsm", "start": True, "size": 1.25}
    assert revive(Experiment, json.loads(dump(config))) == config
    with pytest.raises(ConfigError, match=r"objectives.kind.threats.image.epsilon: there is no setting 'epsilon'"):
        experiment(armed(tiny_settings, "adversarial"), "objectives.kind.threats.image={epsilon: 1}")
    with pytest.raises(ConfigError, match=r"objectives.kind.attack.stride: there is no setting"):
        experiment(armed(tiny_settings, "adversarial"), "objectives.kind.attack={name: pgd, stride: 1}")
    data = armed(tiny_settings, "trades")
    del data["objectives"]["kind"]["threats"]
    with pytest.raises(ConfigError, match=r"objectives.kind.threats: is required"):
        experiment(data)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["objectives.kind.threats={imag: {eps: 0.1}}"], "no modality 'imag'; did you mean 'image'"),
        (["objectives.kind.threats.image.eps=0"], "0 lets nothing move"),
        (["objectives.kind.threats={image: null, text: null}"], "needs one or more"),
        (["objectives.kind.threats.image.db=-20"], "takes eps or db, found both"),
        (["model.heads.size=regress", "objectives.kind.task=size"], "size has a head regress"),
        (["objectives.kind.attack=square"], "square keeps to linf, found l2"),
        (["objectives.near={name: vat, task: kind, threats: {image: {eps: 0.1}}}"], "near crafts from the same rows"),
    ],
)
def test_what_does_not_go_together_is_refused(tiny_settings, overrides, words):
    with pytest.raises(ValueError, match=words):
        launch.train(experiment(armed(tiny_settings, "adversarial"), *overrides))


def test_features_and_shards_are_refused(tiny_settings, tmp_path, monkeypatch):
    frozen = ["transfer={name: probe}", "model.encoders.text.weights=pretrained", f"data.features={tmp_path / 'features'}"]
    with pytest.raises(ConfigError, match="the objective kind looks at its inputs"):
        launch.train(experiment(armed(tiny_settings, "trades"), *frozen))
    learner = learner_of("trades", tiny("a"), {"a": LINF})
    monkeypatch.setattr("mmkt.adversary.distributed.is_sharded", lambda _: True)
    for name, more in (("adversarial", {"attack": Fgsm()}), ("trades", {}), ("freelb", {}), ("vat", {})):
        with pytest.raises(ValueError, match="launch with ddp"):
            learner_of(name, tiny("a"), {"a": LINF}, **more).begin(Phase("full", 1))
    assert learner.objectives["it"].raw


@pytest.mark.parametrize("attack", [Patch(), Cw(), Characters()])
def test_attacks_that_no_threat_limits_are_refused(attack):
    for name in ("adversarial", "single_source"):
        with pytest.raises(ValueError, match="take fgsm, pgd, apgd or square"):
            learner_of(name, tiny("a", "b", "c"), {"a": LINF}, attack=attack)


def test_two_objectives_draw_other_numbers():
    model = tiny("a")
    other = Trades(8, ["a"], {"y": 3}, [], task="y", threats={"a": LINF})
    one = learner_of("trades", model, {"a": LINF})
    both = Learner(model, {"one": one.objectives["it"], "other": other})
    torch.manual_seed(0)
    for objective in both.objectives.values():
        objective.prepare(both, None)
    seeds = [int(objective.adversary.seed) for objective in both.objectives.values()]
    assert seeds[0] != seeds[1]


def test_vat_alone_teaches_nothing_and_is_refused(tiny_settings):
    data = armed(tiny_settings, "vat")
    data["objectives"] = {"near": data["objectives"]["near"]}
    with pytest.raises(TrainingError, match="no objective reaches them"):
        launch.train(experiment(data))


def test_the_examples_train_what_they_say(monkeypatch):
    monkeypatch.chdir(Path(__file__).parent.parent)
    attacks = {}
    for name in ("fgsm", "fgsm_start", "pgd", "trades"):
        config = read(Experiment, f"configs/experiment/mnist_{name}.yaml")
        (spec,) = config.objectives.values()
        assert spec["threats"] == {"image": Threat(norm="linf", eps=0.3)}
        attacks[name] = spec["name"], spec.get("attack", {}).get("name"), spec.get("attack", {}).get("start")
    assert attacks == {
        "fgsm": ("adversarial", "fgsm", False),
        "fgsm_start": ("adversarial", "fgsm", True),
        "pgd": ("adversarial", "pgd", True),
        "trades": ("trades", None, None),
    }
