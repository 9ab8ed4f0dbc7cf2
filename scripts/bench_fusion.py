"""python scripts/bench_fusion.py [NAME …] [--rows B] [--tokens L] [--dim D] [--rounds N] [--device cuda] [--markdown]

Time of forward and backward of every fusion at its usual settings over that of ``concat``: 256 rows, three modalities (two
where a fusion takes two), 32 tokens each, 256 wide. The fusions take turns, so that all see the same machine, and a line is
the median of the rounds. Beside it: parameters, FLOPs of a forward pass from the declared formula, and GFLOP/s (forward and
backward are three times the forward's FLOPs), by which one can see what is slower than its products explain. One that
refuses this size is listed with its words.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

from mmkt.conformance import Case, find
from mmkt.conformance.points import formula_value
from mmkt.model import parameter_count
from mmkt.parts import Parts
from mmkt.types import Encoded

NAMES = ("a", "b", "c")


def parts(names: tuple[str, ...], rows: int, tokens: int, dim: int, device: str) -> dict[str, Encoded]:
    """Random rows in the shared space: ragged, a tenth of each modality missing; inputs want gradients, as in training."""
    found = {}
    for m in names:
        mask = torch.arange(tokens, device=device)[None] < torch.randint(1, tokens + 1, (rows, 1), device=device)
        x = (torch.randn(rows, tokens, dim, device=device) * mask[..., None]).requires_grad_()
        pooled = torch.randn(rows, dim, device=device, requires_grad=True)
        found[m] = Encoded(x, mask, pooled, torch.rand(rows, device=device) > 0.1)
    return found


def step_of(case: Case, options: argparse.Namespace) -> tuple[torch.nn.Module, Callable[[], None]]:
    """The fusion, and one forward and backward of it."""
    names = NAMES[: case.number()]
    torch.manual_seed(0)
    fusion = case.fusion(names, options.dim, {"y": 10}).to(options.device).train()
    rows = parts(names, options.rows, options.tokens, options.dim, options.device)

    def step() -> None:
        fusion.zero_grad()
        fused = fusion(rows)
        loss = fused.encoded.pooled.float().square().mean() + sum(x.square().mean() for x in fused.logits.values())
        (loss + sum(fused.terms.values())).backward()
        if options.device != "cpu":
            torch.cuda.synchronize()

    return fusion, step


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--rows", type=int, default=256)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--dim", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--markdown", action="store_true")
    options = parser.parse_args()
    names = list(dict.fromkeys(["concat", *(options.names or sorted(Parts().files("fusion")))]))
    built, refused = {}, {}
    for name in names:
        case = find("fusion", name)
        try:
            built[name] = (case, *step_of(case, options))
        except ValueError as error:
            refused[name] = str(error)
    seconds: dict[str, list[float]] = {name: [] for name in built}
    for turn in track(range(options.rounds + 1), "measuring", console=Console(stderr=True)):  # the first warms up
        for name, (_, _, step) in built.items():
            start = time.perf_counter()
            step()
            if turn:
                seconds[name].append(time.perf_counter() - start)
    base = statistics.median(seconds["concat"])
    lines = []
    for name in sorted(built, key=lambda name: statistics.median(seconds[name])):
        case, fusion, _ = built[name]
        took = statistics.median(seconds[name])
        known = {"D": options.dim, "M": case.number(), "L": options.tokens, "C": 10, "T": 1, **case.spec}
        flops = formula_value(case.cls.flops, known)
        speed = 3 * flops * options.rows / took / 1e9
        lines.append(
            [
                name,
                case.cls.cost,
                f"{parameter_count(fusion):,}",
                f"{flops / 1e6:,.2f}",
                f"{1e3 * took:,.1f}",
                f"{took / base:,.1f}",
                f"{speed:,.1f}",
            ]
        )
    heads = ["fusion", "cost", "parameters", "MFLOPs a row", "ms", "over concat", "GFLOP/s"]
    if options.markdown:
        print("\n".join("| " + " | ".join(line) + " |" for line in [heads, ["---"] * len(heads), *lines]))
    else:
        table = Table(*heads, box=None)
        for line in lines:
            table.add_row(*line)
        Console().print(table)
    for name, words in refused.items():
        print(f"\n{name} refuses: {words}")


if __name__ == "__main__":
    main()
