"""The objectives that go with fusions on logits, against libraries and by hand."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from conftest import experiment
from test_fusion import NAMES, close, make, parts, without
from torch import distributions

from mmkt import launch
from mmkt.objectives.evidence import divergence_from_uniform
from mmkt.parts import Parts
from mmkt.types import Batch, Outputs


def objective(name: str, **more):
    defaults = {"evidence": {"annealing": 0.1}, "unimodal": {"own": False}}.get(name, {})
    return Parts().build("objectives", {"name": name, "task": "y", **defaults, **more}, 8, NAMES, {"y": 3, "z": 2}, [])


def batch(found: dict) -> Batch:
    row = torch.arange(6)
    y = torch.tensor([0, 1, 2, 2, 1, 0])
    labelled = torch.tensor([True, True, False, True, True, True])
    present = {m: e.present for m, e in found.items()}
    return Batch({}, present, {"y": y}, {"y": labelled}, {}, row, row, row, row)


def outputs(fusion, found) -> Outputs:
    out = fusion(found)
    return Outputs(found, out.encoded, out.logits, out.terms, out.notes)


def some() -> dict:
    found = without(parts(), "b")
    return found | {"c": found["c"]._replace(present=torch.tensor([True, False, True, True, False, True]))}


def test_unimodal_trains_each_modality():
    found, fusion = some(), make("late")
    loss = objective("unimodal")(None, batch(found), outputs(fusion, found))
    y = batch(found).labels["y"]
    each = {m: F.cross_entropy(fusion.each.of[m](found[m].pooled)[:, :3], y, reduction="none") for m in ("a", "c")}
    close(loss, each["a"][[0, 1, 3, 4, 5]].sum() + each["c"][[0, 3, 5]].sum())
    assert objective("unimodal").count(batch(found)) == 5


def test_evidence_is_the_expected_cross_entropy_and_the_divergence():
    found, fusion = some(), make("evidential")
    this, out = objective("evidence"), outputs(fusion, found)
    y = batch(found).labels["y"]
    alphas = [out.notes["evidence.y"][:, 0] + 1, F.softplus(fusion.each.of["a"](found["a"].pooled)[:, :3]) + 1]
    alphas.append(F.softplus(fusion.each.of["c"](found["c"].pooled)[:, :3]) + 1)
    rows = ([0, 1, 3, 4, 5], [0, 1, 3, 4, 5], [0, 3, 5])
    torch.manual_seed(0)
    draws = distributions.Dirichlet(alphas[0][0].detach()).sample((200_000,))
    expected = sum((a.sum(1).digamma() - a.gather(1, y[:, None])[:, 0].digamma())[r].sum() for a, r in zip(alphas, rows))
    close(-draws[:, y[0]].log().mean(), (alphas[0].sum(1).digamma() - alphas[0][:, 0].digamma())[0].detach(), atol=0.02)
    close(this(None, batch(found), out), expected)
    this.stepped(None, 0.05)  # half way through the annealing
    right = F.one_hot(y, 3)
    wrong = sum(
        distributions.kl_divergence(
            distributions.Dirichlet(right + (1 - right) * a), distributions.Dirichlet(torch.ones_like(a))
        )[r].sum()
        for a, r in zip(alphas, rows)
    )
    close(this(None, batch(found), out), expected + 0.5 * wrong)
    assert torch.equal(this.state_dict()["progress"], torch.tensor([0.05]))  # a resumed run goes on from there
    close(divergence_from_uniform(torch.ones(2, 4)), torch.zeros(2))


def test_rank_confidence_asks_for_the_order_of_being_right():
    found, fusion = some(), make("dynamic")
    out, this = outputs(fusion, found), objective("rank_confidence")
    total = torch.zeros(())
    y, w = batch(found).labels["y"], out.notes["confidence.y"]
    c = out.notes["logits.y"].detach().softmax(2)
    for m, rows in ((0, [0, 1, 3, 4, 5]), (2, [0, 3, 5])):
        for i in rows:
            gaps = [(c[i, m, y[i]] - c[j, m, y[j]], w[i, m] - w[j, m]) for j in rows]
            total = total + sum(F.relu(g.abs() - g.sign() * d) for g, d in gaps) / len(rows)
    loss = this(None, batch(found), out)
    close(loss, total)
    assert loss > 0
    ordered = out._replace(notes=out.notes | {"confidence.y": 2 * c.gather(2, y[:, None, None].expand(-1, 3, 1))[..., 0]})
    close(this(None, batch(found), ordered), torch.zeros(()))


def test_rank_confidence_compares_with_the_rows_of_all_processes(monkeypatch):
    """Two halves that see each other's rows add up to the whole; without, they don't."""
    found, fusion = some(), make("dynamic")
    out, this, whole = outputs(fusion, found), objective("rank_confidence"), batch(found)
    expected = this(None, whole, out)
    halves, there = [slice(0, 3), slice(3, 6)], torch.stack([whole.present[m] & whole.labelled["y"] for m in NAMES], 1)
    right = out.notes["logits.y"].detach().softmax(2).gather(2, whole.labels["y"][:, None, None].expand(-1, 3, 1))[..., 0]

    def summed(gather) -> torch.Tensor:
        total = torch.zeros(())
        for half in halves:
            every = iter([out.notes["confidence.y"], right, there.float()])
            monkeypatch.setattr("mmkt.objectives.rank_confidence.gather", lambda x, every=every: gather(x, next(every)))
            notes = {name: x[half] for name, x in out.notes.items()}
            cut = whole._replace(
                present={m: p[half] for m, p in whole.present.items()},
                labels={"y": whole.labels["y"][half]},
                labelled={"y": whole.labelled["y"][half]},
            )
            total = total + this(None, cut, out._replace(notes=notes))
        return total

    close(summed(lambda local, every: every), expected)
    assert not torch.allclose(summed(lambda local, every: local), expected, atol=1e-3)


@pytest.mark.parametrize(("fusion", "name"), [("late", "evidence"), ("concat", "unimodal"), ("late", "rank_confidence")])
def test_without_what_it_reads_an_objective_says_so(fusion, name):
    found = some()
    with pytest.raises(ValueError, match=r"leaves no \w+ of single modalities for the task 'y'; of ours, .* would"):
        objective(name)(None, batch(found), outputs(make(fusion), found))


def test_no_classification_is_said():
    found, fusion = some(), make("late")
    floats = batch(found)._replace(labels={"y": torch.rand(6, 3)})
    with pytest.raises(ValueError, match="'y' is no classification"):
        objective("unimodal")(None, floats, outputs(fusion, found))


@pytest.mark.parametrize(
    ("fusion", "objectives"), [("evidential", ["evidence"]), ("dynamic", ["classify", "unimodal", "rank_confidence"])]
)
def test_they_train_in_the_loop(tiny_settings, fusion, objectives):
    tiny_settings["model"]["fusion"] = fusion
    tiny_settings["objectives"] = {name: {"name": name, "task": "kind"} for name in objectives}
    rows = launch.train(experiment(tiny_settings, "train.steps=3"))
    assert next(row for row in rows if row.metric == "accuracy").n == 24
