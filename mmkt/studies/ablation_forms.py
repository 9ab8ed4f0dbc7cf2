"""An ablation's tables in other forms: LaTeX, CSV, JSON."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from typing import Any

from mmkt.report import Sheet
from mmkt.studies import pages
from mmkt.studies.ablation_results import Results

SPECIAL = {"&": r"\&", "%": r"\%", "_": r"\_", "#": r"\#", "$": r"\$", "−": "$-$", "–": "--", "×": r"$\times$"}


def tex(sheet: Sheet) -> str:
    """A table as LaTeX (booktabs)."""

    def cells(row: Sequence[str]) -> str:
        return " & ".join("".join(SPECIAL.get(c, c) for c in cell) for cell in row) + r" \\"

    columns = "l" * sheet.names + "r" * (len(sheet.headings) - sheet.names)
    body = "\n".join(cells(row) for row in sheet.rows)
    title = "".join(SPECIAL.get(c, c) for c in sheet.title)
    head = f"\\begin{{table}}\n\\caption{{{title}}}\n\\begin{{tabular}}{{{columns}}}\n\\toprule\n"
    return f"{head}{cells(sheet.headings)}\n\\midrule\n{body}\n\\bottomrule\n\\end{{tabular}}\n\\end{{table}}\n"


def as_csv(results: Results) -> str:
    """Every line as CSV."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    names = ["data", "modalities", "label", "lr", "mean", "deviation", "low", "high", "seeds", "difference", "difference_low"]
    names += ["difference_high", "p", "p_holm", "effect", "seeds_needed", "verdict", "trained", "flops", "step_s", "memory_bytes"]
    writer.writerow(names)
    for task, lines in results.lines.items():
        for line in lines:
            d, c = line.against, line.cost
            against = [d.mean, d.low, d.high, d.p, line.p, d.effect, d.needed, line.verdict] if d else [""] * 8
            cost = [c.trained, c.flops, c.step, c.memory] if c else [""] * 4
            seeds = " ".join(f"{x:.6g}" for x in line.values)
            own = [line.lr, line.mean, line.deviation, line.low, line.high, seeds]
            writer.writerow([task.data, "+".join(task.modalities), line.cell.label, *own, *against, *cost])
    return stream.getvalue()


def as_json(results: Results) -> dict[str, Any]:
    """Plain data; what is not a finite number is null."""
    lines = [pages.plain(line) | {"verdict": line.verdict} for some in results.lines.values() for line in some]
    return {
        "baseline": results.study.baseline,
        "lines": lines,
        "ranks": pages.plain(results.ranks),
        "encoders": results.origins,
        "tried": results.tried,
        "failed": pages.plain(results.failed),
        "unfinished": pages.plain(results.unfinished),
    }
