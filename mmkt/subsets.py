"""What a model reaches with every subset of its modalities, and what each modality brings."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
import pyarrow.compute as pc

from mmkt import report
from mmkt.games import interactions, shapley
from mmkt.report import Sheet
from mmkt.score import About, interval, leading, resampled_alike
from mmkt.types import Metric, Predictions, Row

USUAL, MOST = 6, 8  # modalities, whose 63 and 255 subsets are evaluated by default, and if asked for
NONE = "none"  # the name of the empty subset


def power_set(modalities: Sequence[str]) -> list[tuple[str, ...]]:
    """All 2^M subsets; modality i is in those at the places that have the bit 2^i.

    Raises:
        ValueError: there are too many.
    """
    if len(modalities) > MOST:
        raise ValueError(
            f"{len(modalities)} modalities have {2 ** len(modalities) - 1:,} subsets; up to {MOST} are evaluated so: "
            "say evaluate.subsets=false"
        )
    return [tuple(m for i, m in enumerate(modalities) if place >> i & 1) for place in range(2 ** len(modalities))]


def name_of(subset: Iterable[str]) -> str:
    """A subset in a row: ``image+text``, ``none``."""
    return "+".join(sorted(subset)) or NONE


def measure(
    answers: Sequence[Predictions],
    modalities: Sequence[str],
    judges: Mapping[str, Sequence[tuple[str, Metric]]],
    *,
    about: About,
    resamples: int = 1000,
) -> list[Row]:
    """The lattice of subsets, by each task's first metric that is not by class alone and can be resampled; same rows for all.

    ``METRIC`` is of a subset itself, overall and in each domain. All else counts up where the metric gets better; v(S) is of S:

    - ``METRIC.drop``: v(N) − v(S), what is lost without the others.
    - ``METRIC.shapley`` of a modality (``games.shapley``); they sum to v(N) − v(∅).
    - ``METRIC.reliance`` of a modality: (v(N) − v(N∖i)) / (v(N) − v(∅)), the share of all that is known that is lost when
      this one is missing (ours). Over 1 the model relies on it too much: without it the others say less than nothing does.
    - ``METRIC.interaction`` of a pair (``games.interactions``): synergy above 0, redundancy below.
    - ``METRIC.synergy_gap``: v(N) − max v(S), S ≠ N, what all say beyond the best of the smaller subsets; in every resample
      its own best, so that choosing it is part of the interval.

    A row that lacks a modality lacks it in every subset. Intervals are the percentile bootstrap over rows, which all subsets
    share.

    Args:
        answers: by subset, in the order of ``power_set``.
        modalities: of the model.
        judges: by task, metrics with the names that rows carry.
        about: what the rows have in common, beside the modalities.
        resamples: of the bootstrap; 0 for no intervals.

    Raises:
        ValueError: as ``score``.
    """
    found = []
    for task, name, metric in leading(judges):
        values = resampled_alike(answers, task, metric, resamples)  # (2^M, 1 + R)
        n = pc.count(answers[0].table[f"{task}.label"]).as_py()
        for of, kind, figures in _figures(values, modalities, metric.higher_is_better):
            here = about._replace(modalities=name_of(of))
            found.append(here.row(task, name + kind, figures[0], n, *interval(figures[1:])))
        found += _by_domain(answers, modalities, task, name, metric, about, resamples)
    return found


def _by_domain(
    answers: Sequence[Predictions],
    modalities: Sequence[str],
    task: str,
    name: str,
    metric: Metric,
    about: About,
    resamples: int,
) -> list[Row]:
    """Every subset's own figure in each domain, where there are two or more."""
    whole, found = answers[-1].table, []
    domains = pc.unique(whole["domain"].drop_null()).to_pylist() if "domain" in whole.column_names else []
    for domain in sorted(domains) if len(domains) > 1 else ():
        here = pc.fill_null(pc.equal(whole["domain"], domain), False)
        n = pc.sum(pc.and_(here, pc.is_valid(whole[f"{task}.label"]))).as_py()
        if n:
            values = resampled_alike([some._replace(table=some.table.filter(here)) for some in answers], task, metric, resamples)
            for of, x in reversed(list(zip(power_set(modalities), values, strict=True))):
                named = about._replace(modalities=name_of(of))
                found.append(named.row(task, name, x[0], n, *interval(x[1:]), group=f"domain={domain}"))
    return found


def _figures(values: np.ndarray, modalities: Sequence[str], higher: bool) -> Iterator[tuple[Sequence[str], str, np.ndarray]]:
    """Of which modalities, what, and the figure with its resamples, (1 + R,)."""
    subsets = power_set(modalities)
    for subset, plain in reversed(list(zip(subsets, values, strict=True))):
        yield subset, "", plain
    game = values if higher else -values
    full, gain = game[-1], game[-1] - game[0]
    for subset, v in reversed(list(zip(subsets, game, strict=True))[:-1]):
        yield subset, ".drop", full - v
    for i, (m, value) in enumerate(zip(modalities, shapley(game), strict=True)):
        yield [m], ".shapley", value
        lost = full - game[len(game) - 1 - (1 << i)]
        yield [m], ".reliance", np.divide(lost, gain, out=np.full_like(gain, np.nan), where=gain != 0)
    for (i, j), value in interactions(game).items():
        yield [modalities[i], modalities[j]], ".interaction", value
    yield modalities, ".synergy_gap", full - game[:-1].max(0)


def sheets(every: Sequence[Row]) -> Iterator[Sheet]:
    """The lattice, what each modality and each pair brings, the lattice by domain; a task after the other."""
    rows = [row for row in every if row.group == "all"]
    by = {(row.task, row.modalities, row.metric): row for row in rows}
    for task, metric in dict.fromkeys((row.task, row.metric) for row in rows if "." not in row.metric):
        own = [row for row in rows if row.task == task]
        names = [row.modalities for row in own if row.metric == metric]
        title = f"{task} with some of the modalities (n = {own[0].n})"
        lattice = {
            words: [report.cell(by.get((task, name, metric + kind))) for name in names]
            for words, kind in {metric: "", "lost": ".drop"}.items()
        }
        yield report.sheet(title, {"modalities": names}, lattice)
        alone = [row.modalities for row in own if row.metric == f"{metric}.shapley"]
        brings = {
            words: [report.cell(by[task, m, f"{metric}.{kind}"]) for m in alone]
            for words, kind in {"Shapley value": "shapley", "reliance": "reliance"}.items()
        }
        gap = next(row for row in own if row.metric == f"{metric}.synergy_gap")
        notes = [f"all of them beyond the best of the others: {report.cell(gap)}"]
        pairs = [row for row in own if row.metric == f"{metric}.interaction"]
        several = len(alone) > 2
        yield report.sheet("what each brings", {"modality": alone}, brings, () if several else notes)
        if several:
            cells = {"interaction": [report.cell(row) for row in pairs]}
            pair = {"pair": [row.modalities for row in pairs]}
            yield report.sheet("pairs: synergy above 0, redundancy below", pair, cells, notes)
        domains = {(row.modalities, row.group): row for row in every if (row.task, row.metric) == (task, metric)}
        groups = [group for group in dict.fromkeys(group for _, group in domains) if group != "all"]
        if groups:
            shown, notes = groups[: report.LINES], report.rest(groups)
            columns = {g.partition("=")[2]: [report.number(domains[name, g].value) for name in names] for g in shown}
            yield report.sheet(f"{task}: {metric} by domain", {"modalities": names}, columns, notes)
