"""How plots look, and figures as SVG that stands inside a page."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

# Okabe and Ito (2008): told apart by colour-blind readers too
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
STYLE: Any = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "svg.hashsalt": "mmkt",
    "svg.fonttype": "none",
}


def svg(figure: Figure) -> str:
    """A figure as text, the same for the same figures."""
    stream = io.StringIO()
    with mpl.rc_context(STYLE):
        figure.savefig(stream, format="svg", bbox_inches="tight", metadata={"Date": None, "Creator": None})
    text = stream.getvalue()
    return re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)


def panels(names: Sequence[str], columns: int = 3, width: float = 2.9, height: float = 2.3) -> tuple[Figure, dict[str, Any]]:
    """A figure of small plots that share their y axis, and the axes of each by its name."""
    columns = min(columns, len(names))
    rows = math.ceil(len(names) / columns)
    figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
    grid = figure.subplots(rows, columns, sharey=True, squeeze=False)
    for unused in grid.flat[len(names) :]:
        unused.set_axis_off()
    return figure, dict(zip(names, grid.flat))
