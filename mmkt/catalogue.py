"""What parts there are, read from their files without importing them."""

from __future__ import annotations

import ast
import inspect
import re
from contextlib import suppress
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from mmkt.parts import HOME, ROOMS, ConfigError, Parts, nearest

# facts that are worth a column each, by room; the others' parts show theirs in a line
COLUMNS = {"fusion": ("arity", "level", "symmetric", "missing", "interacts", "identity_at_start", "cost")}


def catalogue(room: str | None = None, parts: Parts | None = None) -> dict[str, dict[str, dict[str, Any]]]:
    """Room → part → ``about`` (its first docstring line), ``facts`` (literals), ``settings`` as written, ``text``.

    Raises:
        ConfigError: there is no such room.
    """
    if room is not None and room not in ROOMS:
        raise ConfigError(f"there is no room {room!r}{nearest(room, ROOMS)}; allowed: {', '.join(ROOMS)}")
    files = parts or Parts()
    return {r: _room(r, files) for r in ([room] if room else ROOMS)}


def _room(room: str, parts: Parts) -> dict[str, dict[str, Any]]:
    usual = _facts(_class(HOME / "types.py", ROOMS[room])) if room in COLUMNS else {}
    return {name: _describe(file, usual) for name, (_, file) in parts.files(room).items()}


def one(room: str, name: str, parts: Parts | None = None) -> dict[str, Any]:
    """A part as ``catalogue`` has it.

    Raises:
        ConfigError: there is no such room or part.
    """
    found = catalogue(room, parts)[room]
    if name not in found:
        raise ConfigError(f"there is no {name!r} in mmkt/{room}{nearest(name, found)}; allowed: {', '.join(found)}")
    return found[name]


def _describe(file: Path, usual: dict[str, Any]) -> dict[str, Any]:
    part = _class(file)
    settings = {}
    for node in part.body:
        if isinstance(node, ast.FunctionDef) and node.name == "__init__":
            for argument, default in zip(node.args.kwonlyargs, node.args.kw_defaults):
                settings[argument.arg] = "required" if default is None else ast.unparse(default)
    text = inspect.cleandoc(ast.get_docstring(part) or "")
    return {"about": text.split("\n")[0], "facts": usual | _facts(part), "settings": settings, "text": text}


def _class(file: Path, name: str | None = None) -> ast.ClassDef:
    """A file's first public class, or the one of a name."""
    classes = [node for node in ast.parse(file.read_text(encoding="utf-8")).body if isinstance(node, ast.ClassDef)]
    return next(node for node in classes if (node.name == name if name else not node.name.startswith("_")))


def _facts(part: ast.ClassDef) -> dict[str, Any]:
    """What a class body sets to a literal: plainly, or as a ClassVar."""
    found = {}
    for node in part.body:
        if isinstance(node, ast.Assign):
            target, value = node.targets[0], node.value
        elif isinstance(node, ast.AnnAssign) and node.value and ast.unparse(node.annotation).startswith("ClassVar"):
            target, value = node.target, node.value
        else:
            continue
        if isinstance(target, ast.Name):
            with suppress(ValueError):  # no literal, no fact
                found[target.id] = ast.literal_eval(value)
    return found


def show(found: dict[str, dict[str, dict[str, Any]]]) -> None:
    """On standard output: a block a room, a table of facts or a part's facts and settings under its first line."""
    console = Console()
    for room, named in found.items():
        console.print(Text(room, "bold cyan"))
        if len(found) == 1 and room in COLUMNS:
            _tabulate(named, COLUMNS[room], console)
            console.print(Text(f"mmkt list {room} NAME: one of them, its settings and formulas", "dim"))
            continue
        lines = Table(box=None, pad_edge=False, padding=(0, 1), show_header=False)
        for name, part in named.items():
            lines.add_row(Text(name, "bold"), Text(part["about"]))
            for key in ("facts", "settings"):
                if part[key] and not (key == "facts" and room in COLUMNS):
                    lines.add_row("", Text(f"{key}: " + ", ".join(f"{k}={_short(v)}" for k, v in part[key].items()), "dim"))
        console.print(lines, "")


def _tabulate(named: dict[str, dict[str, Any]], columns: tuple[str, ...], console: Console) -> None:
    table = Table(box=None, pad_edge=False)
    for column in ("", *columns):
        table.add_column(column.partition("_")[0], no_wrap=column != columns[-1], overflow="fold")
    for name, part in named.items():
        table.add_row(Text(name, "bold"), *(Text(_short(part["facts"].get(column, "?"))) for column in columns))
    console.print(table)


def show_one(name: str, part: dict[str, Any]) -> None:
    """On standard output: a part's docstring, facts and settings."""
    console = Console()
    paragraphs = re.split(r"\n\s*\n", part["text"])
    console.print(Text(name, "bold cyan"), *(" ".join(p.split()) + "\n" for p in paragraphs), sep="\n", markup=False)
    for key in ("facts", "settings"):
        if part[key]:
            lines = Table(box=None, pad_edge=False, padding=(0, 1), show_header=False)
            for fact, value in part[key].items():
                lines.add_row(Text(fact, "bold"), Text(_short(value)))
            console.print(Text(key, "cyan"), lines, "", sep="\n")


def _short(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):
        return ", ".join(f"{name} {x}" for name, x in value.items()) or "none"
    return "/".join(map(str, value)) or "none" if isinstance(value, (tuple, list)) else str(value)
