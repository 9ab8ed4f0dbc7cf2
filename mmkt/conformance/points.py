"""The points that a fusion is held to, in one process. Each raises ``Broken``, or returns what it has to remark."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils import _pytree as pytree
from torch.utils.flop_counter import FlopCounterMode

from mmkt.conformance.cases import CLASSES, NAMES, Broken, Case, pick, rows, same, together
from mmkt.types import Encoded

LEVELS, ARITIES = ("pooled", "token", "logit", "latent"), ("any", "two", "two+")


def gradients(case: Case) -> None:
    """1. Every parameter is registered and receives a gradient; weights come back to the bit."""
    whole = case.build().train()
    known = {id(p) for p in whole.parameters()}
    largest = dict.fromkeys((name for name, _ in whole.named_parameters()), 0.0)
    for seed in range(12):  # a gate may leave an expert out for some batches
        torch.manual_seed(seed)
        fused, logits = whole.fuse(rows(tuple(whole.space.modalities), 16, seed), 16)
        loss = torch.stack([*((x * torch.randn_like(x)).sum() for x in logits.values()), *fused.terms.values()]).sum()
        for leaf in _leaves(loss):
            if id(leaf) not in known:
                raise Broken(f"it reads a tensor {tuple(leaf.shape)} that trains but is no registered parameter")
        whole.zero_grad()
        loss.backward()
        for name, p in whole.named_parameters():
            if p.grad is None:
                raise Broken(f"{name} receives no gradient")
            if not p.grad.isfinite().all():
                raise Broken(f"the gradient of {name} is not finite")
            largest[name] = max(largest[name], p.grad.abs().max().item() if p.numel() else 1.0)
        if all(value for name, value in largest.items() if not name.startswith("space.")):
            break
    for name, value in largest.items():
        if not value and not name.startswith("space."):  # a fusion may read no stand-in, or leave modalities unread
            raise Broken(f"the gradient of {name} is always zero")
    other = case.build(seed=1).eval()
    other.load_state_dict(whole.state_dict())
    parts = rows(tuple(whole.space.modalities))
    one, two = (together(*w.fuse(parts, 8)) for w in (whole.eval(), other))
    if not torch.equal(one, two):
        raise Broken("with its state_dict loaded, another one answers differently")


def _leaves(loss: Tensor) -> Iterator[Tensor]:
    """Leaf tensors that a loss depends on and that would receive its gradient."""
    todo: list[Any] = [loss.grad_fn]
    seen = set()
    while todo:
        node = todo.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            yield node.variable
        todo += [parent for parent, _ in node.next_functions]


def rows_apart(case: Case) -> None:
    """2. A batch of one works, permuting the rows permutes the answers, no row sees another."""
    whole = case.build().eval()
    names = tuple(whole.space.modalities)
    parts = rows(names)
    answer = together(*whole.fuse(parts, 8))
    order = torch.tensor([3, 1, 5, 0, 7, 2, 4, 6])
    same(answer[order], together(*whole.fuse(pick(parts, order), 8)), "with the rows in another order")
    for k in range(8):
        same(answer[[k]], together(*whole.fuse(pick(parts, [k]), 1)), f"row {k} in a batch of one")
    leaves = pytree.tree_map(lambda x: x.clone().requires_grad_() if x.is_floating_point() else x, parts)
    together(*whole.fuse(leaves, 8))[2].sum().backward()
    others = [k for k in range(8) if k != 2]
    for m, e in leaves.items():
        for x in (e.tokens, e.pooled):
            if x.grad is not None and x.grad[others].any():
                raise Broken(f"the answer for one row depends on another row's {m}")
    whole.train()
    fused, logits = whole.fuse(pick(parts, [0]), 1)
    if not together(fused, logits).isfinite().all():
        raise Broken("training on a batch of one, its answer is not finite")


def order(case: Case) -> str | None:
    """3. The order of the modalities matters only where it is declared."""
    if case.number() < 2:
        return "one modality has no order"
    whole, other = case.build().eval(), case.build(reverse=True).eval()
    parts = rows(tuple(whole.space.modalities))
    answer = together(*whole.fuse(parts, 8))
    try:
        other.load_state_dict(whole.state_dict())
    except RuntimeError as error:
        if case.fact("symmetric"):
            raise Broken(f"it declares symmetric, but its weights don't fit the modalities in another order: {error}") from None
        return None
    turned = together(*other.fuse(dict(reversed(parts.items())), 8))
    if case.fact("symmetric"):
        same(answer, turned, "it declares symmetric, but with the modalities in another order")
    elif torch.allclose(answer, turned, atol=1e-5) and not case.about:
        raise Broken("it declares that the order of the modalities matters, but its answer does not change with it")
    return None


def padding(case: Case) -> None:
    """4. What is in padding, and how much of it there is, changes nothing; NaN and inf there change nothing."""
    whole = case.build().eval()
    names = tuple(whole.space.modalities)
    clean = rows(names)
    answer = together(*whole.fuse(clean, 8))
    dirty = {}
    for m, e in clean.items():
        tokens = e.tokens.masked_fill(~e.mask[..., None], float("nan"))
        tokens = torch.where(e.present[:, None, None], tokens, torch.tensor(float("inf")))
        dirty[m] = e._replace(tokens=tokens, pooled=e.pooled.masked_fill(~e.present[:, None], float("nan")))
    if not torch.equal(together(*whole.fuse(dirty, 8)), answer):
        raise Broken("NaN in padding or in a missing modality reaches the answer")
    parts = whole.space(clean, 8)
    filled = {
        m: e._replace(tokens=torch.where(e.mask[..., None], e.tokens, torch.randn_like(e.tokens))) for m, e in parts.items()
    }
    same(answer, together(*whole.answer(filled)), "with other tokens in padding")
    longer = {m: _padded(e) for m, e in parts.items()}
    same(answer, together(*whole.answer(longer)), "with more padding")
    fused, _ = whole.answer(parts)
    tokens, mask = fused.encoded.tokens, fused.encoded.mask
    if not mask.any(1).all():
        raise Broken("a row of its answer has no token: mask needs one True a row")
    if tokens.masked_select(~mask[..., None]).any():
        raise Broken("its answer's tokens are not zero where their mask is False")


def _padded(e: Encoded) -> Encoded:
    more = torch.zeros(e.mask.shape[0], 2, dtype=torch.bool)
    return e._replace(
        tokens=torch.cat([e.tokens, torch.zeros(*more.shape, e.tokens.shape[2])], 1), mask=torch.cat([e.mask, more], 1)
    )


def missing(case: Case) -> None:
    """5. Missing is absent; the stand-in is read where declared, and only there; nothing present gives a finite answer."""
    whole = case.build().eval()
    names = tuple(whole.space.modalities)
    parts, last = rows(names), names[-1]
    nowhere = torch.zeros(8, dtype=torch.bool)
    without = {m: e for m, e in parts.items() if m != last}
    absent = together(*whole.fuse(without, 8))
    if not torch.equal(absent, together(*whole.fuse(parts | {last: Encoded.of(parts[last].pooled, nowhere)}, 8))):
        raise Broken("a modality missing from every row and one that is not in the batch give different bits")
    answer = together(*whole.fuse(parts, 8))
    for k in range(8):
        there = {m: e for m, e in pick(parts, [k]).items() if e.present.item()}
        same(answer[[k]], together(*whole.fuse(there, 1)), "a row that lacks a modality, alone and among rows that have it")
    shared = whole.space(parts, 8)
    moved = {}
    for m, e in shared.items():
        tokens = torch.where(e.present[:, None, None], e.tokens, torch.randn_like(e.tokens) * e.mask[..., None])
        moved[m] = e._replace(tokens=tokens, pooled=torch.where(e.present[:, None], e.pooled, torch.randn_like(e.pooled)))
    other = together(*whole.answer(moved))
    if case.fact("missing") == "exact":
        same(answer, other, "it declares exact, but with another vector in place of what is missing")
    elif torch.allclose(answer, other, atol=1e-6):
        raise Broken(
            "it declares to read the learned stand-in of what is missing, but another one changes nothing: silent zeros?"
        )
    leaves = pytree.tree_map(lambda x: x.clone().requires_grad_() if x.is_floating_point() else x, parts)
    nothing = together(*whole.fuse({m: e._replace(present=nowhere) for m, e in leaves.items()}, 8))
    nothing.sum().backward()
    grads = [p.grad for p in whole.parameters() if p.grad is not None]
    if not nothing.isfinite().all() or not all(g.isfinite().all() for g in grads):
        raise Broken("with nothing present the answer or a gradient is not finite")


def precision(case: Case) -> None:
    """6. bf16 autocast and torch.compile (aot_eager, fullgraph) give the eager answer; two modalities and one
    layer stand for more, which compile alike and for long.
    """
    small = replace(case, spec=dict(case.spec) | {"layers": 1}) if "layers" in case.spec else case
    whole = small.build(2).eval()
    parts = pytree.tree_map(lambda x: x.detach(), whole.space(rows(tuple(whole.space.modalities)), 8))
    with torch.no_grad():
        answer = together(*whole.answer(parts))
        with torch.autocast("cpu", torch.bfloat16):
            half = together(*whole.answer(parts))
        same(answer, half, "under bf16 autocast", 0.1)
        compiled = torch.compile(whole.fusion, backend="aot_eager", fullgraph=True)
        try:
            fused = compiled(parts)
        except torch._dynamo.exc.TorchDynamoException as error:
            raise Broken(f"torch.compile needs one whole graph: {str(error).strip().splitlines()[0]}") from None
        plain = whole.fusion(parts)
        same(plain.encoded.pooled.float(), fused.encoded.pooled.float(), "compiled")
        for task, x in plain.logits.items():
            same(x, fused.logits[task], f"compiled, of {task}")


def declared(case: Case) -> str | None:
    """8. Its facts are true: level, arity, parameters, FLOPs, identity at the start."""
    cls, remarks = case.cls, []
    for name, allowed in (("level", LEVELS), ("arity", ARITIES), ("missing", ("exact", "stand-in"))):
        if getattr(cls, name, None) not in allowed:
            raise Broken(f"{name} is {getattr(cls, name, None)!r}; allowed: {', '.join(map(repr, allowed))}")
    for name in ("symmetric", "interacts", "cost"):
        case.fact(name)
    for number, dim, length in ((case.number(), 16, 5), (2, 8, 3)):
        whole = case.build(number, dim)
        fusion, names = whole.fusion.eval(), NAMES[:number]
        known = {"D": dim, "M": number, "L": length, "C": sum(CLASSES.values()), "T": len(CLASSES), **case.spec}
        parts = {m: _whole(length, dim) for m in names}
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            fusion(parts)
        real = {"params": sum(p.numel() for p in fusion.parameters()), "flops": counter.get_total_flops()}
        for fact, value in real.items():
            formula = getattr(cls, fact, None)
            if formula is None:
                remarks.append(f"it declares no {fact}")
            elif formula_value(formula, known) != value:
                raise Broken(
                    f"{fact} = {formula!r} is {formula_value(formula, known):,} with D = {dim}, M = {number}, L = {length}; "
                    f"it has {value:,}"
                )
    whole = case.build()
    names = tuple(whole.space.modalities)
    parts = whole.space(rows(names), 8)
    start = case.fusion(names).eval()(parts).encoded
    first = parts[names[0]]
    is_identity = torch.equal(start.pooled, first.pooled) and torch.equal(start.tokens, first.tokens)
    if is_identity != cls.identity_at_start:
        raise Broken(
            f"identity_at_start is {cls.identity_at_start}, but before training it is {'' if is_identity else 'not '}one"
        )
    return "; ".join(dict.fromkeys(remarks)) or None


def _whole(length: int, dim: int) -> Encoded:
    """One row, all there."""
    there = torch.ones(1, length, dtype=torch.bool)
    return Encoded(torch.randn(1, length, dim), there, torch.randn(1, dim), there[:, 0])


def formula_value(formula: str, known: dict[str, Any]) -> int:
    """A declared formula's value: it is an expression of the fusion's own class."""
    try:
        return eval(formula, {"__builtins__": {}}, known)
    except Exception as error:
        raise Broken(f"the formula {formula!r} can't be evaluated with {', '.join(known)}: {error}") from None


POINTS: dict[int, Callable[[Case], str | None]] = {
    1: gradients,
    2: rows_apart,
    3: order,
    4: padding,
    5: missing,
    6: precision,
    8: declared,
}
