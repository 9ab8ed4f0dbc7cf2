"""What the reports of all studies share: the files in a folder, the terminal, plain data, differences in words."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from rich.console import Console
from rich.text import Text

from mmkt import page, report
from mmkt.checkpoint import settle, write_json
from mmkt.experiment import Data, Train
from mmkt.report import Sheet
from mmkt.statistics import Difference
from mmkt.types import Row


def write(
    folder: Path, title: str, words: Sequence[str], sheets: Sequence[Sheet], figures: Mapping[str, Figure], data: dict[str, Any]
) -> Path:
    """``report.md``, ``report.html`` and ``results.json`` in a study's folder.

    Args:
        folder: made if need be.
        title: of the page.
        words: a paragraph each, before the tables.
        sheets: the tables.
        figures: by caption, after the tables; on the page alone.
        data: what ``results.json`` holds.

    Returns:
        The page's path.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lines = [f"# {title}", "", *(f"{text}\n" for text in words)]
    body = [page.paragraph(text) for text in words]
    for sheet in sheets:
        lines += [f"## {sheet.title}", "", *report.markdown(sheet), ""]
        body.append(page.table(sheet))
    body += [page.figure(caption, figure) for caption, figure in figures.items()]
    (folder / "report.md").write_text("\n".join(lines).rstrip() + "\n", encoding="utf-8")
    (folder / "report.html").write_text(page.whole(title, body), encoding="utf-8")
    write_json(folder / "results.json", data)
    return folder / "report.html"


def show(words: Sequence[str], sheets: Iterable[Sheet], console: Console) -> None:
    """Print what a report says, its tables first."""
    report.show(sheets, console)
    for text in words:
        console.print(Text(text))


def gather_rows(runs: Iterable[Path], split: str, study: Path) -> None:
    """Every figure of some runs' best checkpoints, as ``mmkt train`` writes them, into the study's ``metrics.jsonl``."""
    (study / "metrics.jsonl").unlink(missing_ok=True)
    report.append(_rows(runs, split, study.name), study / "metrics.jsonl")


def _rows(runs: Iterable[Path], split: str, study: str) -> Iterator[Row]:
    for run in runs:
        for row in report.read(settle(run / "best") / f"evaluation-{split}" / "metrics.jsonl"):
            yield row._replace(run=run.name, study=study)


def plain(value: Any) -> Any:
    """Named tuples, arrays and dicts as JSON has them; what is not a finite number is null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if hasattr(value, "_asdict"):
        return plain(value._asdict())
    if isinstance(value, dict):
        return {str(key): plain(x) for key, x in value.items()}
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    return [plain(x) for x in value] if isinstance(value, (list, tuple)) else value


def difference(what: Difference) -> str:
    """With its interval, where it has one."""
    return f"{what.mean:+.3f}" + ("" if math.isnan(what.low) else f" ({what.low:+.3f} to {what.high:+.3f})")


def budget(train: Train, data: Data) -> str:
    """How long every training of a study was."""
    length = f"{train.steps} steps" if train.steps else f"{train.epochs:g} epoch{'s' * (train.epochs != 1)}"
    most = "" if data.tokens is None else f"{data.tokens} units of {data.group_by_length}, and no more than "
    return f"{length} of {most}{data.batch_size} rows"
