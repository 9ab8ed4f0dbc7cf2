"""What every fusion is held to, ours and a plugin's: ``mmkt check-part fusion NAME``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from rich.console import Console
from rich.table import Table
from rich.text import Text

from mmkt.config import check, override
from mmkt.conformance.cases import Broken, Case
from mmkt.conformance.points import POINTS
from mmkt.conformance.processes import alone_and_together
from mmkt.conformance.tasks import solves
from mmkt.experiment import FusionOf
from mmkt.parts import Parts

__all__ = ["Broken", "Case", "Finding", "examine", "find", "show"]

TITLES = {
    1: "parameters registered, with gradient",
    2: "rows apart",
    3: "order of modalities",
    4: "padding unread",
    5: "missing as declared",
    6: "bf16 and compiled",
    7: "two processes as one",
    8: "declared facts true",
    9: "solves what it can",
}


class Finding(NamedTuple):
    """What became of one point."""

    point: int
    status: str  # "kept" or "broken"
    words: str


def find(room: str, name: str, overrides: Sequence[str] = (), plugins: Sequence[str] = ()) -> Case:
    """A fusion to examine.

    Args:
        room: ``fusion``.
        name: its name, or ``my_lab.NAME`` for one of the plugin my_lab.
        overrides: its settings, ``key=value``.
        plugins: folders or packages that it may come from.

    Raises:
        ConfigError: there is no such fusion or setting.
    """
    lab, _, name = name.rpartition(".")
    plugins = (*plugins, *([lab] if lab else []))
    parts = Parts(plugins)
    spec = check(FusionOf, {"fusion": override({"name": name}, overrides)}, parts).fusion
    return Case(name, parts.find(room, name), spec, parts=parts)


def examine(case: Case, points: Sequence[int] = tuple(TITLES)) -> list[Finding]:
    """The points in turn; 1 to 5 and 8 with every value of settings that are one of a few words, too."""
    found = []
    for point in points:
        try:
            words = _one(point, case)
        except Broken as broken:
            found.append(Finding(point, "broken", str(broken)))
        except Exception as error:  # a fusion's own: which point it came from is what its author needs
            found.append(Finding(point, "broken", f"{type(error).__name__}: {error}"))
        else:
            found.append(Finding(point, "kept", words))
    return found


def _one(point: int, case: Case) -> str:
    if point == 7:
        fault = alone_and_together([case])[case.name]
        if fault:
            raise Broken(fault)
        return ""
    if point == 9:
        return solves(case)
    remarks = []
    for variant in case.variants() if point != 6 else [case]:
        try:
            remarks.append(POINTS[point](variant))
        except Broken as broken:
            raise Broken(f"{variant.about}: {broken}" if variant.about else str(broken)) from None
    return "; ".join(dict.fromkeys(filter(None, remarks)))


def show(case: Case, findings: Sequence[Finding]) -> None:
    """On standard output, a line a point."""
    table = Table(title=case.name, title_justify="left", box=None, show_header=False, pad_edge=False)
    for finding in findings:
        colour = {"kept": "green", "broken": "red"}[finding.status]
        table.add_row(str(finding.point), TITLES[finding.point], Text(finding.status, colour), Text(finding.words))
    Console().print(table)
