"""What parts there are, read from their files without importing them."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from mmkt.parts import ROOMS, ConfigError, Parts, nearest


def catalogue(room: str | None = None, parts: Parts | None = None) -> dict[str, dict[str, dict[str, Any]]]:
    """Room → part → first docstring line, declared facts (literals), and settings as they are written.

    Raises:
        ConfigError: there is no such room.
    """
    if room is not None and room not in ROOMS:
        raise ConfigError(f"there is no room {room!r}{nearest(room, ROOMS)}; allowed: {', '.join(ROOMS)}")
    files = parts or Parts()
    return {r: {name: _describe(file) for name, (_, file) in files.files(r).items()} for r in ([room] if room else ROOMS)}


def _describe(file: Path) -> dict[str, Any]:
    tree = ast.parse(file.read_text(encoding="utf-8"))
    part = next(node for node in tree.body if isinstance(node, ast.ClassDef) and not node.name.startswith("_"))
    facts, settings = {}, {}
    for node in part.body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            try:
                facts[node.targets[0].id] = ast.literal_eval(node.value)
            except ValueError:
                continue
        if isinstance(node, ast.FunctionDef) and node.name == "__init__":
            for argument, default in zip(node.args.kwonlyargs, node.args.kw_defaults):
                settings[argument.arg] = "required" if default is None else ast.unparse(default)
    return {"about": (ast.get_docstring(part) or "").split("\n")[0], "facts": facts, "settings": settings}


def show(found: dict[str, dict[str, dict[str, Any]]]) -> None:
    """On standard output: a block a room, a part's facts and settings under its first line."""
    console = Console()
    for room, named in found.items():
        console.print(Text(room, "bold cyan"))
        lines = Table(box=None, pad_edge=False, padding=(0, 1), show_header=False)
        for name, part in named.items():
            lines.add_row(Text(name, "bold"), Text(part["about"]))
            for key in ("facts", "settings"):
                if part[key]:
                    lines.add_row("", Text(f"{key}: " + ", ".join(f"{k}={_short(v)}" for k, v in part[key].items()), "dim"))
        console.print(lines, "")


def _short(value: Any) -> str:
    return "/".join(map(str, value)) if isinstance(value, (tuple, list)) else str(value)
