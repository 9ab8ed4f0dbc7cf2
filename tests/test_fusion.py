"""Fusions against their formulas, by hand or by another library, each with a control that must fail."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import distributions

from mmkt.fusion.evidential import combine, opinion
from mmkt.layers import gaussian
from mmkt.parts import Parts, settings
from mmkt.types import Encoded

D, NAMES = 8, ("a", "b", "c")
OUTPUTS = {"y": 3, "z": 2}


def make(name: str, modalities: tuple[str, ...] = NAMES, dim: int = D, **more):
    cls = Parts().find("fusion", name)
    spec = {"name": name} | {key: default for key, (_, default) in settings(cls).items()} | more
    torch.manual_seed(0)
    return Parts().build("fusion", spec, dim, modalities, OUTPUTS)


def parts(modalities: tuple[str, ...] = NAMES, rows: int = 6, length: int = 3, dim: int = D, seed: int = 1) -> dict[str, Encoded]:
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for m in modalities:
        mask = torch.arange(length)[None] < torch.randint(1, length + 1, (rows, 1), generator=generator)
        tokens = torch.randn(rows, length, dim, generator=generator) * mask[..., None]
        there = torch.ones(rows, dtype=torch.bool)
        found[m] = Encoded(tokens, mask, torch.randn(rows, dim, generator=generator), there)
    return found


def without(found: dict[str, Encoded], *names: str) -> dict[str, Encoded]:
    return {m: e._replace(present=e.present & (m not in names)) for m, e in found.items()}


def pooled(fusion, found) -> torch.Tensor:
    return fusion.eval()(found).encoded.pooled


def close(one, two, atol: float = 1e-5) -> None:
    torch.testing.assert_close(one, two, atol=atol, rtol=1e-5)


# ---------------------------------------------------------------- sums, maxima, products


def test_sum_is_the_mean_of_what_is_present():
    fusion, found = make("sum"), without(parts(), "b")
    by_hand = (fusion.project["a"](found["a"].pooled) + fusion.project["c"](found["c"].pooled)) / 2
    close(pooled(fusion, found), by_hand)
    assert not torch.allclose(pooled(fusion, found), by_hand * 2 / 3, atol=1e-3)  # zeros over three would be that


@pytest.mark.parametrize(("name", "neutral"), [("max", -math.inf), ("product", 1.0)])
def test_a_missing_one_is_the_neutral_element(name, neutral):
    fusion, found = make(name), parts()
    each = torch.stack([fusion.project[m](e.pooled) for m, e in found.items()])
    each[1] = neutral
    by_hand = each.amax(0) if name == "max" else fusion.norm(each.prod(0))
    close(pooled(fusion, without(found, "b")), by_hand)
    assert not torch.allclose(pooled(fusion, found), by_hand, atol=1e-3)


def test_attention_pool_weighs_the_present_ones():
    fusion, found = make("attention_pool"), without(parts(), "c")
    scores = torch.stack([fusion.score(torch.tanh(fusion.inner(found[m].pooled)))[:, 0] for m in ("a", "b")], 1)
    a = torch.softmax(scores, 1)
    close(pooled(fusion, found), a[:, :1] * found["a"].pooled + a[:, 1:] * found["b"].pooled)
    close(fusion(found).notes["weights"][:, 2], torch.zeros(6))


@pytest.mark.parametrize("pool", ["sum", "mean", "max"])
def test_deepsets_pool_what_is_present(pool):
    fusion, found = make("deepsets", pool=pool), without(parts(), "a")
    h = torch.stack([fusion.phi[m](found[m].pooled) for m in ("b", "c")])
    close(pooled(fusion, found), fusion.rho({"sum": h.sum(0), "mean": h.mean(0), "max": h.amax(0)}[pool]))
    close(pooled(fusion, without(found, "b", "c")), fusion.rho(torch.zeros(6, D)))


def test_gates_of_two_are_tied_and_of_three_are_not():
    """Arevalo et al.: z and 1 − z for two modalities, a sigmoid each for more."""
    two = make("gated", ("a", "b"))
    found = parts(("a", "b"))
    scores = two.gate(torch.cat([e.pooled for e in found.values()], 1))
    z = torch.sigmoid(scores[:, :D] - scores[:, D:])
    h = [torch.tanh(two.transform[m](e.pooled)) for m, e in found.items()]
    close(pooled(two, found), z * h[0] + (1 - z) * h[1])
    three, found = make("gated"), without(parts(), "b")
    z = three(found).notes["gates"]
    x = torch.cat([found["a"].pooled, torch.zeros(6, D), found["c"].pooled], 1)
    close(z[:, 0], torch.sigmoid(three.gate(x))[:, :D])
    assert not torch.allclose(z.sum(1), torch.ones(6, D), atol=1e-2)
    assert not z[:, 1].any()
    convex = make("gated", gates="softmax")(found).notes["gates"]
    close(convex.sum(1), torch.ones(6, D))


def test_film_without_a_condition_is_the_target():
    fusion, found = make("film"), parts()
    gamma, beta = fusion.modulate(torch.cat([found["b"].pooled, found["c"].pooled, torch.ones(6, 2)], 1)).chunk(2, 1)
    close(pooled(fusion, found), (1 + gamma) * found["a"].pooled + beta)
    assert torch.equal(pooled(fusion, without(found, "b", "c")), found["a"].pooled)
    with pytest.raises(ValueError, match="no modality 'd'; allowed: a, b, c"):
        make("film", target="d")


# ---------------------------------------------------------------- products of features


@pytest.mark.parametrize("form", ["full", "low-rank", "vector", "scalar"])
def test_multiplicative_interactions(form):
    fusion, found = make("multiplicative", ("a", "b"), form=form, rank=3), parts(("a", "b"))
    one, two = (e.pooled for e in found.values())
    w = fusion.generate.weight
    if form == "full":
        both = torch.einsum("bi,kij,bj->bk", one, w.view(D, D, D), two)
    elif form == "low-rank":
        both = torch.einsum("bi,ri,krj,bj->bk", one, fusion.reduce.weight, w.view(D, 3, D), two)
    elif form == "vector":
        both = (two @ w.T) * one
    else:
        both = (two @ w[0])[:, None] * one
    u, v, b = fusion.linear.weight[:, :D], fusion.linear.weight[:, D:], fusion.linear.bias
    close(pooled(fusion, found), both + one @ u.T + two @ v.T + b)
    close(pooled(fusion, without(found, "b")), one @ u.T + b)
    close(pooled(fusion, without(found, "a", "b")), b.expand(6, -1))


def test_tensor_is_the_outer_product_and_keeps_lower_orders():
    fusion, found = make("tensor", dim=4), parts(dim=4)
    ones = [np.concatenate([np.ones((6, 1)), e.pooled.numpy()], 1) for e in found.values()]
    outer = np.einsum("bi,bj,bk->bijk", *ones).reshape(6, -1)
    w, b = fusion.linear.weight.detach().numpy(), fusion.linear.bias.detach().numpy()
    np.testing.assert_allclose(pooled(fusion, found).detach().numpy(), outer @ w.T + b, atol=1e-5)
    ones[1][:, 1:] = 0
    lower = np.einsum("bi,bj,bk->bijk", *ones).reshape(6, -1)
    np.testing.assert_allclose(pooled(fusion, without(found, "b")).detach().numpy(), lower @ w.T + b, atol=1e-5)


def test_a_tensor_that_is_too_large_is_refused():
    with pytest.raises(ValueError, match=r"17,?173,?512 entries, the limit is 100,000: set model\.fusion\.width=45 .* lowrank"):
        make("tensor", dim=257)
    assert make("tensor", dim=257, width=45).linear.in_features == 46**3


def test_lowrank_at_full_rank_is_tensor():
    """W[k, i, j] = Σ_r 1 · onehot_r(i) · W[k, r, j], rank D + 1."""
    tensor, found = make("tensor", ("a", "b")), parts(("a", "b"))
    lowrank = make("lowrank", ("a", "b"), rank=D + 1)
    w = tensor.linear.weight.view(D, D + 1, D + 1)
    with torch.no_grad():
        lowrank.factors[0] = torch.eye(D + 1)[:, :, None].expand(-1, -1, D)  # (rank, D + 1, D)
        lowrank.factors[1] = w.permute(1, 2, 0)
        lowrank.weights.fill_(1.0)
        lowrank.bias.copy_(tensor.linear.bias)
    for some in (found, without(found, "a"), without(found, "b"), without(found, "a", "b")):
        close(pooled(lowrank, some), pooled(tensor, some))
    with torch.no_grad():
        lowrank.factors[1, 0].zero_()  # one rank less
    assert not torch.allclose(pooled(lowrank, found), pooled(tensor, found), atol=1e-3)


def test_mlb_mutan_mfb_and_block_by_hand():
    found = parts(("a", "b"))
    one, two = (e.pooled for e in found.values())
    mlb = make("mlb", ("a", "b"))
    close(pooled(mlb, found), mlb.out(torch.tanh(mlb.project["a"](one)) * torch.tanh(mlb.project["b"](two))))
    close(pooled(mlb, without(found, "b")), mlb.out(torch.tanh(mlb.project["a"](one))))
    mutan = make("mutan", ("a", "b"), rank=2)
    p, q = (mutan.core[m](torch.tanh(mutan.project[m](x))) for m, x in (("a", one), ("b", two)))
    close(pooled(mutan, found), mutan.out(p[:, :D] * q[:, :D] + p[:, D:] * q[:, D:]))
    mfb = make("mfb", ("a", "b"), k=3)
    z = (mfb.project["a"](one) * mfb.project["b"](two)).view(6, D, 3).sum(2)
    root = torch.sign(z) * z.abs().sqrt()
    close(pooled(mfb, found), root / root.norm(dim=1, keepdim=True), atol=2e-3)  # the ε under the root
    block = make("block", ("a", "b"), chunks=2, rank=3)
    chunks = []
    for c in range(2):
        half = slice(c * D // 2, (c + 1) * D // 2)
        p, q = (block.project[m](x)[:, half] @ block.core[m][c] + block.bias[m][c] for m, x in (("a", one), ("b", two)))
        chunks.append((p * q).view(6, 3, D // 2).sum(1))
    close(pooled(block, found), block.out(torch.cat(chunks, 1)))
    with pytest.raises(ValueError, match="8 hidden features do not divide into 3 chunks"):
        make("block", chunks=3)


# ---------------------------------------------------------------- tokens


def test_nonlocal_gate_by_hand():
    fusion, found = make("nonlocal_gate", ("a", "b")), parts(("a", "b"))
    y = pooled(fusion, found)
    for row in range(6):
        q = fusion.q(found["a"].tokens[row][found["a"].mask[row]])
        keys = found["b"].tokens[row][found["b"].mask[row]]
        by_hand = q + torch.softmax(q @ fusion.k(keys).T / D**0.5, 1) @ fusion.v(keys)
        close(y[row], by_hand.mean(0))
    alone = fusion(without(found, "b")).encoded.tokens
    close(alone, fusion.q(found["a"].tokens) * found["a"].mask[..., None])


@pytest.mark.parametrize("name", ["flamingo", "mag"])
def test_the_start_is_the_identity_to_the_bit_and_training_leaves_it(name):
    fusion, found = make(name), parts()
    start = fusion.eval()(found).encoded
    assert torch.equal(start.pooled, found["a"].pooled)
    assert torch.equal(start.tokens, found["a"].tokens)
    optimizer = torch.optim.SGD(fusion.parameters(), 0.5)
    for _ in range(2):
        optimizer.zero_grad()
        fusion(found).encoded.pooled.sum().backward()
        optimizer.step()
    assert not torch.allclose(pooled(fusion, found), found["a"].pooled, atol=1e-3)
    assert torch.equal(pooled(fusion, without(found, "b", "c")), found["a"].pooled)  # for ever without the others


def test_mag_by_hand():
    fusion, found = make("mag", ("a", "b"), beta=0.5), parts(("a", "b"))
    with torch.no_grad():
        fusion.shift["b"].normal_()
        fusion.bias.normal_()
    z, v = found["a"].pooled, found["b"].pooled
    h = torch.relu(fusion.gate["b"](torch.cat([z, v], 1))) * (v @ fusion.shift["b"].T) + fusion.bias
    scale = (0.5 * z.norm(dim=1) / h.norm(dim=1)).clamp(max=1)
    close(pooled(fusion, found), z + scale[:, None] * h, atol=1e-4)


def test_bottleneck_lets_modalities_meet_in_the_bottlenecks_alone():
    """In the first layer a modality sees nothing of another; in the second it does."""
    found = parts()
    other = found | {"b": parts(seed=9)["b"]}

    def own(layers):
        fusion = make("bottleneck", layers=layers).eval()
        seen = []
        fusion.norm.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
        for some in (found, other):
            fusion(some)
        return torch.equal(seen[0], seen[3])  # CLS of the modality a

    assert own(1)
    assert not own(2)


def test_crossmodal_drops_pairs_and_scales_the_others():
    """With c missing, X_{b→a} counts twice: what it would be if c had been dropped and its slot left empty."""
    fusion, found = make("crossmodal", layers=1).eval(), parts()
    slots = []
    fusion.own["a"][0].norm1.register_forward_hook(lambda module, inputs, output: slots.append(inputs[0]))
    fusion(found)
    fusion(without(found, "c"))
    fusion(without(found, "b", "c"))
    whole, dropped, alone = slots
    close(dropped[..., :D], 2 * whole[..., :D])
    assert not dropped[..., D:].any()
    close(alone, torch.cat([found["a"].tokens] * 2, 2))


def test_perceiver_and_merged_read_modalities_apart():
    """Without type vectors two modalities with the same tokens could be exchanged unseen."""
    for name in ("perceiver", "merged"):
        fusion, found = make(name), parts()
        turned = found | {"a": found["b"], "b": found["a"]}
        assert not torch.allclose(pooled(fusion, found), pooled(fusion, turned), atol=1e-5)
        with torch.no_grad():
            for kind in fusion.kind.values():
                kind.zero_()
        close(pooled(fusion, found), pooled(fusion, turned))


# ---------------------------------------------------------------- logits


@pytest.mark.parametrize("weights", ["mean", "learned", "stacked"])
def test_late_fusion(weights):
    fusion, found = make("late", weights=weights), without(parts(), "b")
    with torch.no_grad():
        for parameter in fusion.parameters():
            parameter.normal_()
    logits = fusion(found).logits
    each = {m: fusion.each.of[m](found[m].pooled) for m in ("a", "c")}
    if weights == "stacked":
        one = torch.ones(6, 1)
        y = sum(fusion.stack[m](torch.cat([x, one], 1)) for m, x in each.items()) + fusion.bias
        close(logits["y"], y[:, :3])
        return
    w = {m: fusion.log_weights[m].exp() if weights == "learned" else torch.ones(2) for m in each}
    for task, place, part in (("y", 0, slice(0, 3)), ("z", 1, slice(3, 5))):
        total = sum(w[m][place] * x[:, part] for m, x in each.items())
        close(logits[task], total / sum(x[place] for x in w.values()))
    assert fusion(found).notes["logits.y"].shape == (6, 3, 3)


def test_dempsters_rule_on_a_worked_example():
    """Two opinions on {1, 2}: b = (0.6, 0.1), u = 0.3 and b = (0.2, 0.5), u = 0.3.

    C = 0.6·0.5 + 0.1·0.2 = 0.32; b_1 = (0.12 + 0.18 + 0.06) / 0.68, b_2 = (0.05 + 0.03 + 0.15) / 0.68, u = 0.09 / 0.68.
    """
    b, u = combine((torch.tensor([[0.6, 0.1]]), torch.tensor([[0.3]])), (torch.tensor([[0.2, 0.5]]), torch.tensor([[0.3]])))
    close(b, torch.tensor([[0.36, 0.23]]) / 0.68)
    close(u, torch.tensor([[0.09]]) / 0.68)
    neutral = combine((b, u), (torch.zeros(1, 2), torch.ones(1, 1)))
    close(neutral[0], b)
    close(neutral[1], u)
    assert not torch.allclose(b, torch.tensor([[0.4, 0.3]]), atol=0.01)  # the mean of the two


def test_evidential_combines_masses_as_dempster_did():
    """Against the rule over sets of classes: masses on singletons and on the whole frame, all pairs, conflict dropped."""
    fusion, found = make("evidential"), without(parts(), "b")
    out = fusion.eval()(found)
    for row in range(6):
        masses = []
        for m in ("a", "c"):
            e = F.softplus(fusion.each.of[m](found[m].pooled[row])[:3]).detach()
            b, u = opinion(e[None])
            masses.append({frozenset([k]): float(b[0, k]) for k in range(3)} | {frozenset(range(3)): float(u)})
        total: dict = {}
        for (one, p), (two, q) in itertools.product(masses[0].items(), masses[1].items()):
            if one & two:
                total[one & two] = total.get(one & two, 0.0) + p * q
        norm = sum(total.values())
        expected = [(total[frozenset([k])] + total[frozenset(range(3))] / 3) / norm for k in range(3)]
        close(out.logits["y"][row].softmax(0), torch.tensor(expected))
        assert float(out.notes["uncertainty.y"][row, 0].detach()) == pytest.approx(total[frozenset(range(3))] / norm, abs=1e-5)
    nothing = fusion(without(found, "a", "c"))
    close(nothing.logits["y"].softmax(1), torch.full((6, 3), 1 / 3))
    close(nothing.notes["uncertainty.y"], torch.ones(6, 4))


def test_dynamic_weighs_by_free_energy_without_gradient():
    fusion, found = make("dynamic", scale=0.2), without(parts(), "b")
    each = {m: fusion.each.of[m](found[m].pooled)[:, :3] for m in ("a", "c")}
    logits = fusion(found).logits["y"]
    close(logits, sum(0.2 * x.exp().sum(1, keepdim=True).log() * x for x in each.values()))
    logits.sum().backward()
    w = 0.2 * each["a"].logsumexp(1).detach()
    close(fusion.each.of["a"].bias.grad[:3], w.sum().expand(3), atol=1e-4)


# ---------------------------------------------------------------- latents


def test_poe_is_the_closed_form_product_of_gaussians():
    """On a grid: the product of the densities, normalised, has that mean and variance."""
    fusion, found = make("poe"), without(parts(), "b")
    out = fusion.eval()(found)
    mean, variance, _ = fusion.experts(found)
    z = torch.linspace(-12, 12, 4801, dtype=torch.float64)
    for row, d in ((0, 0), (3, 5)):
        density = distributions.Normal(0.0, 1.0).log_prob(z)
        for m in (0, 2):
            density = density + distributions.Normal(mean[row, m, d].double(), variance[row, m, d].double().sqrt()).log_prob(z)
        p = torch.softmax(density, 0)
        mu = (p * z).sum()
        assert float(out.encoded.pooled[row, d].detach()) == pytest.approx(float(mu.detach()), abs=1e-5)
        assert float(out.notes["variance"][row, d].detach()) == pytest.approx(float((p * (z - mu) ** 2).sum().detach()), abs=1e-5)
    everyone = gaussian.product(mean, variance, torch.ones(6, 3, dtype=torch.bool))[0]
    assert not torch.allclose(everyone, out.encoded.pooled, atol=1e-3)


def test_divergence_is_torchs():
    mean, variance = torch.randn(4, 5), torch.rand(4, 5) + 0.1
    normal = distributions.Normal(mean, variance.sqrt())
    close(gaussian.divergence(mean, variance), distributions.kl_divergence(normal, distributions.Normal(0.0, 1.0)).sum(1))


def test_moe_and_mopoe_are_means_over_experts_and_over_subsets():
    found = without(parts(), "b")
    moe = make("moe")
    mean, variance, _ = moe.experts(found)
    close(pooled(moe, found), (mean[:, 0] + mean[:, 2]) / 2)
    mopoe = make("mopoe")
    mean, variance, present = mopoe.experts(found)
    subsets = [[0], [2], [0, 2]]
    each = []
    for s in subsets:
        total = 1 + sum(1 / variance[:, m] for m in s)
        each.append(sum(mean[:, m] / variance[:, m] for m in s) / total)
    close(pooled(mopoe, found), sum(each) / 3)
    close(pooled(mopoe, without(found, "a", "c")), torch.zeros(6, D))
    with pytest.raises(ValueError, match="8 modalities at the most, found 9"):
        make("mopoe", tuple("abcdefghi"))


@pytest.mark.parametrize(("name", "means"), [("poe", 1), ("moe", 2), ("mopoe", 3)])
def test_draws_have_the_mixtures_mean(name, means):
    """And come from all of its parts: 20,000 draws of one row."""
    fusion = make(name).train()
    row = {m: Encoded(*(x[[0]].expand(20_000, *x.shape[1:]) for x in e)) for m, e in without(parts(), "b").items()}
    drawn = fusion(row).encoded.pooled
    close(drawn.mean(0), pooled(fusion, row)[0], atol=0.05)
    spread = drawn.var(0)
    if name == "poe":
        close(spread, fusion(row).notes["variance"][0], atol=0.05)
    else:
        mean, variance, _ = fusion.experts(row)
        assert (spread > 0.9 * variance[0, 0].minimum(variance[0, 2]) * (1 if name == "moe" else 0.4)).all()
    assert torch.equal(make(name, sample=False).train()(row).encoded.pooled, make(name, sample=False).eval()(row).encoded.pooled)


# ---------------------------------------------------------------- routers and states


def test_sparse_moe_keeps_the_best_experts():
    fusion, found = make("sparse_moe", experts=5, k=2), without(parts(), "b")
    out = fusion.eval()(found)
    g = out.notes["gates"]
    assert ((g > 0).sum(1) == 2).all()
    scores = -sum((found[m].pooled[:, None] - fusion.centres[k]).norm(dim=2) for k, m in ((0, "a"), (2, "c"))) / 2
    best = scores.topk(2, 1)
    close(g.gather(1, best.indices), best.values.softmax(1))
    x = torch.cat([found["a"].pooled, torch.zeros(6, D), found["c"].pooled, torch.tensor([1.0, 0, 1]).expand(6, -1)], 1)
    each = [F.gelu(x @ fusion.inner[e] + fusion.inner_bias[e]) @ fusion.outer[e] + fusion.outer_bias[e] for e in range(5)]
    close(out.encoded.pooled, sum(g[:, [e]] * each[e] for e in range(5)))
    load = g.sum(0)
    close(out.terms["balance"], (load.std(correction=0) / load.mean()) ** 2)
    with pytest.raises(ValueError, match="k=6 experts of 5"):
        make("sparse_moe", experts=5, k=6)


def test_sequential_skips_what_is_missing():
    fusion, found = make("sequential"), without(parts(), "b")
    s = fusion.start.expand(6, -1)
    for m in ("a", "c"):
        s = fusion.step[m](torch.cat([s, found[m].pooled], 1))
    close(pooled(fusion, found), s)
    close(pooled(fusion, without(found, "a", "c")), fusion.start.expand(6, -1))


def test_dynamic_gate_chooses_among_what_is_present():
    fusion, found = make("dynamic_gate", costs={"a": 1.0, "b": 5.0, "c": 2.0}), without(parts(), "b")
    for train in (True, False):
        out = fusion.train(train)(found)
        choice = out.notes["choice"]
        close(choice.sum(1), torch.ones(6))
        assert set(choice.argmax(1).tolist()) <= {0, 2, 4}  # a, c, ac of a, b, c, ab, ac, bc, abc
        close(out.notes["cost"], torch.tensor([1.0, 5, 2, 6, 3, 7, 8])[choice.argmax(1)])
        for row, k in enumerate(choice.argmax(1).tolist()):
            x = torch.cat([found[m].pooled[[row]] for m in {0: "a", 2: "c", 4: "ac"}[k]], 1)
            close(out.encoded.pooled[[row]], fusion.experts[k](x))
    with pytest.raises(ValueError, match="costs names no modality 'd'"):
        make("dynamic_gate", costs={"d": 1.0})


def test_unimodal_reads_one():
    fusion, found = make("unimodal", modality="b"), parts()
    other = found | {"a": parts(seed=5)["a"]}
    assert torch.equal(pooled(fusion, found), pooled(fusion, other))
    assert not torch.equal(pooled(fusion, found), pooled(fusion, found | {"b": parts(seed=5)["b"]}))


# ---------------------------------------------------------------- what is read


@pytest.mark.parametrize("name", list(Parts().files("fusion")))
def test_tokens_are_read_at_the_level_of_tokens_alone(name):
    """Where features are cached, all others are given summaries alone."""
    cls = Parts().find("fusion", name)
    names = NAMES[:2] if cls.arity == "two" else NAMES
    fusion = make(name, names).eval()
    with torch.no_grad():  # some are the identity until they have trained
        for p in fusion.parameters():
            p.add_(0.1 * torch.randn_like(p))
    found = parts(names)
    bare = {m: Encoded.of(x.pooled) for m, x in found.items()}
    torch.manual_seed(0)
    one = fusion(found)
    torch.manual_seed(0)
    two = fusion(bare)
    same = all(map(torch.equal, [*one.encoded, *one.logits.values()], [*two.encoded, *two.logits.values()]))
    assert same == (cls.level != "token")
