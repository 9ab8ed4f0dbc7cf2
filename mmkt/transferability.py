"""Which source to carry over to a target: measures of frozen features, beside what fine-tuning has given."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator

from mmkt import distributed, measures
from mmkt.candidates import Candidate, Texts, experiments, modality_of, read_source
from mmkt.checkpoint import write_json
from mmkt.launcher import use_threads
from mmkt.layers import transport
from mmkt.parts import ConfigError, nearest
from mmkt.ranking import MEASURES, Line, Ranking, agree, as_json
from mmkt.run import stage
from mmkt.studies.transfer_gain import Transfer, of_method
from mmkt.study import Study


class Notes:
    """What is to be said once, and of whom."""

    def __init__(self) -> None:
        self.found: dict[tuple[str, str], list[str]] = {}

    def add(self, what: str, why: object, name: str | None = None) -> None:
        """Of a candidate, or of all."""
        self.found.setdefault((what, str(why)), []).extend([name] if name else [])

    def lines(self) -> list[str]:
        """A sentence each."""
        found = []
        for (what, why), names in self.found.items():
            of = f"– for {', '.join(names)}: " if names else ""
            found.append(f"{what}: {of}{why}.")
        return found


def rank(
    study: Study,
    *,
    method: str | None = None,
    rows: int = 2000,
    modality: str | None = None,
    order: Mapping[str, float] | None = None,
) -> Ranking:
    """Measure every source of a study on the training split, without training.

    Args:
        study: whose sources are the candidates.
        method: of the study, whose trainings are the truth; by default its first.
        rows: of the training split, and of the source's texts, at the most.
        modality: whose encoder is the candidate; by default the only one.
        order: the truth, by source; by default the mean figure on test of the trainings that have ended in the study's folder.

    Raises:
        ValueError: names that there are not, a target without classes, or sources that read other rows than the first.
    """
    _known("method", [method] if method else [], study.methods)
    _known("source", order or {}, study.sources)
    transfer, notes = Transfer(study), Notes()
    configs = experiments(study, transfer.task)
    first = next(iter(configs.values()))
    m = modality_of(first, modality)
    method = method or next(iter(study.methods))
    truth = trained(transfer, method, notes) if order is None else order
    texts = read_source(study.source_rows, rows, first.seed) if study.source_rows else None
    accelerator, lines = Accelerator(), []
    use_threads(accelerator, first.threads)
    target: tuple[list[str], list[int]] | None = None
    for k, (name, config) in enumerate(configs.items(), 1):
        distributed.say(f"candidate {name} ({k} of {len(configs)})")
        candidate = Candidate(name, config, transfer.task, modality_of(config, m), accelerator.device)
        chosen, features = candidate.encode(candidate.rows(rows))
        mine = candidate.ids(chosen), candidate.labels(chosen).tolist()
        target = target or mine
        if mine != target:
            problem = f"reads other rows than {next(iter(configs))}: give settings of data, and seed, under settings, for all"
            raise ConfigError([(f"sources.{name}", problem)])
        values = _measured(candidate, chosen, features, texts, notes)
        lines.append(Line(name, features.shape[1], values, truth.get(name, math.nan)))
    assert target is not None, "a study has a source"
    title = f"{transfer.task} from {m}, frozen; fine-tuned: {method}, {transfer.metric}"
    lines.sort(key=lambda line: -line.values["logme"])
    agreements = agree(lines, transfer.higher)
    return Ranking(title, len(target[0]), len(set(target[1])), lines, agreements, notes.lines())


def _known(what: str, names: Iterable[str], among: Iterable[str]) -> None:
    for name in names:
        if name not in among:
            raise ConfigError(f"there is no {what} {name!r}{nearest(name, among)}; allowed: {', '.join(among)}")


def trained(transfer: Transfer, method: str, notes: Notes) -> dict[str, float]:
    """By source, the mean figure on test over seeds, of those whose trainings have ended; of the largest share of the labels."""
    found: dict[str, float] = {}
    shares = [cell.fraction for cell in transfer.grids if cell.method == method]
    cells = of_method(transfer.grids, method, max(shares)) if shares else {}
    test = transfer.config.data.test
    for name, cell in cells.items():
        try:
            keys = transfer.finals(cell)
        except ConfigError:  # every rate failed
            keys = []
        if keys and all(stage(transfer.folder(key), test) == "ended" for key in keys):
            value = float(np.mean([transfer.value(key, test) for key in keys]))
            found |= {name: value} if math.isfinite(value) else {}
    for name in transfer.study.sources:
        if name not in found:
            notes.add("fine-tuned", f"not all trainings by {method} have ended (mmkt transfer)", name)
    return found


# ---------------------------------------------------------------- measuring


def _measured(
    candidate: Candidate, rows: np.ndarray, features: np.ndarray, texts: Texts | None, notes: Notes
) -> dict[str, float]:
    """By measure; NaN where a candidate has none, with the reason among the notes."""
    labels = candidate.labels(rows)
    values = dict.fromkeys(MEASURES, math.nan)
    values["logme"] = measures.logme(features, labels)
    values["h_score"] = measures.h_score(features, labels)
    values["h_score_shrunk"] = measures.h_score(features, labels, shrinkage=True)

    def unless(what: str, work: Callable[[], Mapping[str, float]]) -> None:
        try:
            values.update(work())
        except ValueError as error:
            notes.add(what, error, candidate.name)

    unless("LEEP, NCE", lambda: _by_head(candidate.source_probabilities(rows), labels))
    if texts is None:
        notes.add("A-distance, OTDD", "– for all: the study names no source_rows (manifest, column, label)")
    else:
        unless("A-distance, OTDD", lambda: _by_distance(candidate.read_texts(texts.texts), texts.labels, features, labels))
    return values


def _by_head(probabilities: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    return {"leep": measures.leep(probabilities, labels), "nce": measures.nce(probabilities.argmax(1), labels)}


def _by_distance(source: np.ndarray, labels_source: np.ndarray, target: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Between the source's texts and the target's rows, both as the candidate's body leaves them."""
    # encoders' vectors are of any length: what is compared between candidates is in units of the spread within both sides
    spread = math.sqrt((source.var(0).sum() + target.var(0).sum()) / 2)
    if not spread > 0:
        raise ValueError("one vector for all rows")
    x, y = (torch.from_numpy(np.asarray(side / spread, dtype=np.float32)) for side in (source, target))
    labels_x, labels_y = (torch.from_numpy(np.asarray(side, dtype=np.int64)) for side in (labels_source, labels))
    return {
        "proxy_a_distance": measures.proxy_a_distance(source, target),
        "otdd": float(transport.otdd(x, labels_x, y, labels_y)),
    }


def write(ranking: Ranking, folder: Path) -> Path:
    """``transferability.json`` in a study's folder; returns its path."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "transferability.json", as_json(ranking))
    return folder / "transferability.json"
