"""An index of runs: where they stand, what they reached, in what their settings differ."""

from __future__ import annotations

import json
import math
from collections import Counter
from datetime import datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from mmkt.checkpoint import CheckpointError, read_json, settle
from mmkt.report import read
from mmkt.run import flat, stage

APART = ("run",)  # settings that differ between any two runs
SHOWN = 4  # settings of a run in the table


def index(folder: Path) -> list[dict[str, Any]]:
    """The runs below a folder, oldest first.

    Returns:
        Of each: ``name``, ``date`` (when it was started), ``state``, ``figures`` (``split/task/metric`` → value), and
        ``settings``: the dotted settings that are not the same in all of them.

    Raises:
        ValueError: there is no such folder, or there are no runs in it.
        CheckpointError: a run's files are damaged.
    """
    if not folder.is_dir():
        raise ValueError(f"there is no folder {folder}: give the one that runs are written to, such as checkpoints")
    homes = sorted(file.parent for file in folder.rglob("environment.json") if (file.parent / "config.json").is_file())
    if not homes:
        raise ValueError(f"there are no runs in {folder}: a run is a folder with config.json and environment.json")
    configs = [flat(read_json(home / "config.json")) for home in homes]
    names = sorted({name for config in configs for name in config} - set(APART))
    differing = [name for name in names if len({json.dumps(config.get(name), sort_keys=True) for config in configs}) > 1]
    found = [
        {
            "name": str(home.relative_to(folder)) if home != folder else home.name,
            "date": datetime.fromtimestamp((home / "config.json").stat().st_mtime).isoformat(" ", "minutes"),
            "state": _state(home),
            "figures": _figures(home),
            "settings": {name: config.get(name) for name in differing},
        }
        for home, config in zip(homes, configs)
    ]
    return sorted(found, key=lambda one: str(one["date"]))


def show(runs: list[dict[str, Any]], console: Console) -> None:
    """Print the index as a table: of every split the first figure, and in what a run differs from most runs."""
    splits = list(dict.fromkeys(name.partition("/")[0] for one in runs for name in one["figures"]))
    usual = {
        name: Counter(json.dumps(one["settings"][name]) for one in runs).most_common(1)[0][0] for name in runs[0]["settings"]
    }
    table = Table(box=None, pad_edge=False)
    for name in ("name", "state", *splits, "settings unlike most"):
        table.add_column(Text(name, "bold"), overflow="fold")
    for one in runs:
        unlike = [(name, value) for name, value in one["settings"].items() if json.dumps(value) != usual[name]]
        own = [f"{name}={value}" for name, value in unlike if value is not None]  # None: of parts that this run lacks
        words = [*own[:SHOWN], *([f"and {len(own) - SHOWN} more (--json)"] if len(own) > SHOWN else [])]
        cells = [one["name"], f"{one['state']}\n{one['date']}", *(_first(one["figures"], split) for split in splits)]
        table.add_row(*(Text(cell) for cell in [*cells, "\n".join(words) or "–"]))
    console.print(table)


def _first(figures: dict[str, float | None], split: str) -> str:
    """The first figure of a split, with its name."""
    for name, value in figures.items():
        if name.startswith(f"{split}/") and value is not None:
            return f"{value:.4f}\n{name.removeprefix(f'{split}/')}"
    return "–"


def _state(home: Path) -> str:
    stands = stage(home, read_json(home / "config.json")["evaluate"]["split"])
    if stands == "begun":
        return "nothing saved"
    if stands == "saved":
        return f"saved at step {read_json(home / 'last/state.json')['progress']['total']}"
    return f"finished, {read_json(home / 'last/state.json')['progress']['total']} steps"


def _figures(home: Path) -> dict[str, float | None]:
    """The best checkpoint's value on validation, and its main figures on the splits that it was evaluated on."""
    found: dict[str, float | None] = {}
    best = settle(home / "last") / "state.json"
    log = home / "metrics.jsonl"
    if best.is_file() and log.is_file():
        step = read_json(best)["progress"]["best_step"]
        for number, line in enumerate(log.read_text(encoding="utf-8").splitlines(), start=1):
            try:
                values = json.loads(line)
            except ValueError:
                raise CheckpointError(f"{log}, line {number} is damaged; --resume of that run mends it") from None
            if values["step"] == step:
                found |= {name: value for name, value in values.items() if name.startswith("validation/")}
    for file in sorted(settle(home / "best").glob("evaluation-*/metrics.jsonl")):
        for row in read(file):
            if row.group == "all":
                found[f"{row.split}/{row.task}/{row.metric}"] = None if math.isnan(row.value) else row.value
    return found
