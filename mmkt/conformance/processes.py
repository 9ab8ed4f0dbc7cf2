"""Point 7: two processes give what one gives, in one job for all fusions.

``python -m torch.distributed.run --nproc_per_node 2 -m mmkt.conformance.processes FOLDER`` is the job.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from mmkt import distributed
from mmkt.conformance.cases import CLASSES, Broken, Case, Whole, pick, rows, same, together
from mmkt.parts import Parts
from mmkt.types import Encoded

ROWS, STEPS, RATE = 8, 2, 0.05


def alone_and_together(cases: Sequence[Case]) -> dict[str, str | None]:
    """By name, how a fusion breaks the point, or None: two steps of two processes against the same of one.

    Every second row goes to the second process, and none of its rows has the second modality. One that draws at random in
    training is compared in evaluation.
    """
    with tempfile.TemporaryDirectory() as folder:
        told = [{"name": case.name, "spec": dict(case.spec), "plugins": list(case.parts.plugins)} for case in cases]
        Path(folder, "cases.json").write_text(json.dumps(told), encoding="utf-8")
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
        paths = os.pathsep.join(filter(None, [str(Path.cwd()), os.environ.get("PYTHONPATH")]))
        job = subprocess.run(
            [*command, "-m", "mmkt.conformance.processes", folder],
            env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": paths},
            capture_output=True,
            text=True,
            check=False,
        )
        written = Path(folder, "faults.json")
        # it is written when both have all cases behind them; after that a process can still abort while torch's threads end
        if job.returncode and not written.is_file():
            raise RuntimeError(f"the job of two processes failed:\n{job.stderr[-3000:]}")
        faults = json.loads(written.read_text(encoding="utf-8"))
        return {case.name: faults.get(case.name) or _compared(case, Path(folder)) for case in cases}


def _compared(case: Case, folder: Path) -> str | None:
    one, two = _trained(case), load_file(folder / f"{case.name}.safetensors")
    try:
        for name, tensor in one.items():
            same(tensor, two[name], f"in two processes {name}")
    except Broken as broken:
        return str(broken)
    return None


def _start(case: Case) -> tuple[Whole, dict[str, Encoded], dict[str, Tensor]]:
    """The whole in the mode that it is compared in, all rows and labels: the same in every process."""
    whole = case.build().train()
    parts = rows(tuple(whole.space.modalities), ROWS)
    deaf = list(parts)[1]
    parts[deaf] = parts[deaf]._replace(present=parts[deaf].present & (torch.arange(ROWS) % 2 == 0))
    found = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        found.append(together(*whole.fuse(parts, ROWS)).detach())
    whole.train(torch.equal(*found))
    generator = torch.Generator().manual_seed(3)
    return whole, parts, {t: torch.randint(n, (ROWS,), generator=generator) for t, n in CLASSES.items()}


def _loss(module: nn.Module, case: Case, parts: dict[str, Encoded], labels: dict[str, Tensor]) -> Tensor:
    """As the learner makes it: sums over the global count, times the processes, and the local terms."""
    number = len(next(iter(labels.values())))
    logits, terms = module(parts, number)
    summed = sum(F.cross_entropy(x, labels[task], reduction="sum") for task, x in logits.items())
    return distributed.world_size() * summed / ROWS + sum(case.cls.terms.get(name, 1.0) * x for name, x in terms.items())


def _trained(case: Case) -> dict[str, Tensor]:
    """Parameters after the steps; in a job of two, from this process's half of the rows."""
    whole, parts, labels = _start(case)
    world, mine = distributed.world_size(), torch.arange(distributed.rank(), ROWS, distributed.world_size())
    parts, labels = pick(parts, mine), {task: y[mine] for task, y in labels.items()}
    module: nn.Module = whole
    if world > 1:
        _refuse_unreached(whole, case, parts, labels)
        module = DistributedDataParallel(whole)
    optimizer = torch.optim.SGD(whole.parameters(), RATE)
    for _ in range(STEPS):
        optimizer.zero_grad()
        _loss(module, case, parts, labels).backward()
        optimizer.step()
    return {name: p.detach().clone() for name, p in whole.named_parameters()}


def _refuse_unreached(whole: Whole, case: Case, parts: dict[str, Encoded], labels: dict[str, Tensor]) -> None:
    """What DDP would stop at in its second step, on every process at once."""
    _loss(whole, case, parts, labels).backward()
    missed = [name for name, p in whole.named_parameters() if p.grad is None]
    every = [name for names in distributed.everyone(missed) for name in names]
    if every:
        raise Broken(f"{every[0]} receives no gradient in a process whose rows all lack a modality: DDP would stop there")


def main(folder: Path) -> None:
    """This process's part of the job."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    faults = {}
    for told in json.loads((folder / "cases.json").read_text(encoding="utf-8")):
        parts = Parts(told["plugins"])
        case = Case(told["name"], parts.find("fusion", told["name"]), told["spec"], parts=parts)
        fault, found = None, {}
        try:
            found = _trained(case)
        except Exception as error:
            fault = str(error) if isinstance(error, Broken) else f"{type(error).__name__}: {error}"
        fault = next(filter(None, distributed.everyone(fault)), None)
        if fault:
            faults[case.name] = fault
        elif distributed.rank() == 0:
            save_file(found, folder / f"{case.name}.safetensors")
    if distributed.rank() == 0:
        (folder / "faults.json").write_text(json.dumps(faults), encoding="utf-8")
    distributed.wait()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
