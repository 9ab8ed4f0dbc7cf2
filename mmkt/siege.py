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
from mmkt.perturbed import Words, task_and_rows
from mmkt.raw import RAW, refuse
from mmkt.robust_accuracy import JOINT, Kind, Trial, found_on
from mmkt.surrogate import Surrogate, surrogate
from mmkt.threat import USUAL, Threat
from mmkt.types import Attack, Moves

WORDS = Words("evaluate.robustness", "threats", "attacks make a classifier say another class", "nothing")
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
    where, kinds = WORDS.where, {m: encoder.kind for m, encoder in model.encoders.items()}
    usual = {m: Threat(**USUAL[kind]) for m, kind in kinds.items() if kind in RAW}
    usual = {m: threat for m, threat in usual.items() if kinds[m] != "text" or hasattr(model.encoders[m], "embed")}
    threats = settings.threats or usual
    task, some = task_and_rows(model, feed, rows, threats, settings, seed, WORDS)
    attacks = {name: parts.build("attacks", spec) for name, spec in settings.attacks.items()}
    surfaces: dict[str, Surface] = {m: Surface(("numbers",), {m: threat}) for m, threat in threats.items()}
    if settings.joint and len(threats) > 1:
        surfaces[JOINT] = Surface(("numbers",), dict(threats))
    surfaces |= {f"{m} edits": Surface(("tokens", "texts"), {m: None}) for m in threats if kinds[m] == "text"}
    if len(model.modalities) > 1:
        surfaces["presence"] = Surface(("presence",), dict.fromkeys(model.modalities))
    _refuse_idle(model, task, surfaces, attacks, "attacks" in settings.model_fields_set)
    if settings.curve and settings.along not in attacks:
        words = f"there is no attack {settings.along!r}{nearest(settings.along, attacks)}; allowed: {', '.join(attacks)}"
        raise ConfigError([(f"{where}.along", words)])
    for factor in settings.curve:
        if factor <= 0:
            raise ConfigError([(f"{where}.curve", f"{factor:g} times ε lets nothing move: give factors above 0")])
    found = Siege(task, some, surfaces, attacks, settings.curve, settings.along, settings.examples, seed)
    return found if settings.source is None else _from(settings.source, found, model, feed, threats)


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
        if not siege.curve or siege.along not in fitting:
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
