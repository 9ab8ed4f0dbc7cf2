"""Contrast: formulas, memory that is computed again, several processes, momentum and queues, all modalities at once."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import worker
from conftest import call, experiment
from forked import together

from mmkt import launch
from mmkt.checkpoint import read_tensors
from mmkt.layers import contrast
from mmkt.objectives.align import Align
from mmkt.objectives.momentum import Momentum
from mmkt.objectives.symile import Symile
from mmkt.types import Batch, Encoded, Outputs

FORMS = {
    "plain": {},
    "chunked": {"chunk": 3},
    "ring": {"exchange": "ring"},
    "ring in chunks": {"exchange": "ring", "chunk": 2},
}
WAYS = {"infonce": {}, "sigmoid": {"loss": "sigmoid", "temperature": 0.1, "bias": -1.0}}


def drawn(rows: int = 9, names: str = "abc", present: float = 0.75, dim: int = 5, seed: int = 0):
    """Random vectors in float64 that take a gradient, and who is there."""
    torch.manual_seed(seed)
    x = {m: torch.randn(rows, dim, dtype=torch.float64, requires_grad=True) for m in names}
    return x, {m: torch.rand(rows) < present for m in names}


def everyone(there):
    row = torch.arange(len(next(iter(there.values()))))
    return Batch({}, there, {}, {}, {}, row, row, row, row)


def spoken(objective, x, there, group=None):
    """An objective's sum on vectors, and the gradient of it: of vectors, then of its own parameters."""
    row = torch.arange(len(next(iter(x.values()))))
    batch = Batch({}, there, {}, {}, {}, row, row, row if group is None else group, row)
    encoded = {m: Encoded.of(v, there[m]) for m, v in x.items()}
    loss = objective.double()(None, batch, Outputs(encoded, encoded["a"], {}, {}, {}))
    wanted = [*x.values(), *objective.parameters()]
    return loss.detach(), list(torch.autograd.grad(loss, wanted, allow_unused=True, materialize_grads=True))


# ---------------------------------------------------------------- formulas


def test_sigmoid_loss_is_the_papers():
    """Zhai et al. (2023), algorithm 1, on the rows that have both."""
    x, there = drawn(names="ab")
    both = there["a"] & there["b"]
    assert 2 < both.sum() < 9
    found, _ = spoken(Align(5, ["a", "b"], {}, [], loss="sigmoid", temperature=0.1, bias=-3.0), x, there)
    a, b = (F.normalize(x[m][both], dim=1) for m in "ab")
    logits = a @ b.T * 10 - 3
    labels = 2 * torch.eye(len(a)) - 1
    torch.testing.assert_close(found, -F.logsigmoid(labels * logits).sum())


def test_rows_of_one_group_are_no_negatives():
    x, there = drawn(rows=6, names="ab", present=1.1)
    group = torch.tensor([0, 0, 1, -1, -1, 1])
    found, _ = spoken(Align(5, ["a", "b"], {}, [], same="group", temperature=0.5), x, there, group)
    scores = F.normalize(x["a"], dim=1) @ F.normalize(x["b"], dim=1).T / 0.5
    out = torch.zeros(6, 6, dtype=torch.bool)
    for i, j in ((0, 1), (2, 5)):
        out[i, j] = out[j, i] = True
    scores = scores.masked_fill(out, -torch.inf)
    here = torch.arange(6)
    torch.testing.assert_close(found, sum(F.cross_entropy(s, here, reduction="sum") for s in (scores, scores.T)) / 2)
    plain, _ = spoken(Align(5, ["a", "b"], {}, [], temperature=0.5), x, there, group)
    assert float(plain) > float(found) + 0.1  # which is what the mask is for


def test_hardness_weighs_negatives_as_robinson_et_al():
    """Their equation (4), β in units of the score: the mean of e^s over negatives drawn in proportion to e^(β s), n times."""
    x, there = drawn(rows=5, names="ab", present=1.1)
    found, _ = spoken(Align(5, ["a", "b"], {}, [], hardness=0.7, temperature=0.5), x, there)
    scores = F.normalize(x["a"], dim=1) @ F.normalize(x["b"], dim=1).T / 0.5
    expected = 0.0
    for s in (scores, scores.T):
        for i in range(5):
            negative = torch.cat([s[i, :i], s[i, i + 1 :]])
            weights = (0.7 * negative).softmax(0)
            expected = expected - 0.5 * (s[i, i].exp() / (s[i, i].exp() + 4 * (weights * negative.exp()).sum())).log()
    torch.testing.assert_close(found, expected)
    rows = contrast.sides({m: v.detach() for m, v in x.items()}, everyone(there), torch.full((5,), -1), training=True)
    plain, none = (loss(rows["a"], rows["b"], torch.tensor([2.0])) for loss in (contrast.info_nce, contrast.hard_info_nce(0.0)))
    torch.testing.assert_close(plain, none)


def test_an_anchor_is_compared_with_each():
    x, there = drawn()
    anchored, _ = spoken(Align(5, list("abc"), {}, [], anchor="b"), x, there)
    two = [spoken(Align(5, list("abc"), {}, [], between=pair), x, there)[0] for pair in (["b", "a"], ["b", "c"])]
    torch.testing.assert_close(anchored, sum(two))
    assert Align(5, list("abc"), {}, [], anchor="b").pairs == [("b", "a"), ("b", "c")]


def test_temperature_and_bias_stay_within_bounds():
    free = contrast.Temperature(0.07, (0.01, 1.0), bias=-10.0, bias_bounds=(-12.0, 0.0))
    with torch.no_grad():
        free.log_scale += 5
        free.bias -= 5
    scale, bias = free()
    assert scale.item() == pytest.approx(100.0)
    assert bias == -12.0
    still = contrast.Temperature(0.07, (0.01, 1.0), learned=False)
    assert not list(still.parameters())
    assert still()[0] == pytest.approx(1 / 0.07)
    with pytest.raises(ValueError, match=r"starts at 0\.07, outside its bounds of 0\.1 to 1\.0"):
        contrast.Temperature(0.07, (0.1, 1.0))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"anchor": "d"}, "two modalities or more of a, b, c, found d"),
        ({"between": ["a"]}, "found a"),
        ({"between": ["a", "a"]}, "found a, a"),
        ({"same": "kin"}, "same: allowed are group, kind, found 'kin'"),
        ({"hardness": 1.0, "loss": "sigmoid"}, "loss=infonce with exchange=gather"),
        ({"hardness": 1.0, "exchange": "ring"}, "loss=infonce with exchange=gather"),
        ({"bias": -5.0}, "bias: loss=infonce has none"),
    ],
)
def test_what_does_not_go_together(settings, words):
    with pytest.raises(ValueError, match=words):
        Align(5, list("abc"), {"kind": 3}, [], **settings)


# ---------------------------------------------------------------- memory


@pytest.mark.parametrize(("way", "form"), list(product(WAYS, list(FORMS)[1:])))
@pytest.mark.parametrize("more", [{}, {"same": "group"}, {"anchor": "c"}])
def test_in_pieces_it_is_the_same_to_1e_10(way, form, more):
    x, there = drawn()
    group = torch.arange(9) // 2
    names, known = list("abc"), {"kind": 3}
    whole = spoken(Align(5, names, known, [], **WAYS[way], **more), x, there, group)
    pieces = spoken(Align(5, names, known, [], **WAYS[way], **more, **FORMS[form]), x, there, group)
    torch.testing.assert_close(pieces[0], whole[0], atol=1e-10, rtol=0)
    for one, other in zip(pieces[1], whole[1]):
        assert one.abs().max() > 1e-3
        torch.testing.assert_close(one, other, atol=1e-10, rtol=0)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("present", [0.0, 0.15])
def test_nobody_to_compare_with_is_a_zero_that_is_connected(form, present):
    x, _ = drawn(rows=4)
    there = {m: torch.tensor([False, False, present > 0, False]) for m in x}
    for way in WAYS.values():
        loss, grads = spoken(Align(5, list("abc"), {}, [], **way, **FORMS[form]), x, there)
        assert all(torch.isfinite(g).all() for g in grads)
        # alone among what there is, a row is its own best answer; the sigmoid loss has something to say of one pair, too
        assert float(loss) == 0 if not way or not present else float(loss) > 0


@pytest.mark.parametrize("way", WAYS)
def test_scores_under_autocast_are_of_single_precision(way):
    x, there = drawn(present=1.1, dim=64)
    objective = Align(64, list("abc"), {}, [], **WAYS[way])
    plain, _ = spoken(objective, x, there)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss, _ = spoken(objective, x, there)
    assert loss == plain


# ---------------------------------------------------------------- several processes


@pytest.fixture(scope="module")
def gathered(tmp_path_factory) -> dict:
    """By world size, then by what was asked: losses and gradients."""
    folder = tmp_path_factory.mktemp("gathered")
    worker.contrasted(folder, 1)
    for world in (2, 4):
        together(world, worker.contrasted, folder, world, said=folder)
    return {world: json.loads((folder / f"contrast-{world}.out").read_text()) for world in (1, 2, 4)}


def test_whatever_the_number_of_processes_the_gradient_is_that_of_one_big_batch(gathered):
    assert len(gathered[1]) > 20
    for asked, one in gathered[1].items():
        if not json.loads(asked)["remote"]:
            continue
        for world in (2, 4):
            many = gathered[world][asked]
            np.testing.assert_allclose(many["loss"], one["loss"], atol=1e-10, rtol=0, err_msg=asked)
            for name, grad in one["grads"].items():
                np.testing.assert_allclose(many["grads"][name], grad, atol=1e-10, rtol=0, err_msg=f"{asked} {name} {world}")


def test_forms_agree(gathered):
    """Ring, chunks and recomputed encoders give the plain gradients in every world."""
    for world, found in gathered.items():
        for asked, one in found.items():
            plain = found[json.dumps(json.loads(asked) | {"form": "plain"}, sort_keys=True)]
            for name, grad in plain["grads"].items():
                np.testing.assert_allclose(one["grads"][name], grad, atol=1e-10, rtol=0, err_msg=f"{world} {asked} {name}")


def test_without_the_remote_side_gradients_are_others(gathered):
    """A negative control: on one process nothing is remote, on two the gradient lacks what the other process would send."""
    asked = json.dumps({"names": "ab", "way": "infonce", "form": "plain", "remote": False}, sort_keys=True)
    with_it = asked.replace("false", "true")
    assert gathered[1][asked] == gathered[1][with_it]
    one, two = (np.array(gathered[2][a]["grads"]["a"]) for a in (with_it, asked))
    assert np.abs(one - two).max() > 1e-3
    np.testing.assert_allclose(gathered[2][asked]["loss"], gathered[2][with_it]["loss"], atol=1e-10)


def test_whatever_the_number_of_processes_rows_count_once_and_a_queue_is_the_same(tmp_path):
    """In evaluation a process may have a row fewer than another."""
    found = {}
    for world in (1, 2, 4):
        worker.uneven(tmp_path, 1) if world == 1 else together(world, worker.uneven, tmp_path, world, said=tmp_path)
        found[world] = json.loads((tmp_path / f"uneven-{world}.out").read_text())
    assert found[1]["gather 7"] != found[1]["gather 8"]
    assert sorted(found[1]["queue"][0]) == [100, 101, 102, 103, 104]
    for world in (2, 4):
        for name, one in found[1].items():
            if name == "queue":
                assert found[world][name] == one
            else:
                assert found[world][name] == pytest.approx(one, abs=1e-10), (name, world)


# ---------------------------------------------------------------- encoders in pieces


def trained(data: dict, run: Path, *more: str) -> tuple[dict, list[dict]]:
    launch.train(experiment(data, f"run={run}", *more))
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return read_tensors(run / "best" / "model.safetensors"), [line for line in lines if "loss" in line]


def test_encoders_in_chunks_train_the_same(tiny_settings, tmp_path):
    tiny_settings["objectives"]["near"] = "align"
    tiny_settings["train"] |= {"steps": 4, "log_every": 1, "evaluate_every": 4}
    whole, lines = trained(tiny_settings, tmp_path / "whole")
    pieces, others = trained(tiny_settings, tmp_path / "pieces", "train.chunk=3")
    np.testing.assert_allclose([x["loss"] for x in others], [x["loss"] for x in lines], atol=1e-5, rtol=0)
    for name, tensor in whole.items():
        torch.testing.assert_close(pieces[name], tensor, atol=1e-4, rtol=0)
    assert len({x["loss"] for x in lines}) == 4


def test_chunks_are_refused_with_batch_norms(tiny_settings, config_file, capfd):
    tiny_settings["model"]["encoders"]["image"]["model"] = "test_efficientnet"
    status, _, err = call(capfd, "train", config_file(tiny_settings), "train.chunk=2")
    assert status == 2
    assert "train.chunk: encoders.image has batch norms, whose statistics would be of a chunk" in err


# ---------------------------------------------------------------- momentum


class Interrupted(Exception):
    """In the middle of training."""


def interrupting(at: int):
    calls, stepped = iter(range(1, 100)), Momentum.stepped

    def interrupted(*arguments: object) -> None:
        if next(calls) == at:
            raise Interrupted
        stepped(*arguments)

    return interrupted


def test_momentum_resumes_to_the_bit_and_learns(tiny_settings, tmp_path):
    tiny_settings["objectives"]["near"] = {"name": "momentum", "queue": 40, "decay": 0.9}
    tiny_settings["train"] |= {"steps": 8, "log_every": 1, "evaluate_every": 4, "save_every": 4}
    whole, lines = trained(tiny_settings, tmp_path / "whole")
    with pytest.raises(Interrupted), mock.patch.object(Momentum, "stepped", interrupting(5)):
        trained(tiny_settings, tmp_path / "halves")
    launch.train(experiment(tiny_settings, f"run={tmp_path}/halves"), resume=True)
    for file in ("learner", "optimizer"):
        one, two = (read_tensors(tmp_path / name / f"last/{file}.safetensors") for name in ("whole", "halves"))
        assert one.keys() == two.keys()
        assert all(torch.equal(x, two[name]) for name, x in one.items())
    state = read_tensors(tmp_path / "whole/last/learner.safetensors")
    averages = [name for name in state if ".average_" in name]
    assert len(averages) > 10
    assert int((state["objectives.near.rows"] >= 0).sum()) == 40
    norms = state["objectives.near.keys_text"].norm(dim=1)
    torch.testing.assert_close(norms, torch.ones(40), atol=1e-5, rtol=0)


def momentum(queue: int = 6, **settings) -> Momentum:
    torch.manual_seed(3)
    return Momentum(5, ["a", "b"], {}, [], queue=queue, temperature=0.5, **settings)


def test_keys_are_the_teachers_and_the_queues():
    """By hand: InfoNCE of the model's vectors against the teacher's of the batch and the queue, without the row itself."""
    objective = momentum()
    x, there = drawn(rows=4, names="ab", present=1.1)
    taught = {m: F.normalize(v.detach() + 0.3 * torch.randn(4, 5), dim=1) for m, v in x.items()}
    for m in "ab":
        getattr(objective, f"keys_{m}").copy_(F.normalize(torch.randn(6, 5), dim=1))
        getattr(objective, f"there_{m}").copy_(torch.tensor([1, 1, 0, 1, 1, 1]) > 0)
    objective.rows.copy_(torch.tensor([7, 2, 9, 9, 0, -1]))  # rows 2 and 0 of the batch came by before
    objective.double()
    row = torch.arange(4)
    batch = Batch({}, there, {}, {}, {}, row, row, row, row)
    encoded = {m: Encoded.of(v, there[m]) for m, v in x.items()}
    found = objective._summed(batch, Outputs(encoded, encoded["a"], {}, {}, {}), taught)
    expected = 0.0
    for m, other in (("a", "b"), ("b", "a")):
        for i in range(4):
            kept = [k for k in (0, 1, 3, 4, 5) if int(objective.rows[k]) != i]
            keys = torch.cat([taught[other], getattr(objective, f"keys_{other}")[kept]])
            expected = expected + 0.5 * F.cross_entropy((F.normalize(x[m][i], dim=0) @ keys.T / 0.5)[None], torch.tensor([i]))
    torch.testing.assert_close(found, expected)


def test_the_queue_goes_round_and_the_average_moves():
    class Named(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.p = torch.nn.Parameter(torch.full((2,), 5.0))

        def named(self):
            return {"space.p": self.p}

    learner, objective = Named(), momentum(decay=0.75)
    objective.names = {"space.p": "average_0"}
    objective.register_buffer("average_0", torch.ones(2))
    x, there = drawn(rows=4, names="ab", present=1.1)
    for step in range(2):
        row = torch.arange(4) + 4 * step
        place = torch.arange(4)
        objective.fresh = {m: contrast.Rows(v.detach() + step, there[m], place, row) for m, v in x.items()}
        objective.stepped(learner, 0.5)
    assert objective.rows.tolist() == [6, 7, 2, 3, 4, 5]
    assert int(objective.next) == 2
    torch.testing.assert_close(objective.keys_a, torch.cat([x["a"][2:] + 1, x["a"][2:], x["a"][:2] + 1]).detach().float())
    torch.testing.assert_close(objective.average_0, torch.full((2,), 5 - 4 * 0.75**2))


# ---------------------------------------------------------------- all at once


def test_symile_by_hand():
    x, there = drawn(rows=12)
    whole = there["a"] & there["b"] & there["c"]
    n = int(whole.sum())
    assert 4 <= n < 12
    found, _ = spoken(Symile(5, list("abc"), {}, [], temperature=0.4), x, there)
    order = sorted(whole.nonzero()[:, 0].tolist(), key=lambda row: row * 2654435761 % 2**32)
    assert order != sorted(order)
    z = {m: F.normalize(v[order], dim=1) for m, v in x.items()}
    expected = 0.0
    for m, (first, second) in {"a": "bc", "b": "ac", "c": "ab"}.items():
        for i in range(n):
            others = [z[first][j] * z[second][i if j == i else (j + 1) % n] for j in range(n)]
            scores = 5**0.5 / 0.4 * torch.stack([(z[m][i] * other).sum() for other in others])
            expected = expected - scores.log_softmax(0)[i] / 3
    torch.testing.assert_close(found, expected)
    pieces = spoken(Symile(5, list("abc"), {}, [], temperature=0.4, chunk=2), x, there)
    torch.testing.assert_close(pieces[0], found, atol=1e-10, rtol=0)


def test_symile_of_two_is_info_nce():
    x, there = drawn(names="ab")
    two, pair = (spoken(part(5, ["a", "b"], {}, []), x, there) for part in (Symile, Align))
    torch.testing.assert_close(two, pair)


def test_symile_learns_what_no_pair_says():
    """c = a ⊙ b of random signs: any two are independent. Pairs stay at chance, the product of three does not."""
    torch.manual_seed(0)
    chance, learned = {}, {}
    for part in (Align, Symile):
        a, b = (torch.randn(256, 8).sign() for _ in range(2))
        data = {"a": a, "b": b, "c": a * b}
        torch.manual_seed(1)
        maps = torch.nn.ModuleDict({m: torch.nn.Linear(8, 8) for m in data})
        objective = part(8, list("abc"), {}, [])
        optimizer = torch.optim.Adam([*maps.parameters(), *objective.parameters()], 0.02)
        there = {m: torch.ones(256, dtype=torch.bool) for m in data}
        row = torch.arange(256)
        for _ in range(150):
            optimizer.zero_grad()
            encoded = {m: Encoded.of(maps[m](v), there[m]) for m, v in data.items()}
            batch = Batch({}, there, {}, {}, {}, row, row, row, row)
            loss = objective(None, batch, Outputs(encoded, encoded["a"], {}, {}, {})) / objective.count(batch)
            loss.backward()
            optimizer.step()
        learned[part], chance[part] = float(loss.detach()), float(np.log(256))
    assert learned[Symile] < 0.6 * chance[Symile]
    assert learned[Align] > 0.8 * chance[Align]
