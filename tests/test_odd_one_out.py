"""The fusion that leaves out what contradicts the rest, and the objective that trains its check."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import experiment
from test_adversarial import Vectors
from test_fusion import close, make, parts, without
from torch import nn

from mmkt import launch
from mmkt.attacks.apgd import Apgd
from mmkt.attacks.pgd import Pgd
from mmkt.heads.classify import Classify
from mmkt.learner import Learner
from mmkt.model import Model, build_fusion
from mmkt.objectives.odd_one_out import exchanged
from mmkt.parts import Parts
from mmkt.space import SharedSpace
from mmkt.threat import Threat
from mmkt.types import Batch, Encoded, Outputs, Phase
from mmkt.victim import Victim

NAMES, D, ROWS, WIDTH = ("a", "b", "c"), 8, 64, 5
FAR, PGD = Threat(norm="l2", eps=2.5), Pgd(steps=3, size=0.5)
OUTPUTS = {"y": 3, "z": 2}


def objective(modalities: tuple[str, ...] = NAMES, **more):
    spec = {"name": "odd_one_out", "task": "y", "watch": 200, **more}
    return Parts().build("objectives", spec, D, modalities, OUTPUTS, [])


class Behind(nn.Module):
    """A fusion and linear heads, as a model answers from the shared space."""

    def __init__(self, fusion):
        super().__init__()
        torch.manual_seed(2)
        self.fusion, self.head = fusion, nn.Linear(D, 3)

    def answer(self, found: dict[str, Encoded]) -> Outputs:
        fused = self.fusion(found)
        return Outputs(found, fused.encoded, {"y": self.head(fused.encoded.pooled)}, fused.terms, fused.notes)


def batch_of(found: dict[str, Encoded], y: torch.Tensor | None = None) -> Batch:
    rows = len(next(iter(found.values())).pooled)
    row, there = torch.arange(rows), torch.ones(rows, dtype=torch.bool)
    there[1] = False  # a row without a label
    y = row % 3 if y is None else y
    return Batch({}, {m: e.present for m, e in found.items()}, {"y": y}, {"y": there}, {}, row, row, row, row)


def agreeing(rows: int, seed: int) -> dict[str, Encoded]:
    """Three views of one vector, each turned and noisy."""
    random, turned = torch.Generator().manual_seed(seed), torch.Generator().manual_seed(99)
    z = torch.randn(rows, D, generator=random)
    turns = [torch.linalg.qr(torch.randn(D, D, generator=turned))[0] for _ in NAMES]
    return {m: Encoded.of(z @ q + 0.1 * torch.randn(rows, D, generator=random)) for m, q in zip(NAMES, turns, strict=True)}


# ---------------------------------------------------------------- the fusion


def test_the_mixture_is_of_experts_that_leave_one_out():
    fusion, found = make("odd_one_out").eval(), parts()
    out = fusion(found)
    x, one = [e.pooled for e in found.values()], torch.ones(6, 1)
    a = [fusion.project[m](e.pooled) for m, e in found.items()]
    seen = torch.cat([*x, one, one, one, a[0] * a[1], a[0] * a[2], a[1] * a[2]], 1)
    q = fusion.check(seen).softmax(1)
    each = [fusion.whole(torch.cat([*x, one, one, one], 1))]
    each += [fusion.without[m](torch.cat([x[i], x[j], one, one], 1)) for m, i, j in (("a", 1, 2), ("b", 0, 2), ("c", 0, 1))]
    close(out.encoded.pooled, sum(q[:, [k]] * y for k, y in enumerate(each)))
    close(out.notes["odd"], q)
    close(out.notes["weights"], 1 - q[:, 1:])
    assert not torch.allclose(out.encoded.pooled, each[0], atol=1e-3)
    # what is surely odd has no say
    with torch.no_grad():
        fusion.check[-1].bias.copy_(torch.tensor([0.0, 0.0, 60.0, 0.0]))
    close(fusion(found).encoded.pooled, fusion(found | {"b": parts(seed=7)["b"]}).encoded.pooled)
    assert not torch.allclose(fusion(found).encoded.pooled, fusion(found | {"a": parts(seed=7)["a"]}).encoded.pooled, atol=1e-3)


def test_of_two_none_is_odd():
    fusion, found = make("odd_one_out").eval(), without(parts(), "b")
    out = fusion(found)
    assert torch.equal(out.notes["odd"], torch.tensor([[1.0, 0, 0, 0]]).expand(6, -1))
    assert torch.equal(out.notes["weights"], torch.tensor([[1.0, 0, 1]]).expand(6, -1))
    seen = torch.cat([found["a"].pooled, torch.zeros(6, D), found["c"].pooled, torch.tensor([[1.0, 0, 1]]).expand(6, -1)], 1)
    close(out.encoded.pooled, fusion.whole(seen))
    two = make("odd_one_out", ("a", "b"))
    assert not [name for name, _ in two.named_parameters() if name.startswith(("check", "project", "without"))]
    assert torch.equal(two(parts(("a", "b"))).notes["odd"], torch.tensor([[1.0, 0, 0]]).expand(6, -1))
    with pytest.raises(ValueError, match=r"takes two or more modalities, found 1"):
        build_fusion(Parts(), {"name": "odd_one_out", "hidden": None}, D, ("a",), {})


# ---------------------------------------------------------------- the objective


def test_one_modality_comes_from_another_row_that_has_it():
    found = {m: Encoded.of(torch.randn(12, D), torch.ones(12, dtype=torch.bool)) for m in NAMES}
    found["c"] = found["c"]._replace(present=torch.arange(12) % 3 > 0)
    torch.manual_seed(0)
    out = exchanged(found, batch_of(found))
    assert torch.equal(out.done, found["c"].present)  # two are too few
    origin = torch.zeros(3, 12, dtype=torch.long)
    for k, m in enumerate(NAMES):
        match = (out.parts[m].pooled[:, None] == found[m].pooled).all(2)
        assert (match.sum(1) == 1).all()
        origin[k] = match.long().argmax(1)
        assert torch.equal(out.parts[m].tokens[:, 0], out.parts[m].pooled)
        assert torch.equal(out.parts[m].present, found[m].present)
    moved = origin != torch.arange(12)
    assert torch.equal(moved.sum(0), out.done.long())  # exactly one of those that are judged
    assert torch.equal(out.odd[out.done], 1 + moved.long().argmax(0)[out.done])
    assert (found["c"].present[origin[2]] | ~found["c"].present).all()  # lent by a row that has it
    assert len(set(out.odd[out.done].tolist())) > 1
    # a row that is in the batch twice lends itself nothing
    same = batch_of(found)._replace(row=torch.zeros(12, dtype=torch.long))
    alone = exchanged(found, same)
    assert not alone.done.any()
    assert all(torch.equal(alone.parts[m].pooled, found[m].pooled) for m in NAMES)


def test_the_loss_is_by_hand():
    model, found = Behind(make("odd_one_out")), parts()
    found["b"] = found["b"]._replace(present=torch.tensor([True, True, True, True, True, False]))
    batch, this = batch_of(found), objective().train()
    out = model.answer(found)
    torch.manual_seed(5)
    loss = this(model, batch, out)
    torch.manual_seed(5)
    swap = exchanged(found, batch)
    after = model.answer(swap.parts)
    expected = -out.notes["odd"][:5, 0].log().sum()
    for k in range(5):
        expected = expected - after.notes["odd"][k, swap.odd[k]].log()
        if k != 1:  # without a label
            expected = expected + F.cross_entropy(after.logits["y"][k], batch.labels["y"][k])
    close(loss, expected)
    assert this.count(batch) == 5
    torch.manual_seed(6)
    assert not torch.allclose(this(model, batch, out), loss)  # drawn anew
    this.eval()
    state = torch.get_rng_state()
    close(this(model, batch, out), this(model, batch, out), atol=0)
    assert torch.equal(state, torch.get_rng_state())


@pytest.fixture(scope="module")
def learned():
    model, this = Behind(make("odd_one_out", hidden=32)), objective().train()
    torch.manual_seed(0)
    optimizer = torch.optim.Adam(model.parameters(), 5e-3)
    for step in range(400):
        found = agreeing(ROWS, step)
        batch = batch_of(found, (found["a"].pooled[:, 0] > 0).long())
        loss = this(model, batch, model.answer(found)) / ROWS
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


def test_the_check_finds_what_was_exchanged_and_trusts_it_less(learned):
    found = agreeing(512, 1000)
    torch.manual_seed(1)
    swap = exchanged(found, batch_of(found))
    with torch.no_grad():
        clean, after = learned.answer(found), learned.answer(swap.parts)
        before = Behind(make("odd_one_out", hidden=32)).answer(swap.parts)
    odd = swap.odd
    assert (after.notes["odd"].argmax(1) == odd).float().mean() > 0.85
    assert (clean.notes["odd"].argmax(1) == 0).float().mean() > 0.85
    # nothing was exchanged: which modality would have been is found no better than by chance
    named = clean.notes["odd"][:, 1:].argmax(1) + 1
    assert abs((named == odd).float().mean() - 1 / 3) < 0.08
    assert (before.notes["odd"].argmax(1) == odd).float().mean() < 0.5
    own = after.notes["weights"].gather(1, odd[:, None] - 1)[:, 0]
    rest = (after.notes["weights"].sum(1) - own) / 2
    assert own.mean() < 0.2
    assert rest.mean() > 0.9
    assert clean.notes["weights"].mean() > 0.9


def test_refusals(monkeypatch):
    with pytest.raises(ValueError, match="none is the odd one; the model has 2: a, b"):
        objective(("a", "b"))
    model, found = Behind(make("concat")), parts()
    with pytest.raises(ValueError, match=r"does not say which modality is odd .* odd_one_out would"):
        objective()(model, batch_of(found), model.answer(found))
    found = parts()
    model = Behind(make("odd_one_out"))
    floats = batch_of(found)._replace(labels={"y": torch.rand(6, 3)})
    with pytest.raises(ValueError, match="'y' is no classification"):
        objective()(model, floats, model.answer(found))
    with pytest.raises(ValueError, match="none is the odd one"):
        Parts().find("objectives", "single_source")(D, ("a", "b"), OUTPUTS, [], task="y", threats={"a": FAR}, attack=PGD)
    monkeypatch.setattr("mmkt.distributed.is_sharded", lambda _: True)
    for name in ("odd_one_out", "single_source"):
        learner = learner_of(three("odd_one_out"), name)
        with pytest.raises(ValueError, match="launch with ddp"):
            learner.objectives[name].begin(learner, Phase("full", 1))


# ---------------------------------------------------------------- one modality attacked


def three(fusion: str) -> Model:
    """Three vectors a row."""
    torch.manual_seed(0)
    built = make(fusion, dim=WIDTH)
    heads = {"y": Classify(WIDTH, {"classes": ["x", "y", "z"], "counts": [1, 1, 1]})}
    return Model({m: Vectors() for m in NAMES}, SharedSpace(WIDTH, dict.fromkeys(NAMES, WIDTH)), built, heads)


def learner_of(model: Model, *names: str) -> Learner:
    more = {"classify": {}, "odd_one_out": {"watch": 0}, "single_source": {"threats": dict.fromkeys(NAMES, FAR), "attack": PGD}}
    find = Parts().find
    found = {n: find("objectives", n)(WIDTH, NAMES, {"y": 3}, [], task="y", **more[n]) for n in names}
    learner = Learner(model, found)
    for objective in found.values():
        objective.prepare(learner, None)
    return learner.train()


def views_of_a_class(rows: int, seed: int, absent: dict[str, int] | None = None) -> Batch:
    """Every modality shows the class by itself, and nothing else."""
    random, fixed = torch.Generator().manual_seed(seed), torch.Generator().manual_seed(7)
    y, row = torch.randint(3, (rows,), generator=random), torch.arange(rows)
    means = F.normalize(torch.randn(3, 3, 4, generator=fixed), dim=2)
    items, mask = row[:, None], torch.ones(rows, 1, dtype=torch.bool)
    inputs, present = {}, {}
    for k, m in enumerate(NAMES):
        x = (means[k, y] + 0.1 * torch.randn(rows, 4, generator=random))[:, None]
        gone = (absent or {}).get(m, 0)
        inputs[m] = {"vectors": x[gone:], "mask": mask[gone:], "items": (items - gone).clamp(min=-1)}
        present[m] = row >= gone
    return Batch(inputs, present, {"y": y}, {"y": mask[:, 0]}, {}, row, *[torch.full_like(row, -1)] * 3)


def test_the_single_source_loss_is_by_hand():
    model = three("odd_one_out")
    learner = learner_of(model, "single_source")
    this, batch = learner.objectives["single_source"], views_of_a_class(40, 0, {"b": 10})
    batch.labelled["y"] = torch.arange(40) != 20
    found = this.craft(learner, batch)
    crafted = found.views[this.key]
    assert found.inputs is batch.inputs  # others see rows as they come
    moved = {m: torch.zeros(40, dtype=torch.bool) for m in NAMES}
    for m in NAMES:
        moved[m][batch.present[m]] = (crafted[m]["raw"] != batch.inputs[m]["vectors"]).flatten(1).any(1)
        assert torch.equal(moved[m], crafted[m]["turn"])
    count = sum(x.long() for x in moved.values())
    assert count.max() == 1
    assert not count[20]
    assert count.sum() > 30  # all for which something worse was found
    assert not moved["b"][:10].any()
    assert all(x.any() for x in moved.values())
    attacked = batch._replace(inputs={m: batch.inputs[m] | {"vectors": crafted[m]["raw"]} for m in NAMES})
    out, plain = model(attacked), model(batch)
    known = count > 0
    expected = F.cross_entropy(out.logits["y"][known], batch.labels["y"][known], reduction="sum")
    for k in range(10, 40):
        odd = [m for m in NAMES if moved[m][k]]
        if odd:
            expected = expected - out.notes["odd"][k, 1 + NAMES.index(odd[0])].log()
    close(this(model, found, plain), expected, atol=1e-3)
    assert this.count(batch) == 39
    assert this(model, batch, plain) == 0  # nothing was crafted
    this.stepped(learner, 0.5)
    other = this.craft(learner, batch).views[this.key]
    assert any(not torch.equal(other[m]["turn"], crafted[m]["turn"]) for m in NAMES)


def trained_on(*names: str) -> Model:
    model = three("odd_one_out")
    learner = learner_of(model, *names)
    optimizer = torch.optim.Adam(learner.parameters(), 5e-3)
    for step in range(120):
        batch = views_of_a_class(48, step)
        for objective in learner.objectives.values():
            batch = objective.craft(learner, batch)
        loss, _ = learner(batch, learner.counts([batch]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        for objective in learner.objectives.values():
            objective.stepped(learner, 0.0)
    return model.eval()


@torch.no_grad()
def share(right: torch.Tensor) -> float:
    return float(right.float().mean())


def test_the_defence_withstands_one_bad_source():
    """And the same fusion, trained as long on the answer alone, does not; both are right on rows as they come."""
    test, worst, found = views_of_a_class(200, 10_000), {}, {}
    models = {"plain": trained_on("classify"), "defended": trained_on("classify", "odd_one_out", "single_source")}
    for name, model in models.items():
        assert share(model(test).logits["y"].argmax(1) == test.labels["y"]) > 0.95
        right, named = [], []
        for m in NAMES:
            victim, still = Victim(model, test, "y", {m: FAR}), torch.ones(200, dtype=torch.bool)
            for attack in (Pgd(steps=20), Apgd(steps=20, loss="dlr")):
                points = attack(victim)
                still &= victim.logits(points).argmax(1) == test.labels["y"]
                named.append(share(model(victim.put(points)).notes["odd"].argmax(1) == 1 + NAMES.index(m)))
            right.append(share(still))
        worst[name], found[name] = min(right), sum(named) / len(named)
    assert worst["plain"] < 0.5
    assert worst["defended"] > 0.9
    assert found["defended"] > 0.7
    assert found["plain"] < 0.45
    assert share(models["defended"](test).notes["odd"].argmax(1) > 0) < 0.1


def test_it_trains_in_the_loop(tiny_settings):
    tiny_settings["model"]["fusion"] = "odd_one_out"
    tiny_settings["objectives"]["odd"] = {"name": "odd_one_out", "task": "kind"}
    threats = {"image": {"eps": 0.05}, "text": {"norm": "l2", "db": -14}}
    tiny_settings["objectives"]["one"] = {"name": "single_source", "task": "kind", "threats": threats, "attack": "fgsm"}
    launch.train(experiment(tiny_settings, "train.steps=3"))
    lines = [json.loads(line) for line in (Path(tiny_settings["run"]) / "metrics.jsonl").read_text().splitlines()]
    watched = [line for line in lines if "odd found/odd" in line]
    assert watched
    assert all(0 <= line["odd found/odd"] <= 1 and 0 <= line["odd alarm/odd"] <= 1 for line in watched)
    for name in ("odd", "one"):
        steps = [line[key] for line in lines for key in line if key.endswith(f"/{name}") or key == name]
        assert steps
        assert np.isfinite(steps).all()
    with pytest.raises(ValueError, match=r"train\.accumulate: contrastive objectives compare"):
        launch.train(experiment(tiny_settings, "train.steps=3", "train.accumulate=2"))
