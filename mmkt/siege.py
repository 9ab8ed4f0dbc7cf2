"""Which attacks a model is put to: on which of its inputs, how far; with everything refused that cannot be."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from mmkt import distributed
from mmkt.experiment import Attacked
from mmkt.feed import Feed
from mmkt.model import Model
from mmkt.parts import ConfigError, Parts, nearest
from mmkt.raw import RAW, refuse
from mmkt.robust_accuracy import JOINT, Trial
from mmkt.threat import USUAL, Threat
from mmkt.types import Attack, Moves

ALL = {  # a threat that allows nearly everything, by an encoder's kind
    "image": Threat(norm="linf", eps=1.0),
    "audio": Threat(norm="linf", eps=2.0),
    "text": Threat(norm="l2", db=20.0),
    "features": Threat(norm="l2", db=20.0),
}


class Surface(NamedTuple):
    """What may be changed: numbers within threats; or symbols, of which an attack's own settings say how many."""

    moves: tuple[Moves, ...]
    threats: Mapping[str, Threat | None]


class Siege(NamedTuple):
    """What is attacked, how, and with what."""

    task: str
    rows: np.ndarray
    surfaces: Mapping[str, Surface]  # by name: a modality, ``joint``, ``text edits``, ``presence``
    attacks: Mapping[str, Attack]
    curve: Sequence[float]  # factors on ε
    along: str  # the attack that the curve is drawn with
    examples: int
    seed: int

    @property
    def texts(self) -> list[str]:
        """Modalities of which an attack changes texts."""
        return [
            m
            for surface in self.surfaces.values()
            for m in surface.threats
            if "texts" in surface.moves and any(attack.moves == "texts" for attack in self.attacks.values())
        ]


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
    attacks = {name: parts.build("attacks", spec) for name, spec in settings.attacks.items()}
    surfaces: dict[str, Surface] = {m: Surface(("numbers",), {m: threat}) for m, threat in threats.items()}
    if settings.joint and len(threats) > 1:
        surfaces[JOINT] = Surface(("numbers",), dict(threats))
    surfaces |= {f"{m} edits": Surface(("tokens", "texts"), {m: None}) for m in threats if kinds[m] == "text"}
    if len(model.modalities) > 1:
        surfaces["presence"] = Surface(("presence",), dict.fromkeys(model.modalities))
    _refuse_idle(model, surfaces, attacks, "attacks" in settings.model_fields_set)
    if settings.curve and settings.along not in attacks:
        words = f"there is no attack {settings.along!r}{nearest(settings.along, attacks)}; allowed: {', '.join(attacks)}"
        raise ConfigError([(f"{where}.along", words)])
    for factor in settings.curve:
        if factor <= 0:
            raise ConfigError([(f"{where}.curve", f"{factor:g} times ε lets nothing move: give factors above 0")])
    labelled = rows[feed.labels[task][1].numpy()[rows]]
    some = np.sort(np.random.default_rng(seed).permutation(labelled)[: settings.rows])
    return Siege(task, some, surfaces, attacks, settings.curve, settings.along, settings.examples, seed)


def _refuse_idle(model: Model, surfaces: Mapping[str, Surface], attacks: Mapping[str, Attack], named: bool) -> None:
    """Refuse an attack that somebody named and nothing here can be attacked by; of the usual ones say which they are."""
    idle = [name for name, attack in attacks.items() if not any(fits(attack, some, model) for some in surfaces.values())]
    if not idle:
        return
    found = ", ".join(f"{m} ({encoder.kind})" for m, encoder in model.encoders.items())
    if named:
        words = f"is of other inputs, norms or bounds than are attacked here ({found}): leave it out, or say other threats"
        raise ConfigError([(f"evaluate.robustness.attacks.{idle[0]}", words)])
    distributed.say(f"attacks that fit none of {found} are left out: {', '.join(idle)}")


def trials(siege: Siege, model: Model) -> Iterator[tuple[Trial, Surface, Attack]]:
    """Every attack on every surface within its threats; then along the curve."""
    for name, surface in siege.surfaces.items():
        for word, attack in siege.attacks.items():
            if fits(attack, surface, model):
                yield Trial(name, word), surface, attack
        drawn = siege.attacks.get(siege.along)
        if not siege.curve or drawn is None or not fits(drawn, surface, model):
            continue
        threats = {m: threat for m, threat in surface.threats.items() if threat is not None}
        for factor in siege.curve:
            if factor != 1:
                further = {m: threat.times(factor) for m, threat in threats.items()}
                yield Trial(name, siege.along, factor), surface._replace(threats=further), drawn
        everything = {m: ALL[model.encoders[m].kind] for m in threats}
        yield Trial(name, siege.along, np.inf), surface._replace(threats=everything), drawn


def fits(attack: Attack, surface: Surface, model: Model) -> bool:
    """Whether an attack moves what may be changed, can keep to its norms, and needs no bounds where there are none."""
    if attack.moves not in surface.moves:
        return False
    try:
        refuse(model, next(iter(model.heads)), surface.threats, attack.moves)
    except ConfigError:  # a text without a tokenizer, or of pairs
        return False
    bounded = all(model.encoders[m].bounds is not None for m in surface.threats)
    return all(t is None or t.norm in attack.norms for t in surface.threats.values()) and (bounded or not attack.bounds)
