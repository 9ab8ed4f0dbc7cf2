"""Pieces of one page of HTML that needs nothing beside itself."""

from __future__ import annotations

import base64
import html
from collections.abc import Iterable, Sequence

from matplotlib.figure import Figure

from mmkt.plots import svg
from mmkt.report import Sheet

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
table { border-collapse: collapse; margin: .5rem 0 1rem; font-size: 13px; display: block; overflow-x: auto }
th, td { padding: .2rem .7rem .2rem 0; text-align: right; white-space: nowrap; border-bottom: 1px solid #ddd }
.name { text-align: left }
figure { margin: 1rem 0; overflow-x: auto } figcaption { font-weight: 600 }
svg { max-width: 100%; min-width: 20rem; height: auto }
nav a { margin-right: 1rem } .note { color: #666; font-size: 13px }
.cards { display: flex; flex-wrap: wrap; gap: .6rem; align-items: flex-start; margin: .3rem 0 1rem }
.card { border: 1px solid #ccc; border-radius: 6px; padding: .5rem; width: 10.5rem; font-size: 12px; overflow-wrap: anywhere }
.card p { margin: .2rem 0 } .card audio { width: 100%; height: 2rem } .right { border: 2px solid #009E73 }
.card img { max-width: 100%; min-width: 4rem; image-rendering: pixelated; background: #eee } .asked { background: #f4f6f8 }
"""


def whole(title: str, body: Iterable[str]) -> str:
    """The page."""
    head = '<meta charset="utf-8"><meta name="viewport" content="width=device-width"><link rel="icon" href="data:,">'
    style, title = f"<style>{STYLE}</style>", html.escape(title)
    text = "\n".join(body)
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head>{head}<title>{title}</title>{style}</head><body>\n<h1>{title}</h1>\n{text}\n'
        "</body></html>\n"
    )


def paragraph(text: str, kind: str = "") -> str:
    """A paragraph of plain text, of a class of the style."""
    return f'<p class="{kind}">{html.escape(text)}</p>' if kind else f"<p>{html.escape(text)}</p>"


def heading(text: str, anchor: str) -> str:
    """A section's heading that links lead to."""
    return f'<h2 id="{html.escape(anchor)}">{html.escape(text)}</h2>'


def links(anchors: Sequence[tuple[str, str]]) -> str:
    """Links to sections: (text, anchor) each."""
    return "<nav>" + " ".join(f'<a href="#{html.escape(a)}">{html.escape(text)}</a>' for text, a in anchors) + "</nav>"


def table(sheet: Sheet, level: int = 2) -> str:
    """A table under its title."""

    def line(cells: Sequence[str], kind: str) -> str:
        texts = [f'<{kind} class="name">' if k < sheet.names else f"<{kind}>" for k in range(len(cells))]
        return "<tr>" + "".join(f"{start}{html.escape(cell)}</{kind}>" for start, cell in zip(texts, cells)) + "</tr>"

    rows = "".join(line(row, "td") for row in sheet.rows)
    notes = "".join(paragraph(note) for note in sheet.notes)
    return f"<h{level}>{html.escape(sheet.title)}</h{level}><table>{line(sheet.headings, 'th')}{rows}</table>{notes}"


def figure(caption: str, drawn: Figure) -> str:
    """A plot under its caption."""
    return f"<figure><figcaption>{html.escape(caption)}</figcaption>{svg(drawn)}</figure>"


def picture(data: bytes, kind: str, alt: str) -> str:
    """A picture's file, inside the page."""
    return f'<img alt="{html.escape(alt)}" src="{_inside(data, kind)}">'


def sound(data: bytes, kind: str) -> str:
    """A sound's file, inside the page."""
    return f'<audio controls preload="none" src="{_inside(data, kind)}"></audio>'


def _inside(data: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def card(parts: Iterable[str], *kinds: str) -> str:
    """A small frame of several pieces; kinds: ``right``, ``asked``."""
    return f'<div class="{" ".join(("card", *kinds))}">{"".join(parts)}</div>'


def cards(parts: Iterable[str]) -> str:
    """Frames side by side."""
    return f'<div class="cards">{"".join(parts)}</div>'
