"""Attacks on raw numbers: formulas, limits, other libraries, and what they leave untouched."""

from __future__ import annotations

import math
import random
import warnings

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from conftest import rows_of_three, write
from torch import nn

from mmkt import generators
from mmkt.attacks.apgd import Apgd, _checks
from mmkt.attacks.cw import Cw
from mmkt.attacks.fgsm import Fgsm
from mmkt.attacks.patch import Patch
from mmkt.attacks.pgd import Pgd
from mmkt.attacks.square import Square
from mmkt.ball import Ball
from mmkt.evaluate import feed_of, revived
from mmkt.goal import Goal
from mmkt.modes import evaluating
from mmkt.parts import ConfigError, Parts
from mmkt.threat import Threat
from mmkt.victim import Victim
from mmkt.worst import Worst

THREATS = {
    "image": Threat(norm="linf", eps=0.1),
    "audio": Threat(norm="linf", db=-20.0),
    "text": Threat(norm="l2", db=-10.0),
}


@pytest.fixture(scope="module")
def model(trained):
    """In float64, where a row beside others has the gradient that it has alone."""
    found, _ = revived(str(trained), [], Parts(), Accelerator(), ("data", "evaluate"))
    return found.double().eval()


@pytest.fixture(scope="module")
def feed(model):
    return feed_of(model, model.config, ["test"], Parts())[0]


@pytest.fixture(scope="module")
def batch(model, feed):
    """Labelled as the model answers, so that every row is right as it comes."""
    found = next(feed.evaluation(feed.rows("test")[:8]))
    with torch.no_grad():
        return found._replace(labels={"kind": model(doubled(found)).logits["kind"].argmax(1)})


def doubled(batch):
    inputs = {m: {k: x.double() if x.is_floating_point() else x for k, x in some.items()} for m, some in batch.inputs.items()}
    return batch._replace(inputs=inputs)


@pytest.fixture
def victim(model, batch):
    return lambda *names, **more: Victim(model, doubled(batch), "kind", {m: THREATS[m] for m in names}, **more)


def one_row(batch, k):
    """The k-th row of a batch, by itself, padded as it was."""
    inputs = {}
    for m, some in batch.inputs.items():
        (item,) = some["items"][k].tolist()
        kept = {name: x[[item]] for name, x in some.items() if name != "items"}
        inputs[m] = kept | {"items": torch.zeros(1, 1, dtype=torch.long)}
    at = {name: {m: x[[k]] for m, x in getattr(batch, name).items()} for name in ("present", "labels", "labelled")}
    rows = {name: getattr(batch, name)[[k]] for name in ("row", "domain", "group", "stream")}
    return batch._replace(inputs=inputs, **at, **rows)


def ascended(victim, steps, size, loss, sign):
    """PGD by hand: every point of the way from the input."""
    m = victim.modalities[0]
    ball, x = victim.balls[m], victim.clean[m]
    for _ in range(steps):
        yield x
        leaf = x.clone().requires_grad_()
        (g,) = torch.autograd.grad(loss(victim.answers({m: leaf})), leaf)
        g, eps = g * ball.free if ball.free is not None else g, ball.eps
        if sign:
            x = (x + size * eps * g.sign()).clamp(ball.centre - eps, ball.centre + eps).clamp(*victim.model.encoders[m].bounds)
        else:
            moved = x + size * eps * g / g.flatten(1).norm(dim=1).view_as(eps).clamp(min=1e-30) - ball.centre
            x = ball.centre + moved * (eps / moved.flatten(1).norm(dim=1).view_as(eps)).clamp(max=1)
    yield x


# ---------------------------------------------------------------- formulas


def test_the_losses_of_a_goal():
    logits = torch.tensor([[-1.0, -3.0, -2.0, -7.0], [4.0, 1.0, 5.0, 0.0]], dtype=torch.float64)
    goal = Goal(torch.tensor([0, 0]), torch.tensor([True, True]))
    assert goal.loss("margin", logits).tolist() == [-1.0, 1.0]  # all others negative, too
    assert goal.loss("dlr", logits).tolist() == pytest.approx([-1 / 2, 1 / 4])
    assert goal.loss("ce", logits).tolist() == pytest.approx((-logits.log_softmax(1)[:, 0]).tolist())
    assert goal.reached(logits).tolist() == [False, True]
    wanted = goal._replace(targets=torch.tensor([3, 2]))
    assert wanted.loss("margin", logits).tolist() == [-6.0, 1.0]
    assert wanted.loss("dlr", logits).tolist() == pytest.approx([-6 / (-1 + 5.0), 1 / (5 - 0.5)])
    assert wanted.loss("ce", logits).tolist() == pytest.approx(
        [logits.log_softmax(1)[0, 3].item(), logits.log_softmax(1)[1, 2].item()]
    )
    assert wanted.reached(logits).tolist() == [False, True]
    unknown = goal._replace(known=torch.tensor([True, False]))
    assert unknown.reached(logits).tolist() == [False, False]
    two = Goal(torch.tensor([0]), torch.tensor([True]))  # of two classes the scale would leave a sign alone
    assert two.loss("dlr", torch.tensor([[0.5, 2.0]])).item() == 1.5


@pytest.mark.parametrize("m", ["image", "audio", "text"])
def test_one_step_is_the_gradients_sign_or_direction(victim, m):
    attacked = victim(m)
    found = Fgsm()(attacked)[m]
    ce = lambda logits: nn.functional.cross_entropy(logits, attacked.goal.labels, reduction="sum")  # noqa: E731
    *_, expected = ascended(attacked, 1, 1.0, ce, sign=m != "text")
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    assert (found - attacked.clean[m]).abs().max() > 0.01 * float(attacked.balls[m].eps.max())
    other = Fgsm(start=True, size=1.25)(attacked)[m]
    assert not torch.allclose(other, found, atol=1e-4)


def test_the_last_search_of_carlini_and_wagner_goes_on_from_the_nearest(victim, monkeypatch):
    from mmkt.attacks import cw

    attacked, starts = victim("image"), []
    inverse = cw._inverse
    monkeypatch.setattr(cw, "_inverse", lambda ball, x: starts.append(x) or inverse(ball, x))
    Cw(steps=30, searches=3, c=10.0, lr=0.05)(attacked)
    clean = attacked.clean["image"]
    assert [torch.equal(x, clean) for x in starts] == [True, True, False]
    assert attacked.goal.reached(attacked.logits({"image": starts[2]})).all()


def test_a_step_from_a_random_place_is_cut_where_it_leads(victim):
    """As Wong et al.'s code: δ ~ U(−ε, ε), δ + 1.25 ε · sign ∇, cut by ε, then by the bounds; black pixels get values between."""
    attacked = victim("image")
    x, eps = attacked.clean["image"], attacked.balls["image"].eps
    start = attacked.uniform(0)["image"].requires_grad_()
    assert start.min() < -0.5 * eps.max()
    assert ((start - x).abs() <= eps + 1e-6).all()
    loss = nn.functional.cross_entropy(attacked.answers({"image": start}), attacked.goal.labels, reduction="sum")
    step = 1.25 * eps * torch.autograd.grad(loss, start)[0].sign()
    expected = torch.minimum(torch.maximum(start + step, x - eps), x + eps).clamp(0, 1)
    found = Fgsm(start=True, size=1.25)(attacked)["image"]
    torch.testing.assert_close(found, expected.detach(), rtol=0, atol=1e-6)
    black = found[x == 0] / eps.max()
    assert len(black) > 20
    assert ((black > 0.1) & (black < 0.9)).float().mean() > 0.1


@pytest.mark.parametrize(("m", "loss"), [("image", "ce"), ("text", "dlr"), ("audio", "margin")])
def test_a_row_keeps_the_worst_point_of_its_way(victim, m, loss):
    attacked = victim(m)
    found = Pgd(steps=6, size=0.3, start=False, loss=loss)(attacked)[m]
    climbed = lambda logits: attacked.goal.loss(loss, logits).sum()  # noqa: E731
    way = torch.stack(list(ascended(attacked, 6, 0.3, climbed, sign=m != "text")))
    margins = torch.stack([attacked.goal.loss("margin", attacked.logits({m: x})) for x in way])
    expected = torch.stack([way[int(step), attacked.rows[m] == row][0] for row, step in enumerate(margins.argmax(0))])
    torch.testing.assert_close(found[torch.argsort(attacked.rows[m])], expected, rtol=0, atol=1e-6)
    assert (margins.amax(0) > margins[0]).all()


def test_auto_pgd_looks_when_the_paper_does_and_climbs_higher_than_its_start(victim):
    assert _checks(100) == {22, 41, 57, 70, 80, 87, 93, 99}
    attacked = victim("image", "audio", "text")
    start = attacked.goal.loss("margin", attacked.logits(attacked.anywhere(0)))
    found = attacked.goal.loss("margin", attacked.logits(Apgd(steps=20)(attacked)))
    assert (found > start).all()
    assert attacked.passes["backward"] == 20


def test_auto_pgd_goes_towards_the_likeliest_other_classes_one_by_one(victim):
    attacked = victim("image")
    clean = attacked.logits(attacked.clean)
    ranked = [[k for k in row.argsort(descending=True).tolist() if k != label] for row, label in zip(clean, attacked.goal.labels)]
    aims = [towards.goal.targets.tolist() for towards in Apgd(targets=3)._towards(attacked)]
    assert aims == [[row[k] for row in ranked] for k in range(3)]
    before = attacked.passes["backward"]
    found = Apgd(steps=8, loss="dlr", targets=3)(attacked)
    assert attacked.passes["backward"] - before == 24
    assert (attacked.goal.loss("margin", attacked.logits(found)) > attacked.goal.loss("margin", clean)).all()
    assert len(Apgd(targets=99)._towards(attacked)) == 7  # of eight classes


def test_a_target_is_what_is_said(victim):
    attacked = victim("image", "audio", "text")
    targets = (attacked.goal.labels + 1) % 8
    wanted = victim("image", "audio", "text", targets=targets)
    before, after = (wanted.goal.loss("margin", wanted.logits(x)) for x in (wanted.clean, Pgd(steps=20)(wanted)))
    assert (after > before).all()
    assert (
        wanted.goal.reached(wanted.logits(Pgd(steps=20)(wanted))).sum()
        > attacked.goal._replace(targets=targets).reached(attacked.logits(Pgd(steps=20)(attacked))).sum()
    )


# ---------------------------------------------------------------- another library


@pytest.fixture(scope="module")
def foolbox():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("foolbox")


class Plain(nn.Module):
    """The pictures alone may change."""

    def __init__(self, victim):
        super().__init__()
        self.victim = victim

    def forward(self, x):
        return self.victim.answers({"image": x.double()}).float()


def test_pictures_become_what_foolbox_makes_of_them(victim, foolbox):
    attacked = victim("image")
    theirs = foolbox.PyTorchModel(Plain(attacked).eval(), bounds=(0, 1), device="cpu")
    x, y = attacked.clean["image"].float(), attacked.goal.labels
    _, step, _ = foolbox.attacks.FGSM()(theirs, x, y, epsilons=0.1)
    torch.testing.assert_close(Fgsm()(attacked)["image"].float(), step, rtol=0, atol=1e-5)
    _, way, missed = foolbox.attacks.LinfPGD(steps=10, rel_stepsize=0.1, random_start=False)(theirs, x, y, epsilons=0.1)
    ours = Pgd(steps=10, size=0.1, start=False)(attacked)
    margins = [attacked.goal.loss("margin", attacked.logits({"image": z})) for z in (ours["image"], way.double())]
    assert (margins[0] >= margins[1] - 1e-4).all()  # the worst of that way, of which foolbox gives the last
    assert (margins[0] - margins[1]).median() < 0.1
    assert margins[1].mean() > attacked.goal.loss("margin", attacked.logits(attacked.clean)).mean()


def test_the_nearest_is_no_further_than_foolboxs(victim, foolbox):
    attacked = victim("image")
    theirs = foolbox.PyTorchModel(Plain(attacked).eval(), bounds=(0, 1), device="cpu")
    x, y = attacked.clean["image"].float(), attacked.goal.labels
    carlini = foolbox.attacks.L2CarliniWagnerAttack(steps=60, binary_search_steps=4, initial_const=1.0)
    _, found, hit = carlini(theirs, x, y, epsilons=None)
    ours = Cw(steps=60, searches=4, c=1.0)(attacked)["image"]
    assert attacked.goal.reached(attacked.logits({"image": ours})).all()
    assert hit.all()
    far = [(z - attacked.clean["image"]).flatten(1).norm(dim=1).mean() for z in (ours, found.double())]
    assert far[0] <= 1.02 * far[1]


# ---------------------------------------------------------------- limits


ATTACKS = {
    "fgsm": Fgsm(),
    "fgsm with a start": Fgsm(start=True, size=1.25),
    "pgd": Pgd(steps=4, restarts=2, loss="dlr"),
    "apgd": Apgd(steps=5),
    "square": Square(queries=6),
    "cw": Cw(steps=6, searches=2, c=10.0, lr=0.05),
    "patch": Patch(steps=3, places=2),
}
SPACES = [("image",), ("audio",), ("text",), ("image", "audio", "text")]


@pytest.mark.parametrize("name", ATTACKS)
@pytest.mark.parametrize("names", SPACES, ids="+".join)
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_nothing_leaves_its_ball_or_its_bounds_and_no_row_looks_at_another(model, batch, name, names, norm):
    attack, whole = ATTACKS[name], doubled(batch)
    if norm not in attack.norms or (name == "patch" and "text" in names):
        pytest.skip("not of this attack")
    threats = {m: THREATS[m].model_copy(update={"norm": norm}) for m in names}
    attacked = Victim(model, whole, "kind", threats, seed=3)
    points = attack(attacked)
    for m, x in points.items():
        ball = attacked.balls[m]
        if attack.keeps:
            assert (ball.far(x) <= ball.eps.flatten() + 1e-6).all()
        if model.encoders[m].bounds:
            low, high = model.encoders[m].bounds
            assert x.min() >= low - 1e-6
            assert x.max() <= high + 1e-6
        if ball.free is not None:
            padding = ~ball.free.expand_as(x)
            assert padding.any()
            assert torch.equal(x[padding], ball.centre[padding])
    margins, before = (attacked.goal.loss("margin", attacked.logits(x)) for x in (points, attacked.clean))
    if name not in ("fgsm", "fgsm with a start"):
        assert (margins >= before - 1e-9).all()
    assert margins.mean() > before.mean() or name == "square"  # of which six queries are few
    for k in (0, 5):
        alone = Victim(model, one_row(whole, k), "kind", threats, seed=3)
        for m, x in attack(alone).items():
            (item,) = (attacked.rows[m] == k).nonzero().flatten().tolist()
            torch.testing.assert_close(x[0], points[m][item], rtol=0, atol=1e-6)


def test_random_starts_are_of_the_row_and_differ_from_draw_to_draw(model, batch):
    short = one_row(doubled(batch), 2)
    trimmed = short.inputs["audio"] | {"waveform": short.inputs["audio"]["waveform"][:, : int(short.inputs["audio"]["lengths"])]}
    short = short._replace(inputs=short.inputs | {"audio": trimmed})  # not padded to the batch's longest
    whole, alone = (Victim(model, some, "kind", THREATS, seed=1) for some in (doubled(batch), short))
    for m in THREATS:
        (item,) = (whole.rows[m] == 2).nonzero().flatten().tolist()
        here, there = whole.anywhere(0)[m][item], alone.anywhere(0)[m][0]
        torch.testing.assert_close(here[: len(there)], there, rtol=0, atol=1e-7)
        assert not torch.equal(whole.anywhere(0)[m], whole.anywhere(1)[m])
    other = Victim(model, doubled(batch), "kind", THREATS, seed=2)
    assert not torch.equal(whole.anywhere(0)["image"], other.anywhere(0)["image"])


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_starts_are_uniform_in_the_ball(norm):
    centre = torch.randn(4000, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    ball = Ball.of(centre, Threat(norm=norm, eps=0.5), None, None, tuple((k,) for k in range(4000)))
    moved = ball.anywhere(0, 0) - centre
    far = ball.far(centre + moved) / 0.5
    assert far.max() <= 1
    # the share of a ball within r of its middle is r³ here, in either norm
    assert np.quantile(far, [0.25, 0.5, 0.75]) == pytest.approx([0.25 ** (1 / 3), 0.5 ** (1 / 3), 0.75 ** (1 / 3)], abs=0.02)
    assert moved.mean(0).abs().max() < 0.02


def test_what_lies_beyond_the_bounds_is_not_pulled_in():
    centre = torch.tensor([[1.4, -0.2, 0.99]])
    ball = Ball.of(centre, Threat(eps=0.1), (-1.0, 1.0), None, ((0,),))
    still = ball.project(centre.clone())
    assert torch.equal(still, centre)
    assert ball.project(centre + 1)[0].tolist() == pytest.approx([1.4, -0.1, 1.0])
    assert ball.project(centre - 1)[0].tolist() == pytest.approx([1.3, -0.3, 0.89])


def test_decibels_are_of_each_clip():
    centre = torch.tensor([[0.5, -0.1, 9.0], [0.02, 0.01, 9.0]])
    free = torch.tensor([[True, True, False], [True, True, False]])  # 9 is padding
    loud = Ball.of(centre, Threat(norm="linf", db=-20.0), None, free, ((0,), (1,)))
    assert loud.eps.flatten().tolist() == pytest.approx([0.05, 0.002])
    strong = Ball.of(centre, Threat(norm="l2", db=-40.0), None, free, ((0,), (1,)))
    assert strong.eps.flatten().tolist() == pytest.approx([0.01 * math.hypot(0.5, 0.1), 0.01 * math.hypot(0.02, 0.01)])
    assert Threat(db=-20.0).times(0.5).db == pytest.approx(-26.02, abs=0.01)


def test_the_nearest_of_a_row_that_lacks_a_modality_is_as_near_as_without_it(model, batch):
    whole = doubled(batch)
    text = {name: x[4:] for name, x in whole.inputs["text"].items()}
    text["items"] = torch.tensor([[-1]] * 4 + [[k] for k in range(4)])  # the first four have none
    there = whole.present | {"text": torch.arange(8) >= 4}
    whole = whole._replace(inputs=whole.inputs | {"text": text}, present=there)
    with torch.no_grad():
        whole = whole._replace(labels={"kind": model(whole).logits["kind"].argmax(1)})
    attack, threats = Cw(steps=40, searches=3, c=10.0, lr=0.05), {m: Threat(norm="l2", eps=1.0) for m in ("text", "image")}
    both, alone = Victim(model, whole, "kind", threats), Victim(model, whole, "kind", {"image": threats["image"]})
    far = [victim.balls["image"].far(attack(victim)["image"])[victim.rows["image"].argsort()][:4] for victim in (both, alone)]
    torch.testing.assert_close(far[0], far[1], rtol=1e-6, atol=1e-9)
    assert (far[1] > 0).any()


def test_pixels_at_zero_and_one_move(model, batch):
    whole = doubled(batch)
    pixels = torch.rand(whole.inputs["image"]["pixels"].shape, generator=torch.Generator().manual_seed(0)).double().round()
    whole = whole._replace(inputs=whole.inputs | {"image": whole.inputs["image"] | {"pixels": pixels}})
    with torch.no_grad():
        whole = whole._replace(labels={"kind": model(whole).logits["kind"].argmax(1)})
    attacked = Victim(model, whole, "kind", {"image": Threat(norm="l2", eps=1.0)})
    moved = (Cw(steps=40, searches=2, c=1000.0, lr=0.3)(attacked)["image"] - pixels).abs()
    found = moved.flatten(1).amax(1) > 0
    assert found.any()
    for bound in (0, 1):  # about half of them would have to move outwards
        assert (moved[found][pixels[found] == bound] > 1e-4).double().mean() > 0.3


# ---------------------------------------------------------------- what is left as it was


@pytest.mark.parametrize("name", ATTACKS)
def test_model_and_generators_are_left_as_they_were(model, batch, name):
    frozen = model.encoders["image"]
    model.zero_grad()  # foolbox leaves some
    model.train()
    frozen.eval()  # as a frozen batch norm is
    modes = {part: part.training for part in model.modules()}
    torch.manual_seed(5)
    random.seed(5)
    before = generators.state()
    try:
        attacked = Victim(model, doubled(batch), "kind", {"image": THREATS["image"]})
        ATTACKS[name](attacked)
        assert modes == {part: part.training for part in model.modules()}
        assert all(torch.equal(x, before[key]) for key, x in generators.state().items())
        assert all(p.grad is None and p.requires_grad for p in model.parameters())
        with pytest.raises(ZeroDivisionError), evaluating(model):
            1 / 0  # noqa: B018
        assert modes == {part: part.training for part in model.modules()}
    finally:
        model.eval()


def test_passes_and_encoders_that_stay_run_once(model, batch):
    runs = dict.fromkeys(model.modalities, 0)

    def count(m):
        def note(*_):
            runs[m] += 1

        return note

    hooks = [model.encoders[m].register_forward_hook(count(m)) for m in runs]
    try:
        attacked = Victim(model, doubled(batch), "kind", {"image": THREATS["image"]})
        Pgd(steps=20)(attacked)
    finally:
        for hook in hooks:
            hook.remove()
    assert attacked.passes == {"forward": 22, "backward": 20}
    assert runs == {"image": 22, "audio": 1, "text": 1}
    black = Victim(model, doubled(batch), "kind", {"image": THREATS["image"]})
    Square(queries=7)(black)
    assert black.passes == {"forward": 9}


# ---------------------------------------------------------------- rows of every shape


def test_several_items_a_row_rows_without_and_rows_unlabelled(model, tmp_path):
    rows = rows_of_three(8)
    rows[0]["image"] = [rows[0]["image"], rows[1]["image"]]
    for k in range(1, 8):
        rows[k]["image"] = [rows[k]["image"]]
    rows[2]["image"] = None
    rows[3]["kind"] = None
    for row in rows:
        row["split"] = "test"
    data = model.config.data.model_copy(update={"manifest": str(write(rows, tmp_path / "m.parquet"))})
    config = model.config.model_copy(update={"data": data})
    feed = feed_of(model, config, ["test"], Parts())[0]
    batch = doubled(next(feed.evaluation(feed.rows("test"))))
    attacked = Victim(model, batch, "kind", {"image": THREATS["image"]})
    assert attacked.attackable.tolist() == [True, True, False, False, True, True, True, True]
    assert sorted(attacked.rows["image"].tolist()) == [0, 0, 1, 3, 4, 5, 6, 7]
    points = Pgd(steps=5)(attacked)
    before, after = attacked.logits(attacked.clean), attacked.logits(points)
    assert torch.equal(before[2], after[2])
    margin = [attacked.goal.loss("margin", x) for x in (before, after)]
    assert margin[1][0] > margin[0][0]
    both = attacked.rows["image"] == 0
    assert ((points["image"][both] - attacked.clean["image"][both]).flatten(1).abs().amax(1) > 0.01).all()
    unmoved = Worst(attacked)
    unmoved.offer(attacked.clean, before)
    assert torch.equal(unmoved.points["image"], attacked.clean["image"])


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("task", "threats", "words"),
    [
        ("kind", {"smell": Threat(eps=1.0)}, "there is no modality 'smell'; the model has text, image, audio"),
        ("kind", {"image": Threat(eps=0.0)}, "threats.image.eps: 0 lets nothing move"),
        ("kind", {"image": Threat(eps=-0.1)}, "-0.1 lets nothing move"),
        ("kind", {"image": Threat()}, "takes eps or db, found neither"),
        ("kind", {"image": Threat(eps=1.0, db=-3.0)}, "takes eps or db, found both"),
        ("kind", {"audio": Threat(db=math.inf)}, "inf is no size"),
        ("knd", {"image": Threat(eps=1.0)}, "there is no task 'knd'; did you mean 'kind'"),
    ],
)
def test_what_cannot_be_attacked_is_refused(model, batch, task, threats, words):
    with pytest.raises(ConfigError) as caught:
        Victim(model, doubled(batch), task, threats)
    assert words in str(caught.value)


def test_settings_and_threats_that_make_no_sense_are_refused(model, batch):
    with pytest.raises(ValueError, match="restarts: 3 from the same place are one"):
        Pgd(restarts=3, start=False)
    attacked = Victim(model, doubled(batch), "kind", {"text": THREATS["text"]})
    with pytest.raises(ConfigError, match="text has no bounds, so that a patch of it could be anything"):
        Patch()(attacked)
    encoded = model.encode(doubled(batch), ["image"])
    cached = doubled(batch)._replace(inputs=doubled(batch).inputs | encoded)
    with pytest.raises(ConfigError, match=r"data\.features: image comes as cached features"):
        Victim(model, cached, "kind", {"image": THREATS["image"]})
    Victim(model, cached, "kind", {"text": THREATS["text"]})  # the others do not need its raw numbers
