"""Which attacks a model is put to: on which of its inputs, how far; with everything refused that cannot be."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from mmkt import distributed
from mmkt.experiment import Attacked
from mmkt.feed import Feed
from mmkt.model import Model
from mmkt.parts import ConfigError, Parts, nearest
from mmkt.perturbed import Words, task_and_rows
from mmkt.raw import RAW, refuse
from mmkt.robust_accuracy import JOINT, WORST, Kind, Trial, found_on
from mmkt.surrogate import Surrogate, surrogate
from mmkt.threat import USUAL, Threat
from mmkt.types import Attack, Moves

WORDS = Words("evaluate.robustness", "threats", "attacks make a classifier say another class", "nothing")
ATTACKS: Mapping[str, Mapping[str, Any]] = {
    "fgsm": {"name": "fgsm"},
    "pgd": {"name": "pgd", "steps": 20},
    "apgd_ce": {"name": "apgd", "steps": 30},
    "apgd_dlr": {"name": "apgd", "steps": 30, "loss": "dlr"},
    "square": {"name": "square", "queries": 100},
    "hotflip": {"name": "hotflip"},
    "characters": {"name": "characters"},
    "absent": {"name": "absent"},
}
"""Where nothing is said."""
EDITS, MISSING = "edits", "missing modality"  # of surfaces, which no modality is named as
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
    surfaces: Mapping[str, Surface]  # by name: a modality, ``joint``, ``text edits``, ``missing modality``
    attacks: Mapping[str, Attack]
    curve: Sequence[float]  # factors on ε
    along: str | None  # the attack that the curve is drawn with
    examples: int
    seed: int
    target: int | None = None  # the number of the class that should be said; None: any but the label
    surrogate: Surrogate | None = None  # another model that they are found on too

    @property
    def kinds(self) -> dict[str, Kind]:
        """By the name of each attack in a trial."""
        found = {name: Kind(attack.gradients, attack.keeps) for name, attack in self.attacks.items()}
        if self.surrogate is None:
            return found
        others = {found_on(name, self.surrogate.name): Kind(False, kind.keeps, own=False) for name, kind in found.items()}
        return found | others

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
    kinds = {m: encoder.kind for m, encoder in model.encoders.items()}
    usual = {m: Threat(**USUAL[kind]) for m, kind in kinds.items() if kind in RAW}
    usual = {m: threat for m, threat in usual.items() if kinds[m] != "text" or hasattr(model.encoders[m], "embed")}
    threats = settings.threats or usual
    task, some = task_and_rows(model, feed, rows, threats, settings, seed, WORDS)
    specs: Mapping[str, Mapping[str, Any]] = ATTACKS if settings.attacks is None else settings.attacks
    attacks = {name: parts.build("attacks", spec) for name, spec in specs.items()}
    surfaces: dict[str, Surface] = {m: Surface(("numbers",), {m: threat}) for m, threat in threats.items()}
    if settings.joint and len(threats) > 1:
        surfaces[JOINT] = Surface(("numbers",), dict(threats))
    surfaces |= {f"{m} {EDITS}": Surface(("tokens", "texts"), {m: None}) for m in threats if kinds[m] == "text"}
    if len(model.modalities) > 1:
        surfaces[MISSING] = Surface(("presence",), dict.fromkeys(model.modalities))
    _refuse_names(threats, settings.joint, attacks)
    _refuse_idle(model, task, surfaces, attacks, settings.attacks is not None)
    curve, along = list(settings.curve), _along(settings, attacks)
    target = None if settings.target is None else _target(settings.target, model.heads[task].vocabulary["classes"])
    if target is not None:
        some = some[feed.labels[task][0].numpy()[some] != target]
        if not len(some):
            words = f"all rows that are attacked are of {settings.target!r}: name a class that some are not of"
            raise ConfigError([(f"{WORDS.where}.target", words)])
    found = Siege(task, some, surfaces, attacks, curve, along, settings.examples, seed, target)
    return found if settings.source is None else _from(settings.source, found, model, feed, threats)


def _target(wanted: Any, classes: Sequence[Any]) -> int:
    """The number of a class, which may be written as text where it is none."""
    known = [k for k, name in enumerate(classes) if name == wanted or str(name) == str(wanted)]
    if not known:
        names = [str(name) for name in classes]
        words = f"there is no class {wanted!r}{nearest(str(wanted), names)}; allowed: {', '.join(names[:50])}"
        raise ConfigError([(f"{WORDS.where}.target", words)])
    return known[0]


def _along(settings: Attacked, attacks: Mapping[str, Attack]) -> str | None:
    """The attack that the curve is drawn with: of numbers, and one that ε limits; None where there is no such attack."""
    for factor in settings.curve:
        if not 0 < factor < np.inf:
            words = f"{factor:g} is no factor on ε: give finite ones above 0; nearly everything allowed comes at the end anyway"
            raise ConfigError([(f"{WORDS.where}.curve", words)])
    able = [name for name, attack in attacks.items() if attack.moves == "numbers" and attack.keeps]
    if settings.along is None:
        return "pgd" if "pgd" in able else next(iter(able), None)
    if settings.along not in able:
        known = f"{settings.along} does not keep to ε, which the curve goes along{nearest(settings.along, able)}"
        words = known if settings.along in attacks else f"there is no attack {settings.along!r}{nearest(settings.along, able)}"
        raise ConfigError([(f"{WORDS.where}.along", f"{words}; allowed: {', '.join(able) or 'none, so say curve=[]'}")])
    return settings.along


def _refuse_names(threats: Collection[str], joint: bool, attacks: Collection[str]) -> None:
    """Refuse what the report calls something else."""
    if WORST in attacks:
        raise ConfigError([(f"{WORDS.where}.attacks.{WORST}", "is what the worst case by row is called: give it another name")])
    if joint and JOINT in threats:
        raise ConfigError([(f"{WORDS.where}.joint", f"{JOINT} is the name of a modality here: say joint=false")])


def _from(source: str, siege: Siege, model: Model, feed: Feed, threats: Mapping[str, Threat]) -> Siege:
    """With another model that attacks are found on too."""
    found = siege._replace(surrogate=surrogate(source, model, feed, siege.rows, siege.task, threats))
    if not any(way.surrogate for way in ways(found, model)):
        words = (
            f"none of {', '.join(siege.attacks)} goes over from {source}: name one with gradients that keeps to ε (pgd), or one "
        )
        raise ConfigError([(f"{WORDS.where}.attacks", f"{words}of texts, or leave source out")])
    return found


def _refuse_idle(model: Model, task: str, surfaces: Mapping[str, Surface], attacks: Mapping[str, Attack], named: bool) -> None:
    """Refuse an attack that somebody named and nothing here can be attacked by; of the usual ones say which they are."""
    idle = [name for name, attack in attacks.items() if not any(fits(attack, one, model, task) for one in surfaces.values())]
    if not idle:
        return
    found = ", ".join(f"{m} ({encoder.kind})" for m, encoder in model.encoders.items())
    if named:
        words = f"is of other inputs, norms or bounds than are attacked here ({found}): leave it out, or say other threats"
        raise ConfigError([(f"evaluate.robustness.attacks.{idle[0]}", words)])
    distributed.say(f"attacks that fit none of {found} are left out: {', '.join(idle)}")


class Way(NamedTuple):
    """An attack on a surface."""

    trial: Trial
    surface: Surface
    attack: Attack
    surrogate: Surrogate | None = None  # that it is found on, where that is not the model itself


def ways(siege: Siege, model: Model) -> Iterator[Way]:
    """Every attack on every surface within its threats, found on the model and on the surrogate; then along the curve."""
    for name, surface in siege.surfaces.items():
        fitting = {word: attack for word, attack in siege.attacks.items() if fits(attack, surface, model, siege.task)}
        for word, attack in fitting.items():
            yield Way(Trial(name, word), surface, attack)
        other = siege.surrogate
        for word, attack in fitting.items():
            if other is not None and other.takes(attack, surface.threats) and fits(attack, surface, other.model, siege.task):
                yield Way(Trial(name, found_on(word, other.name)), surface, attack, other)
        if not siege.curve or siege.along is None or siege.along not in fitting:
            continue
        threats = {m: threat for m, threat in surface.threats.items() if threat is not None}
        for factor in siege.curve:
            if factor != 1:
                further = {m: threat.times(factor) for m, threat in threats.items()}
                yield Way(Trial(name, siege.along, factor), surface._replace(threats=further), fitting[siege.along])
        everything = {m: ALL[model.encoders[m].kind] for m in threats}
        yield Way(Trial(name, siege.along, np.inf), surface._replace(threats=everything), fitting[siege.along])


def fits(attack: Attack, surface: Surface, model: Model, task: str) -> bool:
    """Whether an attack moves what may be changed, can keep to its norms, and needs no bounds where there are none."""
    if attack.moves not in surface.moves:
        return False
    try:
        refuse(model, task, surface.threats, attack.moves)
    except ConfigError:  # a text without a tokenizer, or of pairs
        return False
    bounded = all(model.encoders[m].bounds is not None for m in surface.threats)
    return all(t is None or t.norm in attack.norms for t in surface.threats.values()) and (bounded or not attack.bounds)
