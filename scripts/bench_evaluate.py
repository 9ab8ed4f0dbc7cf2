"""python scripts/bench_evaluate.py [key=value …] [--config FILE] [--fusions concat merged …] [--rows N] [--rounds N]

Time of an evaluation with every subset of the modalities over that of a plain one, with the encoders of an experiment (by
default numerals) at their first weights: forward passes over the same rows, decoded and cached before, then the figures
(bootstrap included). Both take turns; a figure is the median of the rounds. And the peak memory of retrieval among 100,000
items in 512 dimensions (``--retrieval``).
"""

import argparse
import resource
import statistics
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.progress import track
from rich.table import Table

from mmkt import retrieval, subsets
from mmkt.config import read
from mmkt.experiment import Experiment
from mmkt.launch import build
from mmkt.predictions import judges, predict, predict_subsets
from mmkt.score import About, score

CONFIG = Path(__file__).parent.parent / "configs/experiment/numerals.yaml"


def seconds(config: Experiment, rows: int, rounds: int) -> dict[str, list[float]]:
    """Of the plain pass, of all subsets, and of each one's figures, round by round."""
    setup = build(config)
    model, feed = setup.learner.model, setup.feed
    chosen, names = feed.rows("test")[:rows], model.modalities
    lattice, metrics = subsets.power_set(names), judges(model, {}, setup.parts)
    found: dict[str, list[float]] = {name: [] for name in ("plain", "subsets", "figures", "all figures")}
    for turn in range(rounds + 1):  # the first decodes
        marks = [time.perf_counter()]
        answers = predict(model, feed, chosen)
        marks.append(time.perf_counter())
        score(answers, metrics, about=About())
        marks.append(time.perf_counter())
        every = predict_subsets(model, feed, chosen, lattice)
        marks.append(time.perf_counter())
        score(every[-1], metrics, about=About())
        subsets.measure(every, names, metrics, about=About())
        marks.append(time.perf_counter())
        if turn:
            for name, k in (("plain", 0), ("figures", 1), ("subsets", 2), ("all figures", 3)):
                found[name].append(marks[k + 1] - marks[k])
    return found


def retrieve(items: int, dim: int) -> tuple[float, float]:
    """Seconds, and the peak of this process in GB, of ranking so many queries among as many entries, plain and corrected."""
    torch.manual_seed(0)
    x = F.normalize(torch.randn(items, dim), dim=1)
    y = F.normalize(x + 0.5 * torch.randn(items, dim) / dim**0.5, dim=1)
    here, start = torch.arange(items), time.perf_counter()
    for ranks in retrieval.rank(x, y, here, here, (None, retrieval.hubness(y, x))):
        assert np.mean(ranks.first == 1) > 0.9, "pairs of these are near"
    return time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default=str(CONFIG))
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    parser.add_argument("--fusions", nargs="+", default=["concat", "crossmodal", "merged"])
    parser.add_argument("--rows", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--retrieval", type=int, nargs="?", const=100_000, metavar="ITEMS")
    parser.add_argument("--dim", type=int, default=512)
    options = parser.parse_args()
    if options.retrieval:
        took, peak = retrieve(options.retrieval, options.dim)
        print(f"{options.retrieval:,} queries among as many entries, plain and CSLS: {took:.0f} s, peak {peak:.2f} GB")
        return
    table = Table("fusion", "plain s", "subsets s", "times", "with figures s", "times", box=None)
    for fusion in track(options.fusions, "measuring", console=Console(stderr=True)):
        config = read(Experiment, options.config, [f"model.fusion={fusion}", *options.overrides])
        found = {name: statistics.median(values) for name, values in seconds(config, options.rows, options.rounds).items()}
        plain, every = found["plain"], found["subsets"]
        whole = plain + found["figures"], every + found["all figures"]
        cells = [plain, every, every / plain, whole[1], whole[1] / whole[0]]
        table.add_row(fusion, *(f"{x:.2f}" for x in cells))
    Console().print(table)


if __name__ == "__main__":
    main()
