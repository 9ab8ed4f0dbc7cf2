"""Objectives that balance modalities: their formulas by hand, two processes, and a run that was stopped."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import worker
from conftest import experiment, rows_of_three, settings, write
from forked import together
from test_fusion import NAMES, close, parts, without

from mmkt import launch
from mmkt.checkpoint import read_tensors
from mmkt.layers.balance import ahead
from mmkt.objectives.g_blend import FLOOR, blended
from mmkt.parts import ConfigError, Parts
from mmkt.stop import Stopped
from mmkt.telemetry import CLOCK
from mmkt.types import Batch, Outputs

D, CLASSES, KINDS = 8, 3, ("ogm_ge", "g_blend", "pmr")
SETTINGS = {"ogm_ge": {}, "g_blend": {"every": 2, "held": 0.3}, "pmr": {"early": 1.0, "entropy": 0.1}}


def objective(name: str, modalities=NAMES, **more):
    return Parts().find("objectives", name)(D, modalities, {"y": CLASSES, "z": 2}, [], **{"task": "y"} | more)


def batch(found: dict, rows=range(6)) -> Batch:
    row = torch.tensor(rows)
    y = torch.tensor([0, 1, 2, 2, 1, 0])[: len(row)]
    labelled = torch.tensor([True, True, False, True, True, True])[: len(row)]
    return Batch({}, {m: e.present for m, e in found.items()}, {"y": y}, {"y": labelled}, {}, row, row, row, row)


def some() -> dict:
    """Three modalities of six rows: b is in none, c in four."""
    found = without(parts(), "b")
    return found | {"c": found["c"]._replace(present=torch.tensor([True, False, True, True, False, True]))}


def outputs(found: dict) -> Outputs:
    encoded = {m: e._replace(pooled=e.pooled.detach().requires_grad_()) for m, e in found.items()}
    torch.manual_seed(1)
    return Outputs(encoded, encoded["a"], {"y": torch.randn(len(encoded["a"].pooled), CLASSES, requires_grad=True)}, {}, {})


class Trained:
    """As much of a learner as objectives read: what trains, by modality."""

    def __init__(self, model=None, **numbers):
        self.by = {m: [torch.nn.Parameter(torch.zeros(n)) for n in shapes] for m, shapes in numbers.items()}

    def by_modality(self):
        return self.by

    def grade(self, seed: int = 0) -> dict[str, list[torch.Tensor]]:
        torch.manual_seed(seed)
        for some in self.by.values():
            for p in some:
                p.grad = torch.randn_like(p)
        return {m: [p.grad.clone() for p in some] for m, some in self.by.items()}

    def grads(self) -> dict[str, list[torch.Tensor]]:
        return {m: [p.grad for p in some] for m, some in self.by.items()}


# ---------------------------------------------------------------- who is ahead


def test_ahead_is_the_ratio_of_two_and_the_mean_of_the_others_of_more():
    sums, counts = torch.tensor([3.0, 2.0, 6.0]), torch.tensor([5.0, 10.0, 10.0])
    means = [0.6, 0.2, 0.6]
    close(ahead(sums[:2], counts[:2]), torch.tensor([3.0, 1 / 3]))
    close(ahead(sums, counts), torch.tensor([means[k] / (sum(means) - means[k]) * 2 for k in range(3)]))


def test_a_modality_without_a_row_is_no_measure():
    close(ahead(torch.tensor([3.0, 0.0, 1.0]), torch.tensor([5.0, 0.0, 5.0])), torch.tensor([3.0, 1.0, 1 / 3]))
    for counts in ([0.0, 0.0], [4.0, 0.0]):
        close(ahead(torch.tensor([2.0, 0.0]) * torch.tensor(counts), torch.tensor(counts)), torch.ones(2))


# ---------------------------------------------------------------- unimodal, with layers of its own


def test_unimodal_with_layers_of_its_own_takes_any_fusion():
    found = some()
    this, out = objective("unimodal", own=True), outputs(found)
    loss = this(None, batch(found), out)
    y, x = batch(found).labels["y"], {m: out.encoded[m].pooled for m in NAMES}
    each = {m: F.cross_entropy(F.linear(x[m], this.each.of[m].weight, this.each.of[m].bias), y, reduction="none") for m in NAMES}
    close(loss, each["a"][[0, 1, 3, 4, 5]].sum() + each["c"][[0, 3, 5]].sum())
    loss.backward()
    assert x["a"].grad.any()  # encoders learn
    with pytest.raises(ValueError, match="there is no 'x'; allowed: y, z"):
        objective("unimodal", own=True, task="x")


# ---------------------------------------------------------------- OGM-GE


def scores(this, out: Outputs, y: torch.Tensor, rows: dict[str, list[int]]) -> dict[str, float]:
    found = {}
    for m, some in rows.items():
        p = F.linear(out.encoded[m].pooled, this.each.of[m].weight, this.each.of[m].bias).softmax(1)
        found[m] = float(p[some, y[some]].mean().detach())
    return found


@pytest.mark.parametrize("noise", [False, True])
def test_ogm_ge_slows_what_leads(noise):
    found = some()
    this, out, learner = objective("ogm_ge", alpha=0.7, noise=noise), outputs(found), Trained(a=(3000, 5), b=(5,), c=(3000,))
    for x in this.each.of.values():
        x.weight.data *= 3
    this.prepare(None, None)
    this.seed.fill_(11)
    this.place = 11
    loss = this(None, batch(found), out)
    s = scores(this, out, batch(found).labels["y"], {"a": [0, 1, 3, 4, 5], "c": [0, 3, 5]})
    factor = {m: 1 - np.tanh(0.7 * s[m] / s[n]) if s[m] > s[n] else 1.0 for m, n in (("a", "c"), ("c", "a"))} | {"b": 1.0}
    assert sorted(factor.values())[0] < 0.7
    before = learner.grade()
    this.graded(learner)
    for m, k in factor.items():
        for old, new in zip(before[m], learner.grads()[m], strict=True):
            if not noise:
                close(new, k * old)
            elif len(old) > 1000:
                extra = new - k * old
                assert extra.std() == pytest.approx(float(old.std()), rel=0.1)
                assert float(torch.corrcoef(torch.stack([extra, old]))[0, 1]) == pytest.approx(0, abs=0.08)
    loss.backward()
    assert this.each.of["a"].weight.grad.any()
    assert out.encoded["a"].pooled.grad is None  # its layers read, they do not teach


def test_ogm_ge_without_rows_scales_nothing_and_each_step_has_a_noise_of_its_own():
    this, learner = objective("ogm_ge"), Trained(a=(50,), c=(50,))
    this.place, noises = 0, []
    for _ in range(2):
        before = learner.grade()
        this.graded(learner)
        noises.append(learner.grads()["a"][0] - before["a"][0])
    assert not torch.allclose(noises[0], noises[1], atol=0.1)
    again = objective("ogm_ge")
    again.load_state_dict(this.state_dict() | {"drawn": torch.tensor(1)}, strict=False)
    again.place = int(again.seed + again.drawn)  # as begin() does when a run is resumed after the first step
    before = learner.grade()
    again.graded(learner)
    assert torch.equal(learner.grads()["a"][0] - before["a"][0], noises[1])


def test_evaluation_leaves_no_trace():
    found = some()
    for name in KINDS:
        this = objective(name).eval()
        before = {k: v.clone() for k, v in this.named_buffers()}
        this(None, batch(found), outputs(found))
        assert all(torch.equal(v, before[k]) or v.isnan().all() for k, v in this.named_buffers()), name


def test_one_modality_alone_is_refused():
    for name in ("ogm_ge", "pmr"):
        with pytest.raises(ValueError, match=f"{name} compares modalities, found a alone"):
            objective(name, modalities=("a",))


def test_labels_that_are_no_classes_are_refused():
    found = some()
    floats = batch(found)._replace(labels={"y": torch.rand(6, 3)})
    for name in KINDS:
        with pytest.raises(ValueError, match="'y' is no classification"):
            objective(name)(None, floats, outputs(found))


# ---------------------------------------------------------------- G-Blend


def test_blending_weights_by_hand():
    """From the paper: w = G / O², where the held loss fell by G and the gap grew by O."""
    before, now = torch.tensor([[2.0, 2.0, 2.0], [2.1, 2.2, 2.0]]), torch.tensor([[1.0, 1.5, 1.0], [1.3, 1.8, 2.1]])
    gained, overfitted = [0.8, 0.4, 0.0], [0.2, 0.1, 1.1]
    raw = [g / o**2 for g, o in zip(gained, overfitted)]
    close(blended(before, now), torch.tensor(raw) / sum(raw), atol=1e-4)
    assert blended(now[:, :2], before[:, :2]).isnan().all()  # nothing generalised
    one = torch.stack([before[:, 0], torch.full((2,), torch.nan)], 1), torch.stack([now[:, 0], now[:, 1]], 1)
    close(blended(*one), torch.tensor([1.0, 0.0]))
    level = torch.tensor([[2.0], [2.0]]), torch.tensor([[1.0], [1.0]])
    assert blended(*level) == 1  # no gap is a small one, no division by nothing
    assert FLOOR > 0


def test_g_blend_teaches_with_what_is_not_held_and_weighs_with_the_rest():
    found, this, learner = some(), objective("g_blend", every=2, held=0.4), None
    rows = [2, 3, 4, 5, 6, 8]
    held = torch.tensor([(r * 2654435761) % 2**32 < 0.4 * 2**32 for r in rows])
    labelled, y = batch(found).labelled["y"], batch(found).labels["y"]
    assert held[labelled].any()
    assert (~held[labelled]).any()
    there = {"a": torch.ones(6, dtype=torch.bool), "c": found["c"].present}
    losses, before = [], None
    for _ in range(2):
        for _ in range(2):
            out = outputs(found)
            out.logits["y"].data = torch.randn(6, CLASSES)
            every = [
                out.logits["y"],
                *(F.linear(out.encoded[m].pooled, this.each.of[m].weight, this.each.of[m].bias) for m in "ac"),
            ]
            each = [F.cross_entropy(x, y, reduction="none") for x in every]
            masks = [torch.ones(6, dtype=torch.bool), there["a"], there["c"]]
            w = this.weights[[0, 1, 3]]
            value = this(None, batch(found, rows), out)
            close(value, sum(w[k] * each[k][labelled & ~held & masks[k]].sum() for k in range(3)), atol=1e-5)
            assert this.count(batch(found, rows)) == (labelled & ~held).sum()
            losses.append(
                [[float(each[k][labelled & part & masks[k]].sum().detach()) for k in range(3)] for part in (~held, held)]
            )
            this.stepped(learner, 0.1)
            this.each.of["a"].weight.data += 0.1 * torch.randn(CLASSES, D)
        counts = [[2 * int((labelled & part & m).sum()) for m in masks] for part in (~held, held)]
        now = torch.tensor(losses[-2:]).sum(0) / torch.tensor(counts)
        if before is not None:
            expected = blended(before, now)
            if expected.isfinite().all():
                close(this.weights[[0, 1, 3]], expected, atol=1e-4)
                assert this.weights[2] == 0  # b is in no row
        else:
            close(this.weights, torch.full((4,), 0.25))
        before = now
    close(this.before[:, [0, 1, 3]], before, atol=1e-5)
    this.eval()
    assert this.count(batch(found, rows)) == labelled.sum()


def test_g_blend_moves_towards_what_generalises():
    """The fused answer gets better on held rows as on others, a modality's only on those that train."""
    this = objective("g_blend", modalities=("a",), every=1, held=0.5)
    rows = list(range(40))
    found = {"a": parts()["a"]._replace(pooled=torch.zeros(40, D), present=torch.ones(40, dtype=torch.bool))}
    y = torch.randint(CLASSES, (40,))
    row = torch.tensor(rows)
    everywhere = torch.ones(40, dtype=torch.bool)
    data = Batch({}, {"a": everywhere}, {"y": y}, {"y": everywhere}, {}, row, row, row, row)
    taught = this._taught(data)
    right = F.one_hot(y, CLASSES).float()
    for good, memorised in ((0.0, 0.0), (2.0, 3.0)):
        x = torch.zeros(40, D)
        x[:, :CLASSES] = right * memorised * torch.where(taught, 1.0, 0.05)[:, None]
        this.each.of["a"].weight.data = torch.eye(CLASSES, D)
        this.each.of["a"].bias.data.zero_()
        encoded = {"a": found["a"]._replace(pooled=x)}
        this(None, data, Outputs(encoded, encoded["a"], {"y": good * right}, {}, {}))
        this.stepped(None, 0.1)
    assert this.weights[0] > 0.99


# ---------------------------------------------------------------- PMR


def test_pmr_by_hand():
    found, this = some(), objective("pmr", momentum=0.8, entropy=0.3, early=0.5)
    out, y, labelled = outputs(found), batch(found).labels["y"], batch(found).labelled["y"]
    assert this(None, batch(found), out) == 0  # no prototype yet
    this.stepped(None, 0.1)
    x = {m: out.encoded[m].pooled.detach() for m in NAMES}
    there = {m: labelled & found[m].present for m in NAMES}
    for k, m in enumerate(NAMES):
        for c in range(CLASSES):
            rows = there[m] & (y == c)
            close(this.prototypes[k, c], x[m][rows].mean(0) if rows.any() else torch.zeros(D))
            assert this.known[k, c] == rows.any()
    this(None, batch(found), out)  # who is ahead is known from here on
    this.stepped(None, 0.2)
    logp, s = {}, {}
    for k, m in enumerate(NAMES):
        apart = torch.stack([(x[m] - this.prototypes[k, c]).norm(dim=1) for c in range(CLASSES)], 1)
        logp[m] = (-apart).masked_fill(~this.known[k], -torch.inf).log_softmax(1)
        answered = there[m] & this.known[k][y]
        s[m] = float(logp[m].exp()[answered, y[answered]].mean()) if answered.any() else None
    rho = s["a"] / s["c"]
    close(this.ratio, torch.tensor([rho, 1.0, 1 / rho]), atol=1e-4)
    clip = lambda value: min(max(value, 0.0), 1.0)  # noqa: E731
    expected = 0.0
    for k, (m, r) in enumerate((("a", rho), ("c", 1 / rho))):
        rows = there[m] & this.known[[0, 2][k]][y]
        p = logp[m].exp()
        entropy = -(p * logp[m].nan_to_num(neginf=0.0)).sum(1)
        expected += float((-clip(1 / r - 1) * logp[m][torch.arange(6), y] - 0.3 * clip(r - 1) * entropy)[rows].sum())
    loss = this(None, batch(found), out)
    close(loss.detach(), torch.tensor(expected), atol=1e-4)
    loss.backward()
    slow = "a" if rho < 1 else "c"
    assert out.encoded[slow].pooled.grad.any()
    assert not out.encoded["b"].pooled.grad.any()
    old, means = this.prototypes.clone(), this.prototypes.clone()
    this.stepped(None, 0.9)
    close(this.prototypes, 0.8 * old + 0.2 * means)  # the same rows again: nothing moves
    late = this(None, batch(found), outputs(found))
    assert torch.isfinite(late)


def test_pmr_pulls_only_what_is_behind():
    this = objective("pmr", modalities=("a", "c"), entropy=0.0)
    this.known.fill_(True)
    this.prototypes[:] = torch.randn(2, CLASSES, D)
    found = {m: e for m, e in parts().items() if m != "b"}
    for ratio, behind in (([2.0, 0.5], "c"), ([0.5, 2.0], "a"), ([1.0, 1.0], None)):
        this.ratio[:] = torch.tensor(ratio)
        out = outputs(found)
        this(None, batch(found), out).backward()
        assert {m for m, e in out.encoded.items() if e.pooled.grad is not None and e.pooled.grad.any()} == {behind} - {None}


def test_a_batch_of_one():
    for name in KINDS:
        this = objective(name, **SETTINGS[name])
        found = {m: type(e)(*(x[:1] for x in e)) for m, e in parts().items()}
        one = batch(found, range(1))
        for _ in range(3):
            loss = this(None, one, outputs(found))
            assert loss.isfinite()
            this.stepped(None, 0.1)
        if name == "ogm_ge":
            this.place, learner = 0, Trained(a=(4,))
            learner.grade()
            this.graded(learner)
            assert learner.grads()["a"][0].isfinite().all()


# ---------------------------------------------------------------- in the loop


def balanced(data: dict, name: str) -> dict:
    spec = {"name": name, "task": "kind", **SETTINGS[name]}
    data["objectives"] = {"kind": spec} if name == "g_blend" else data["objectives"] | {"even": spec}
    return data


def lines(run: Path) -> list[dict]:
    found = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in CLOCK} for line in found]


@pytest.mark.parametrize("name", KINDS)
def test_a_stopped_run_goes_on_as_if_it_had_not_been(tiny_settings, tmp_path, name):
    data = balanced(tiny_settings, name)
    launch.train(experiment(data, f"run={tmp_path / 'whole'}"))
    with pytest.raises(Stopped):
        launch.train(experiment(data, f"run={tmp_path / 'cut'}"), max_time=1e-9)
    launch.train(experiment(data, f"run={tmp_path / 'cut'}"), resume=True)
    assert lines(tmp_path / "whole") == lines(tmp_path / "cut")
    one, two = (read_tensors(tmp_path / run / "last/learner.safetensors") for run in ("whole", "cut"))
    assert one.keys() == two.keys()
    assert all(torch.equal(one[key], two[key]) for key in one)
    kept = {"ogm_ge": "drawn", "g_blend": "steps", "pmr": "prototypes"}[name]
    assert one[f"objectives.{'kind' if name == 'g_blend' else 'even'}.{kept}"].any()


@pytest.fixture(scope="module")
def curves(tmp_path_factory, tiny_bert) -> Path:
    """With and without each, on one process and two; rank 1 never hears anything, and a batch may lack a modality."""
    folder = tmp_path_factory.mktemp("curves")
    rows = [row | {"audio": None if row["domain"] == "outdoor" else row["audio"]} for row in rows_of_three(60, seed=1)]
    for name in ("", *KINDS):
        data = settings(write(rows, folder / "rows.parquet"), tiny_bert, folder / "unused")
        data["data"] |= {"streams": {"a": {"quota": 2, "domain": "indoor"}, "b": {"quota": 2, "domain": "outdoor"}}}
        data["train"] |= {"steps": 6, "lr": 1e-3, "evaluate_every": 6, "accumulate": 2}
        del data["model"]["encoders"]["text"]
        (folder / f"{name or 'none'}.json").write_text(json.dumps(balanced(data, name) if name else data))
    for world in (1, 2):
        together(world, worker.curves, folder, world, ["none", *KINDS], said=folder)
    return folder


@pytest.mark.parametrize("name", KINDS)
def test_two_processes_give_what_one_gives(curves, name):
    one, two, plain = (lines(curves / run) for run in (f"{name}-1", f"{name}-2", "none-1"))
    losses = [[line["loss"] for line in some if "loss" in line] for some in (one, two)]
    assert len(losses[0]) == 6
    np.testing.assert_allclose(losses[1], losses[0], atol=1e-5, rtol=0)
    shares = [[line.get("gradient share/audio", 0.0) for line in some if "loss" in line] for some in (one, two, plain)]
    np.testing.assert_allclose(shares[1], shares[0], atol=1e-4, rtol=0)
    assert not np.allclose(shares[0], shares[2], atol=1e-3)  # it does something


def test_ogm_ge_with_nothing_to_scale_is_refused(tiny_settings):
    frozen = "transfer={name: full, frozen: [encoders, space]}"
    with pytest.raises((ConfigError, ValueError), match="no encoder and no projection trains"):
        launch.train(experiment(balanced(tiny_settings, "ogm_ge"), frozen))
