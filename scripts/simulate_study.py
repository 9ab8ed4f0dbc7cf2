"""python scripts/simulate_study.py [--file FILE] [--studies N] [--power N] [--gains 2 5] [--seeds 5] [--jobs N] [--markdown]

How often a study of 20 fusions claims a difference that is not there, and how often it finds one that is. Whole studies are
made up, one answer (right or wrong) a fusion, seed and test row, and judged as real ones are: ``score.draws``,
``statistics.difference`` against the baseline, Holm's correction, ``Difference.verdict``.

A row is hard to all fusions, to one fusion in all its seeds, or in one training: shares of the variance of a normal variable
(``AGREE``), whose threshold gives each training its true accuracy, exactly. That is 80 % on average, differs between trainings
by a standard deviation of ``--spreads`` points, and is by ``--gains`` points higher for one fusion where power is asked for.

A line a study is appended to the file, so the command can be killed and typed again, or typed with more studies; a study's
figures depend on its cell and number alone.
"""

import argparse
import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import lru_cache, partial
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console
from scipy import special, stats

from mmkt import report
from mmkt.score import draws
from mmkt.statistics import difference, holm, two_sources

FUSIONS, ACCURACY = 20, 0.8
# of a row's difficulty, the share that one fusion has in all its seeds, and the share of one training
AGREE = {"high": (0.05, 0.05), "low": (0.2, 0.2), "by fusion": (0.2, 0.02)}
RULES = {
    "verdict": "interval and p (Holm)",
    "p": "p (Holm) alone",
    "interval": "interval alone",
    "seeds": "t-test over seeds (Holm)",
    "seeds, interval": "that and interval",
}


class Cell(NamedTuple):
    """What a study is made of."""

    gain: float  # of one fusion, in points
    spread: float  # between trainings, in points
    rows: int
    agree: str
    seeds: int


def answers(random: np.random.Generator, cell: Cell) -> np.ndarray:
    """Who answers what right: (rows, fusions, seeds), the baseline first, the fusion with the gain second."""
    own, one = AGREE[cell.agree]
    accuracy = ACCURACY + random.normal(0, cell.spread / 100, (FUSIONS, cell.seeds))
    accuracy[1] += cell.gain / 100
    hard = random.normal(0, math.sqrt(1 - own - one), (cell.rows, 1, 1))
    hard = hard + random.normal(0, math.sqrt(own), (cell.rows, FUSIONS, 1))
    hard = hard + random.normal(0, math.sqrt(one), (cell.rows, FUSIONS, cell.seeds))
    return hard < special.ndtri(accuracy)


@lru_cache(maxsize=3)
def weights(rows: int, resamples: int) -> np.ndarray:
    """Of all rows, then of each resample, (1 + resamples, rows): the same for all studies of this size, as for real ones."""
    return np.concatenate([np.ones((1, rows)), *draws(np.arange(rows), resamples, seed=0)]) / rows


def study(job: tuple[Cell, int], resamples: int) -> dict[str, Any]:
    """One study's line: by rule how many of the fusions without a gain are claimed, whether the one with a gain is found."""
    cell, number = job
    # a generator of its own: nothing but the cell and the number decides
    points = round(cell.gain * 1000), round(cell.spread * 1000)
    key = [*points, cell.rows, list(AGREE).index(cell.agree), cell.seeds, number]
    right = answers(np.random.default_rng(key), cell)
    values = weights(cell.rows, resamples) @ right.reshape(cell.rows, -1).astype(np.float64)
    values = values.reshape(-1, FUSIONS, cell.seeds).transpose(1, 2, 0)
    gaps = values[1:] - values[0]
    found = [difference(gap) for gap in gaps]
    p = holm([one.p for one in found])
    each = gaps[:, :, 0]
    old = holm([two_sources(x.mean(), x.var(ddof=1) / cell.seeds, cell.seeds - 1, 0) for x in each])  # Student's t
    clear = [one.low > 0 or one.high < 0 for one in found]
    gains = np.array([one.mean > 0 for one in found])
    claims = {
        "verdict": np.array([one.verdict(x) in ("gain", "loss") for one, x in zip(found, p)]),
        "p": np.array(p) < 0.05,
        "interval": np.array(clear),
        "seeds": np.array(old) < 0.05,
        "seeds, interval": np.array([one.verdict(x) in ("gain", "loss") for one, x in zip(found, old)]),
    }
    alike = slice(1 if cell.gain else 0, None)
    apart = right[:, 1:, 0] != right[:, :1, 0], right[:, :, 0] != right[:, :, 1]
    return {
        **cell._asdict(),
        "study": number,
        "resamples": resamples,
        "claimed": {rule: int(claim[alike].sum()) for rule, claim in claims.items()},
        "found": {rule: bool(claim[0] and gains[0]) for rule, claim in claims.items()} if cell.gain else None,
        "apart": [round(float(one.mean()), 4) for one in apart],
    }


def known(file: Path, resamples: int) -> dict[tuple[Cell, int], dict[str, Any]]:
    """The file's studies. A line that was cut off is taken off."""
    if not file.exists():
        return {}
    text = file.read_text(encoding="utf-8")
    whole = text[: text.rfind("\n") + 1]
    if whole != text:
        file.write_text(whole, encoding="utf-8")
    lines = [json.loads(line) for line in whole.splitlines()]
    return {
        (Cell(*(line[name] for name in Cell._fields)), line["study"]): line for line in lines if line["resamples"] == resamples
    }


def simulate(jobs: Sequence[tuple[Cell, int]], file: Path, resamples: int, processes: int) -> None:
    """Append a line for every study."""
    one = partial(study, resamples=resamples)
    file.parent.mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor(processes) as pool, file.open("a", encoding="utf-8") as out:
        for line in pool.map(one, jobs, chunksize=4):
            out.write(json.dumps(line) + "\n")
            out.flush()


def share(hits: Sequence[bool]) -> str:
    """In percent, with the exact binomial interval."""
    ends = stats.binomtest(sum(hits), len(hits)).proportion_ci(0.95)
    return f"{np.mean(hits):.1%} ({ends.low:.1%} to {ends.high:.1%})"


def sheets(lines: Sequence[dict[str, Any]]) -> Iterator[report.Sheet]:
    """Error of the family, then power: overall and by cell."""

    def table(title: str, some: list[dict[str, Any]], hit: Callable[[dict[str, Any], str], bool]) -> report.Sheet:
        cells = sorted({Cell(*(line[name] for name in Cell._fields)) for line in some})
        parts = {"all": some} | {
            cell: [line for line in some if all(line[k] == v for k, v in cell._asdict().items())] for cell in cells
        }
        rows = []
        for cell, part in parts.items():
            words = ["all", "", ""] if isinstance(cell, str) else [f"{cell.spread:g}", f"{cell.rows:,}", cell.agree]
            apart = np.mean([line["apart"] for line in part], axis=0)
            hits = {rule: [hit(line, rule) for line in part] for rule in RULES}
            figures = [share(hits.pop("verdict")), *(f"{np.mean(other):.1%}" for other in hits.values())]
            rows.append([*words, *(f"{x:.0%}" for x in apart), str(len(part)), *figures])
        headings = ["spread", "rows", "agreement", "fusions differ", "seeds differ", "studies", *RULES.values()]
        return report.Sheet(title, headings, rows, names=3)

    null = [line for line in lines if not line["gain"]]
    if null:
        yield table(
            "Studies in which any of 19 equal fusions is claimed to differ", null, lambda line, rule: line["claimed"][rule] > 0
        )
    for gain in sorted({line["gain"] for line in lines} - {0}):
        some = [line for line in lines if line["gain"] == gain]
        yield table(f"Studies in which a gain of {gain:g} points is found", some, lambda line, rule: line["found"][rule])


def main() -> None:
    """Simulate what is missing and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--file", type=Path, default=Path("checkpoints/simulated.jsonl"))
    parser.add_argument("--studies", type=int, default=28, help="a cell of the grid, all fusions equal")
    parser.add_argument("--power", type=int, default=10, help="a cell of the grid and gain")
    parser.add_argument("--gains", type=float, nargs="*", default=[2, 5], help="in points")
    parser.add_argument("--spreads", type=float, nargs="+", default=[0.2, 0.5, 1, 2], help="in points")
    parser.add_argument("--rows", type=int, nargs="+", default=[500, 1500, 5000])
    parser.add_argument("--agree", nargs="+", default=list(AGREE), choices=list(AGREE))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--resamples", type=int, default=1000)
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--markdown", action="store_true")
    options = parser.parse_args()
    todo = []
    for rows, gain, spread, agree in product(options.rows, [0.0, *options.gains], options.spreads, options.agree):
        todo += [(Cell(gain, spread, rows, agree, options.seeds), k) for k in range(options.power if gain else options.studies)]
    there, start = known(options.file, options.resamples), time.perf_counter()
    missing = [job for job in todo if job not in there]
    simulate(missing, options.file, options.resamples, options.jobs)
    took, there = time.perf_counter() - start, known(options.file, options.resamples)
    pages = list(sheets([there[job] for job in todo]))
    for page in pages if options.markdown else ():
        print(f"\n{page.title}:\n", *report.markdown(page), sep="\n")
    if not options.markdown:
        report.show(pages, Console())
    print(
        f"{len(missing)} of {len(todo)} studies simulated now, {took:.0f} s, {options.resamples} resamples, {options.seeds} seeds"
    )


if __name__ == "__main__":
    main()
