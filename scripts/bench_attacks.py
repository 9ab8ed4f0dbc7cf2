"""python scripts/bench_attacks.py CHECKPOINT [--python ENV/bin/python] [--what parity carlini worst cost] [--rows N] [--eps E …]

mmkt's attacks beside foolbox's (https://github.com/bethgelab/foolbox), and the worst case over them beside AutoAttack's (Croce
and Hein, 2020; the package pyautoattack), on a classifier of pictures alone: the same checkpoint, rows and bounds, one process.

parity   accuracy under FGSM and PGD-40, both from the picture itself (the same numbers, so the same rows) and from a random place
carlini  Carlini and Wagner, 9 searches of 1000 steps, on 50 rows: rows turned, mean and median L2
worst    the worst case by row over mmkt's attacks, over foolbox's, and AutoAttack standard, on 200 rows
cost     seconds of PGD-20 and PGD-40 over as many plain forwards and backwards, and over foolbox's, in turns

    export MMKT_DATA=DIR
    accelerate launch scripts/train.py configs/experiment/mnist_plain.yaml data.origin=$MMKT_DATA/digits
    python -m venv ENV && ENV/bin/pip install -e . foolbox pyautoattack  # torch stays in mmkt's window
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from mmkt.attacks.apgd import Apgd
from mmkt.attacks.cw import Cw
from mmkt.attacks.fgsm import Fgsm
from mmkt.attacks.pgd import Pgd
from mmkt.attacks.square import Square
from mmkt.evaluate import feed_of, revived
from mmkt.parts import Parts
from mmkt.threat import Threat
from mmkt.types import Attack, Batch
from mmkt.victim import Victim


class Plain(nn.Module):
    """A checkpoint as others know models: pictures (N, C, H, W) to logits (N, K)."""

    def __init__(self, model: Any, task: str, batch: Batch):
        super().__init__()
        self.model, self.task, self.batch = model, task, batch

    def forward(self, pixels: Tensor) -> Tensor:
        """Logits."""
        n = torch.arange(len(pixels))
        inputs = {"image": {"pixels": pixels, "items": n[:, None]}}
        there = {"image": torch.ones(len(pixels), dtype=torch.bool)}
        return self.model(self.batch._replace(inputs=inputs, present=there, row=n)).logits[self.task]


class Bench:
    """A checkpoint and rows of its test split."""

    def __init__(self, options: argparse.Namespace):
        parts = Parts(options.plugins)
        self.model, config = revived(options.checkpoint, options.overrides, parts, Accelerator(), ("data", "evaluate"))
        if self.model.modalities != ("image",):
            raise SystemExit(f"{options.checkpoint} reads {', '.join(self.model.modalities)}: foolbox attacks pictures alone")
        self.feed, _ = feed_of(self.model, config, [config.evaluate.split], parts)
        self.rows, self.task = self.feed.rows(config.evaluate.split), next(iter(self.model.heads))
        self.model.eval()
        self.plain = Plain(self.model, self.task, next(self.feed.evaluation(self.rows[:1]))).eval()

    def batches(self, count: int) -> list[Batch]:
        """Of the first rows."""
        return list(self.feed.evaluation(self.rows[:count]))

    def ours(self, attack: Attack, threat: Threat, batches: Sequence[Batch]) -> tuple[Tensor, Tensor]:
        """Whether each row stays right, (n,) bool, and how far it was moved in L2, (n,)."""
        right, far = [], []
        for batch in batches:
            victim = Victim(self.model, batch, self.task, {"image": threat})
            before = victim.goal.reached(victim.logits(victim.clean))
            points: Any = attack(victim)
            right.append(~before & ~victim.goal.reached(victim.logits(points)))
            far.append((points["image"] - victim.clean["image"]).flatten(1).norm(dim=1))
        return torch.cat(right), torch.cat(far)

    def theirs(self, attack: Any, eps: float | None, batches: Sequence[Batch]) -> tuple[Tensor, Tensor]:
        """As ``ours``, by foolbox."""
        import foolbox

        model, right, far = foolbox.PyTorchModel(self.plain, bounds=(0, 1), device="cpu"), [], []
        for batch in batches:
            x, y = pictures(batch, self.task)
            _, found, hit = attack(model, x, y, epsilons=eps)
            right.append(~hit & (self.plain(x).argmax(1) == y))
            far.append((found - x).flatten(1).norm(dim=1))
        return torch.cat(right), torch.cat(far)


def pictures(batch: Batch, task: str) -> tuple[Tensor, Tensor]:
    """Pixels and labels, by row."""
    inputs: Any = batch.inputs["image"]
    return inputs["pixels"][inputs["items"][:, 0]], batch.labels[task]


def parity(bench: Bench, options: argparse.Namespace) -> None:
    """Accuracy under FGSM and PGD-40."""
    from foolbox import attacks as others

    batches = bench.batches(options.rows)
    step = 0.01 / 0.3  # foolbox's usual, as a share of ε
    pairs: dict[str, tuple[Attack, Any]] = {
        "FGSM": (Fgsm(), others.FGSM()),
        "PGD-40": (
            Pgd(steps=40, size=step, start=False),
            others.LinfPGD(steps=40, rel_stepsize=step, random_start=False),
        ),
        "PGD-40, random start": (Pgd(steps=40, size=step), others.LinfPGD(steps=40, rel_stepsize=step)),
    }
    for eps in options.eps:
        for name, (own, other) in pairs.items():
            right = [bench.ours(own, Threat(eps=eps), batches)[0], bench.theirs(other, eps, batches)[0]]
            one, two = (100 * x.double().mean() for x in right)
            same = (right[0] == right[1]).double().mean()
            print(f"ε {eps:g} {name}: mmkt {one:.1f} %, foolbox {two:.1f} %, the same row by row {100 * same:.1f} %", flush=True)


def carlini(bench: Bench, options: argparse.Namespace) -> None:
    """The nearest wrong answer."""
    from foolbox import attacks as others

    batches = bench.batches(50)
    own, other = Cw(steps=options.steps), others.L2CarliniWagnerAttack(steps=options.steps)
    for name, found in (
        ("mmkt", bench.ours(own, Threat(norm="l2", eps=1.0), batches)),
        ("foolbox", bench.theirs(other, None, batches)),
    ):
        right, far = found
        words = f"mean L2 {far[~right].mean():.4f}, median {far[~right].median():.4f}"
        print(
            f"Carlini and Wagner, 9 × {options.steps}: {name} turns {100 * (~right).double().mean():.0f} %, {words}", flush=True
        )


def worst(bench: Bench, options: argparse.Namespace) -> None:
    """The worst case by row; as many steps and queries as AutoAttack's."""
    from foolbox import attacks as others
    from pyautoattack import AutoAttack

    batches = bench.batches(200)
    for eps in options.eps:
        own = [
            Fgsm(),
            Pgd(steps=50, restarts=5),
            Apgd(steps=100),
            Apgd(steps=100, loss="dlr"),
            Apgd(steps=100, loss="dlr", targets=9),
            Square(queries=options.queries),
        ]
        other = [others.FGSM(), others.LinfPGD(steps=50), others.LinfBasicIterativeAttack(steps=50), others.LinfDeepFoolAttack()]
        right = {
            "mmkt": [bench.ours(attack, Threat(eps=eps), batches)[0] for attack in own],
            "foolbox": [bench.theirs(attack, eps, batches)[0] for attack in other],
        }
        x, y = (torch.cat(some) for some in zip(*(pictures(batch, bench.task) for batch in batches)))
        found = AutoAttack(bench.plain, norm="Linf", eps=eps, seed=0, device="cpu").run_standard_evaluation(x, y)
        adversarial = found[0] if isinstance(found, tuple) else found
        right["AutoAttack standard"] = [bench.plain(adversarial).argmax(1) == y]
        for name, each in right.items():
            print(f"ε {eps:g} worst case: {name} {100 * torch.stack(each).all(0).double().mean():.1f} %", flush=True)


def cost(bench: Bench, options: argparse.Namespace) -> None:
    """Seconds of PGD, batch by batch in turns with plain passes and with foolbox."""
    from foolbox import attacks as others

    batches, now = bench.batches(256), time.process_time

    def plain(steps: int, batch: Batch) -> None:
        x, y = pictures(batch, bench.task)
        for _ in range(steps):
            leaf = x.clone().requires_grad_()
            torch.autograd.grad(nn.functional.cross_entropy(bench.plain(leaf), y, reduction="sum"), leaf)

    def ours(steps: int, batch: Batch) -> None:
        Pgd(steps=steps)(Victim(bench.model, batch, bench.task, {"image": Threat(eps=0.1)}))

    ways: dict[str, Callable[[int, Batch], object]] = {
        "plain": plain,
        "mmkt": ours,
        "foolbox": lambda steps, batch: bench.theirs(others.LinfPGD(steps=steps), 0.1, [batch]),
    }
    for steps in (20, 40):
        found: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(options.pairs):
            spent = dict.fromkeys(ways, 0.0)
            for batch in batches:
                for name, run in ways.items():
                    start = now()
                    run(steps, batch)
                    spent[name] += now() - start
            for name, seconds in spent.items():
                found[name].append(seconds)
        for name, of in (("plain", f"{steps} forwards and backwards"), ("foolbox", f"foolbox's PGD-{steps}")):
            ratios = [a / b for a, b in zip(found["mmkt"], found[name])]
            each, fastest = ", ".join(f"{x:.3f}" for x in ratios), min(found["mmkt"]) / min(found[name])
            words = f"PGD-{steps} of mmkt takes {statistics.median(ratios):.3f} times the time of {of} ({each}"
            print(f"{words}; the fastest over the fastest {fastest:.3f})", flush=True)


def main() -> None:
    """What was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="of data.… and evaluate.…")
    parser.add_argument("--what", nargs="+", default=["parity", "carlini", "worst", "cost"], choices=list(WAYS))
    parser.add_argument("--rows", type=int, default=1000, help="of parity (1000)")
    parser.add_argument("--eps", type=float, nargs="+", default=[0.1, 0.2, 0.3], help="of parity and worst (0.1 0.2 0.3)")
    parser.add_argument("--steps", type=int, default=1000, help="of Carlini and Wagner (1000)")
    parser.add_argument("--queries", type=int, default=5000, help="of Square (5000)")
    parser.add_argument("--pairs", type=int, default=3, help="of timings (3)")
    parser.add_argument("--plugins", nargs="*", default=["scripts/plain_net"])
    parser.add_argument("--python", help="of the environment that has foolbox and pyautoattack, if it is not this one")
    options = parser.parse_args()
    if options.python:
        own = [x for k, x in enumerate(sys.argv) if "--python" not in (x, sys.argv[k - 1])]
        raise SystemExit(subprocess.call([options.python, *own]))
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    bench = Bench(options)
    for name in options.what:
        WAYS[name](bench, options)


WAYS: dict[str, Callable[[Bench, argparse.Namespace], None]] = {
    "parity": parity,
    "carlini": carlini,
    "worst": worst,
    "cost": cost,
}

if __name__ == "__main__":
    main()
