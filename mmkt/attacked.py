"""A model under attack: which attacks on which modalities, how far, and what it answers then."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from mmkt import distributed
from mmkt.experiment import Attacked
from mmkt.feed import Feed
from mmkt.model import Model
from mmkt.modes import evaluating
from mmkt.parts import ConfigError, Parts, nearest
from mmkt.robust_accuracy import JOINT, Outcome, Trial
from mmkt.threat import USUAL, Threat
from mmkt.types import Attack, Batch
from mmkt.victim import RAW, Victim, refuse

ALL = {  # a threat that allows nearly everything, by an encoder's kind
    "image": Threat(norm="linf", eps=1.0),
    "audio": Threat(norm="linf", eps=2.0),
    "text": Threat(norm="l2", db=20.0),
    "features": Threat(norm="l2", db=20.0),
}


class Siege(NamedTuple):
    """What is attacked, how, and with what."""

    task: str
    rows: np.ndarray
    surfaces: Mapping[str, Mapping[str, Threat]]  # a modality's name, or ``joint`` → what may be done to which
    attacks: Mapping[str, Attack]
    curve: Sequence[float]  # factors on ε
    along: str  # the attack that the curve is drawn with
    examples: int
    seed: int
    source: Model | None = None  # whose gradients are used; None: the model's own


class Example(NamedTuple):
    """A row that an attack turned."""

    row: int
    trial: Trial
    before: Mapping[str, Tensor]  # raw numbers of its first item, by modality
    after: Mapping[str, Tensor]
    far: Mapping[str, float]
    said: tuple[int, int]  # class before and after


class Found(NamedTuple):
    """Of all attacks."""

    outcomes: Mapping[Trial, Outcome] = MappingProxyType({})
    examples: Sequence[Example] = ()


def plan(model: Model, feed: Feed, rows: np.ndarray, settings: Attacked, seed: int, parts: Parts) -> Siege:
    """What the settings ask for, with everything refused that cannot be.

    Raises:
        ConfigError: it cannot.
    """
    where = "evaluate.robustness"
    known = [task for task, head in model.heads.items() if "classes" in head.vocabulary]
    if settings.task is None and not known:
        raise ConfigError([(f"{where}.task", "attacks make a classifier say another class, and the model has none")])
    task = settings.task or known[0]
    kinds = {m: encoder.kind for m, encoder in model.encoders.items()}
    usual = {m: Threat(**USUAL[kind]) for m, kind in kinds.items() if kind in RAW}
    usual = {m: threat for m, threat in usual.items() if kinds[m] != "text" or hasattr(model.encoders[m], "embed")}
    threats = settings.threats or usual
    try:
        refuse(model, task, threats)
    except ConfigError as error:
        raise ConfigError([(f"{where}.{path}", words) for path, words in error.problems]) from error
    held = sorted(set(threats) & set(feed.features))
    if held:
        words = f"{held[0]} comes as cached features, so that nothing reaches its raw numbers: say data.features=null"
        raise ConfigError([("data.features", words)])
    surfaces: dict[str, dict[str, Threat]] = {m: {m: threat} for m, threat in threats.items()}
    if settings.joint and len(threats) > 1:
        surfaces[JOINT] = dict(threats)
    attacks = {name: parts.build("attacks", spec) for name, spec in settings.attacks.items()}
    if settings.curve and settings.along not in attacks:
        words = f"there is no attack {settings.along!r}{nearest(settings.along, attacks)}; allowed: {', '.join(attacks)}"
        raise ConfigError([(f"{where}.along", words)])
    for factor in settings.curve:
        if factor <= 0:
            raise ConfigError([(f"{where}.curve", f"{factor:g} times ε lets nothing move: give factors above 0")])
    labelled = rows[feed.labels[task][1].numpy()[rows]]
    some = np.sort(np.random.default_rng(seed).permutation(labelled)[: settings.rows])
    return Siege(task, some, surfaces, attacks, settings.curve, settings.along, settings.examples, seed)


def trials(siege: Siege, model: Model) -> Iterator[tuple[Trial, Mapping[str, Threat], Attack]]:
    """Every attack on every surface within its threats; then along the curve."""
    for surface, threats in siege.surfaces.items():
        for name, attack in siege.attacks.items():
            if fits(attack, threats, model):
                yield Trial(surface, name), threats, attack
        drawn = siege.attacks.get(siege.along)
        if not siege.curve or drawn is None or not fits(drawn, threats, model):
            continue
        for factor in siege.curve:
            if factor != 1:
                yield Trial(surface, siege.along, factor), {m: threat.times(factor) for m, threat in threats.items()}, drawn
        yield Trial(surface, siege.along, np.inf), {m: ALL[model.encoders[m].kind] for m in threats}, drawn


def fits(attack: Attack, threats: Mapping[str, Threat], model: Model) -> bool:
    """Whether an attack can keep to the norms, and needs no bounds where there are none."""
    bounded = all(model.encoders[m].bounds is not None for m in threats)
    return all(threat.norm in attack.norms for threat in threats.values()) and (bounded or not attack.bounds)


def lay(model: Model, feed: Feed, siege: Siege, device: torch.device, advance: Callable[[int], object] = id) -> Found:
    """Attack every row in every way.

    Args:
        model: on its device, not sharded; left as it was.
        feed: of the rows.
        siege: what is attacked, how.
        device: of the model.
        advance: is told how many rows of this process are done with one of the ways.

    Returns:
        On every process, the whole.
    """
    every = list(trials(siege, model))
    found: list[tuple[np.ndarray, dict[Trial, _Part]]] = []
    examples: list[Example] = []
    for batch in feed.evaluation(siege.rows):
        batch = batch.to(device)
        own: dict[Trial, _Part] = {}
        with evaluating(model), torch.no_grad():
            logits = model(batch).logits[siege.task]
        labels = batch.labels[siege.task]
        own[Trial("", "")] = _Part(logits.argmax(1) == labels, logits.argmax(1), {})
        for trial, threats, attack in every:
            own[trial] = _tried(model, batch, siege, trial, threats, attack, own[Trial("", "")], examples)
            advance(batch.size)
        found.append((batch.row.cpu().numpy(), own))
    gathered = [part for parts in distributed.everyone(found) for part in parts]
    return Found(_together(gathered), [x for some in distributed.everyone(examples) for x in some])


class _Part(NamedTuple):
    """Of a batch's rows under one attack."""

    right: Tensor  # (B,) bool
    said: Tensor  # (B,) long
    far: dict[str, Tensor]  # (B,) by modality


def _tried(
    model: Model,
    batch: Batch,
    siege: Siege,
    trial: Trial,
    threats: Mapping[str, Threat],
    attack: Attack,
    clean: _Part,
    examples: list[Example],
) -> _Part:
    victim = Victim(model, batch, siege.task, threats, seed=siege.seed)
    if not victim.modalities:  # no row of this batch has any of them
        return _Part(clean.right, clean.said, {})
    points = attack(victim)
    said = victim.logits(points).argmax(1)
    right = clean.right & (said == victim.goal.labels)  # an attacker leaves alone what is wrong already
    far = {}
    for m, ball in victim.balls.items():
        own = ball._replace(norm="l2") if not attack.keeps else ball
        zero = torch.zeros(batch.size, dtype=ball.centre.dtype, device=ball.centre.device)
        far[m] = zero.scatter_reduce(0, victim.rows[m], own.far(points[m]), "amax")
    shown = sum(example.trial.surface == trial.surface for example in examples)
    turned = (clean.right & ~right).nonzero().flatten().tolist()
    if trial.factor == 1 and attack.keeps and shown < siege.examples and turned:
        examples.append(_example(victim, points, trial, turned[0], far, (int(clean.said[turned[0]]), int(said[turned[0]]))))
    return _Part(right, said, far)


def _example(
    victim: Victim, points: Mapping[str, Tensor], trial: Trial, k: int, far: Mapping[str, Tensor], said: tuple[int, int]
) -> Example:
    before, after = {}, {}
    for m, ball in victim.balls.items():
        items = (victim.rows[m] == k).nonzero().flatten()
        if not victim.batch.present[m][k]:
            continue
        extent = tuple(map(slice, ball.extents()[int(items[0])]))
        before[m], after[m] = (x[items[0]][extent].float().cpu() for x in (ball.centre, points[m]))
    return Example(int(victim.batch.row[k]), trial, before, after, {m: float(x[k]) for m, x in far.items()}, said)


def _together(parts: Sequence[tuple[np.ndarray, dict[Trial, Any]]]) -> dict[Trial, Outcome]:
    order = np.argsort(np.concatenate([rows for rows, _ in parts]), kind="stable")
    found = {}
    for trial in parts[0][1]:
        some = [own[trial] for _, own in parts]
        names = list(dict.fromkeys(m for part in some for m in part.far))
        size = [len(part.right) for part in some]
        far = {
            m: np.concatenate([part.far[m].cpu().numpy() if m in part.far else np.zeros(n) for part, n in zip(some, size)])[order]
            for m in names
        }
        right, said = (torch.cat([getattr(part, key) for part in some]).cpu().numpy()[order] for key in ("right", "said"))
        found[trial] = Outcome(right, said, far)
    return found
