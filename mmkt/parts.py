"""The registry: the folder holds the parts, their signatures hold their settings.

``fusion: gated`` is the one public class in ``mmkt/fusion/gated.py``; its keyword-only arguments are what a config may
set. Looking a part up reads file names; only finding its class imports it.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import inspect
import re
import sys
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

# room → its abstract class in mmkt.types, by name, so that no torch is imported
ROOMS = {
    "encoders": "Encoder",
    "fusion": "Fusion",
    "heads": "Head",
    "objectives": "Objective",
    "adapters": "Adapter",
    "transfer": "Transfer",
    "averages": "Average",
    "metrics": "Metric",
    "corruptions": "Corruption",
    "attacks": "Attack",
    "data/sources": "Source",
}
HOME = Path(__file__).parent


class ConfigError(ValueError):
    """One or several mistakes in a config, each with its dotted path."""

    def __init__(self, problems: Iterable[tuple[str, str]] | str):
        self.problems = [("", problems)] if isinstance(problems, str) else list(problems)
        super().__init__("\n".join(f"{path}: {text}" if path else text for path, text in self.problems))


@dataclass(frozen=True)
class PartOf:
    """Marks a field that holds a part: ``Annotated[dict, PartOf("fusion")]``. Its value is a name, or a dict with it.

    ``extra`` is a section whose settings stand beside the part's own (an objective's weight).
    """

    room: str
    extra: type | None = None


class Parts:
    """Where parts are looked up: mmkt's own rooms, then those of the plugins that the caller turned on."""

    def __init__(self, plugins: Sequence[str] = ()):
        self.plugins = tuple(plugins)
        self.homes = {"mmkt": HOME} | {package(plugin): _folder(plugin) for plugin in self.plugins}

    def files(self, room: str) -> dict[str, tuple[str, Path]]:
        """Name → (module, file) of every part in a room; nothing is imported."""
        found: dict[str, tuple[str, Path]] = {}
        for package, home in self.homes.items():
            for file in sorted((home / room).glob("[a-z]*.py")):
                if file.stem in found:
                    raise ConfigError(
                        f"two parts are named {file.stem!r}: {found[file.stem][1]} and {file}; rename one of the files"
                    )
                found[file.stem] = (f"{package}.{room.replace('/', '.')}.{file.stem}", file)
        return found

    def find(self, room: str, name: str) -> type:
        """The class of a part. Raises ConfigError for a name that the room does not have."""
        files = self.files(room)
        if name not in files:
            where = f" (or in the plugins {', '.join(self.plugins)})" if self.plugins else ""
            raise ConfigError(f"there is no {name!r} in mmkt/{room}{where}{nearest(name, files)}; allowed: {', '.join(files)}")
        module = importlib.import_module(files[name][0])
        abstract = getattr(importlib.import_module("mmkt.types"), ROOMS[room])
        own = [c for c in vars(module).values() if inspect.isclass(c) and c.__module__ == module.__name__]
        public = [c for c in own if issubclass(c, abstract) and not c.__name__.startswith("_")]
        if len(public) != 1:
            raise ConfigError(f"{files[name][1]} should hold one public class under {ROOMS[room]}, found {len(public)}")
        return public[0]

    def build(self, room: str, spec: Mapping[str, Any], *given: Any) -> Any:
        """The part of a checked spec: what the model gives, then its settings, with parts inside it built first.

        A setting that the spec lacks, as none does that was checked, is the part's own default.
        """
        cls = self.find(room, spec["name"])
        kept = {}
        for name, (hint, _) in settings(cls).items():
            if name not in spec:
                continue
            inner = part_of(hint)
            kept[name] = self.build(inner.room, spec[name]) if inner and spec[name] is not None else spec[name]
        return cls(*given, **kept)


def settings(cls: type) -> dict[str, tuple[Any, Any]]:
    """A part's keyword-only arguments: name → (annotation, default or ``inspect.Parameter.empty``)."""
    signature = inspect.signature(cls.__init__)  # type: ignore[misc]
    hints = typing.get_type_hints(cls.__init__, include_extras=True)  # type: ignore[misc]
    return {p.name: (hints[p.name], p.default) for p in signature.parameters.values() if p.kind is p.KEYWORD_ONLY}


def strip(hint: Any) -> tuple[Any, bool]:
    """An annotation without ``| None``, and whether it had it."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        rest = [a for a in typing.get_args(hint) if a is not type(None)]
        if len(rest) == 1 and len(typing.get_args(hint)) == 2:
            return rest[0], True
    return hint, False


def part_of(hint: Any) -> PartOf | None:
    """The room that an annotation names: ``Annotated[dict, PartOf(room)]``, or a room's abstract class."""
    hint, _ = strip(hint)
    if typing.get_origin(hint) is Annotated:
        return next((m for m in typing.get_args(hint)[1:] if isinstance(m, PartOf)), None)
    if inspect.isclass(hint) and hint.__module__ == "mmkt.types":
        return next((PartOf(room) for room, abstract in ROOMS.items() if abstract == hint.__name__), None)
    return None


def package(plugin: str) -> str:
    """A plugin's package name: the last part of its path."""
    return Path(plugin).name


def _folder(plugin: str) -> Path:
    """A plugin's folder: a path, or an importable package; afterwards its package can be imported."""
    folder = Path(plugin)
    if not folder.is_dir():
        spec = importlib.util.find_spec(plugin) if re.fullmatch(r"[A-Za-z_]\w*", plugin) else None
        if spec is None or not spec.submodule_search_locations:
            raise ConfigError(
                [("plugins", f"there is no folder or package {plugin!r}; give a path, or put its parent on PYTHONPATH")]
            )
        return Path(next(iter(spec.submodule_search_locations)))
    parent = str(folder.resolve().parent)
    if parent not in sys.path:
        sys.path.append(parent)
        importlib.invalidate_caches()
    return folder


def nearest(word: object, among: Iterable[str]) -> str:
    """``; did you mean 'x'?``, or nothing."""
    close = difflib.get_close_matches(str(word), list(among), n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else ""
