"""Configs: YAML with bases and dotted overrides, checked against sections and the parts' own signatures.

The folder is the registry: ``fusion: gated`` is the one public class in ``mmkt/fusion/gated.py``. The signature is the
schema: a part's keyword-only arguments are what a config may set. This is the only file that knows YAML and pydantic's
inner workings. Importing it imports no torch; checking a part imports that part.
"""

from __future__ import annotations

import copy
import inspect
import json
import math
import re
import typing
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from mmkt.parts import ConfigError, PartOf, Parts, nearest, package, part_of, settings, strip

FORMAT = 1
# (format it was renamed in, old dotted path, new dotted path): applied to configs of an older format.
RENAMES: list[tuple[int, str, str]] = []
S = TypeVar("S", bound="Section")


class Section(BaseModel):
    """A block of settings: annotated fields with defaults; a docstring under a field describes it."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)


# ---------------------------------------------------------------- reading


class _Loader(yaml.SafeLoader):
    """Safe YAML that refuses a key given twice."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        twice = {str(key) for key in keys if keys.count(key) > 1}
        if twice:
            raise yaml.constructor.ConstructorError(None, None, f"given twice: {', '.join(sorted(twice))}", node.start_mark)
        return super().construct_mapping(node, deep)


# as YAML 1.2 has it: no, off, yes and on are words ("train.precision=no")
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in known if tag != "tag:yaml.org,2002:bool" or first in "tTfF"]
    for first, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def _yaml(text: str, where: str) -> Any:
    try:
        return yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        raise ConfigError(f"{where} is not valid YAML: {' '.join(str(error).split())}") from None


def _json(text: str, where: str) -> Any:
    """Faster by far than the same text as YAML."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        twice = sorted(key for key, number in Counter(key for key, _ in pairs).items() if number > 1)
        if twice:
            raise ConfigError(f"{where}: given twice: {', '.join(twice)}")
        return dict(pairs)

    try:
        return json.loads(text, object_pairs_hook=once)
    except json.JSONDecodeError as error:
        raise ConfigError(f"{where} is not valid JSON: {error}") from None


def merge(old: Any, new: Any) -> Any:
    """Lay ``new`` over ``old``: dicts merge by key, but a part of another ``name`` replaces the old part whole."""
    if isinstance(old, dict) and "name" in old and isinstance(new, str):
        return old if old["name"] == new else {"name": new}
    if isinstance(old, str) and isinstance(new, dict) and "name" not in new:
        return {"name": old, **new}
    if not (isinstance(old, dict) and isinstance(new, dict)):
        return new
    if "name" in new and new["name"] != old.get("name", new["name"]):
        return new
    return old | {key: merge(old[key], value) if key in old else value for key, value in new.items()}


def load(path: Path | str, _seen: tuple[Path, ...] = ()) -> dict[str, Any]:
    """A YAML (or JSON) file with its ``base`` files below it; paths in ``base`` start at the file's folder."""
    path = Path(path)
    if path.resolve() in _seen:
        raise ConfigError(f"{path}: its base leads back to itself")
    if not path.is_file():
        among = [str(p) for p in path.parent.glob("*.yaml")] if path.parent.is_dir() else []
        raise ConfigError(f"there is no config {path}{nearest(path, among)}")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise ConfigError(f"{path} is not UTF-8 text") from None
    own = _json(text, str(path)) if path.suffix == ".json" else _yaml(text, str(path)) or {}
    if not isinstance(own, dict):
        raise ConfigError(f"{path} should hold settings (key: value), found {type(own).__name__}")
    bases = own.pop("base", [])
    merged: dict[str, Any] = {}
    for base in [bases] if isinstance(bases, str) else bases:
        merged = merge(merged, load(path.parent / base, (*_seen, path.resolve())))
    return merge(merged, own)


def override(data: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Lay ``a.b=value`` (YAML values) over a config."""
    for text in overrides:
        path, equals, value = text.partition("=")
        if not equals or not path:
            raise ConfigError(f"an override looks like train.lr=3e-4, found {text!r}")
        nested: Any = _yaml(value, f"the value of {path}")
        for key in reversed(path.split(".")):
            nested = {key: nested}
        data = merge(data, nested)
    return data


def written(value: Any) -> str:
    """A value as it is typed after ``key=``: ``override`` reads the same value from it."""
    text = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, sort_keys=False, width=math.inf)
    return text.removesuffix("\n").removesuffix("\n...")


# ---------------------------------------------------------------- checking


def fields_of(section: type[Section]) -> dict[str, tuple[Any, Any]]:
    """A section's settings, in the form of ``settings``."""

    def default(field: FieldInfo) -> Any:
        return inspect.Parameter.empty if field.is_required() else field.get_default(call_default_factory=True)

    hints = typing.get_type_hints(section, include_extras=True)
    return {name: (hints[name], default(field)) for name, field in section.model_fields.items()}


def is_nested(hint: Any) -> bool:
    """Whether an annotation is a part or a section, which the check walks into."""
    inner, _ = strip(hint)
    return bool(part_of(inner)) or (inspect.isclass(inner) and issubclass(inner, Section))


def plain(value: Any) -> Any:
    """A default as a config file would write it."""
    return value.model_dump() if isinstance(value, BaseModel) else list(value) if isinstance(value, tuple) else value


class _Check:
    """Walks data and annotations together and gathers every mistake."""

    def __init__(self, parts: Parts, section: type[Section]):  # of the whole file
        self.parts, self.whole = parts, section
        self.problems: list[tuple[str, str]] = []

    def wrong(self, path: str, text: str) -> None:
        self.problems.append((path, text))

    def value(self, hint: Any, value: Any, path: str) -> Any:
        inner, optional = strip(hint)
        part = part_of(inner)
        if value is None and optional:
            return None
        if part:
            return self.part(part, value, path)
        if inspect.isclass(inner) and issubclass(inner, Section):
            return self.section(inner, value, path)
        if typing.get_origin(inner) is dict and is_nested(typing.get_args(inner)[1]):
            return self.named(typing.get_args(inner)[1], value, path)
        if typing.get_origin(inner) is dict and isinstance(value, Mapping):
            value = {key: x for key, x in value.items() if x is not None}  # key=null takes away what a base put there
        return self.leaf(hint, value, path)

    def leaf(self, hint: Any, value: Any, path: str) -> Any:
        try:
            found = TypeAdapter(hint).validate_python(value)
        except ValidationError as error:
            for e in error.errors():
                inner = ".".join([path, *(str(part) for part in e["loc"] if isinstance(part, int))])
                allowed = re.findall(r"'([^']+)'", e["msg"]) if e["type"] == "literal_error" else []
                text = e["msg"].removeprefix("Input ").removeprefix("Value error, ")
                self.wrong(inner, f"{text[0].lower()}{text[1:]}, found {e['input']!r}{nearest(e['input'], allowed)}")
            return value
        if isinstance(value, bool) and type(found) in (int, float):
            self.wrong(path, f"should be a number, found {value!r}")
        return found

    def block(self, fields: Mapping[str, tuple[Any, Any]], value: Mapping[str, Any], path: str) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key in value:
            if key not in fields:
                elsewhere = [place for place in _places(self.whole) if place.rpartition(".")[2] == key]
                hint = f"; did you mean {elsewhere[0]}?" if elsewhere else nearest(key, fields)
                allowed = f"; allowed: {', '.join(fields)}" if fields else "; it has no settings"
                self.wrong(_join(path, key), f"there is no setting {key!r}{hint}{allowed}")
        for key, (hint, default) in fields.items():
            if key in value:
                found[key] = self.value(hint, value[key], _join(path, key))
            elif default is inspect.Parameter.empty:
                self.wrong(_join(path, key), "is required")
            else:
                found[key] = self.value(hint, plain(default), _join(path, key))
        return found

    def section(self, section: type[Section], value: Any, path: str) -> Any:
        if isinstance(value, Section):
            value = value.model_dump()
        if not isinstance(value, Mapping):
            self.wrong(path, f"should hold settings ({', '.join(section.model_fields)}), found {value!r}")
            return None
        return section.model_construct(**self.block(fields_of(section), value, path))

    def named(self, hint: Any, value: Any, path: str) -> dict[str, Any]:
        if not isinstance(value, Mapping):
            self.wrong(path, f"should be a mapping from names, found {value!r}")
            return {}
        part, found = part_of(hint), {}
        for key, inner in value.items():
            if inner is None:  # key=null takes away what a base put there
                continue
            if part and isinstance(inner, Mapping) and "name" not in inner and key in self.parts.files(part.room):
                inner = {"name": key, **inner}
            found[str(key)] = self.value(hint, inner, _join(path, key))
        return found

    def part(self, part: PartOf, value: Any, path: str) -> dict[str, Any]:
        spec = {"name": value} if isinstance(value, str) else value
        if not isinstance(spec, Mapping) or not isinstance(spec.get("name"), str):
            allowed = ", ".join(self.parts.files(part.room))
            self.wrong(path, f"should be a name or {{name: …, settings}}, found {value!r}; allowed: {allowed}")
            return {}
        try:
            cls = self.parts.find(part.room, spec["name"])
        except ConfigError as error:
            self.wrong(path, error.problems[0][1])
            return {}
        fields = settings(cls) | (fields_of(part.extra) if part.extra else {})
        return {"name": spec["name"]} | self.block(fields, {k: v for k, v in spec.items() if k != "name"}, path)


def _places(section: type[Section], path: str = "") -> Iterator[str]:
    """The dotted paths of a section's settings, those of the sections in it included."""
    for name, (hint, _) in fields_of(section).items():
        yield _join(path, name)
        inner, _ = strip(hint)
        if inspect.isclass(inner) and issubclass(inner, Section):
            yield from _places(inner, _join(path, name))


def _join(path: str, key: object) -> str:
    return f"{path}.{key}" if path else str(key)


def _renamed(data: dict[str, Any]) -> dict[str, Any]:
    """Check the format number, and carry a config of an older format over."""
    number = data.get("format", FORMAT)
    if not isinstance(number, int) or not 1 <= number <= FORMAT:
        raise ConfigError([("format", f"this mmkt reads formats 1 to {FORMAT}, found {number!r}; install a newer mmkt")])
    data = copy.deepcopy(data)
    for since, old, new in RENAMES:
        *folders, leaf = old.split(".")
        place: Any = data
        for key in folders:
            place = place.get(key) if isinstance(place, dict) else None
        if number < since and isinstance(place, dict) and leaf in place:
            moved = place.pop(leaf)
            for key in reversed(new.split(".")):
                moved = {key: moved}
            data = merge(data, moved)
    return data | {"format": FORMAT}


def check(section: type[S], data: Mapping[str, Any], parts: Parts) -> S:
    """Data as a section with every default written out, or one ConfigError that lists all mistakes."""
    walk = _Check(parts, section)
    found = walk.section(section, data, "")
    if walk.problems:
        raise ConfigError(walk.problems)
    return found


def read(section: type[S], path: Path | str, overrides: Sequence[str] = (), plugins: Sequence[str] = ()) -> S:
    """A checked config from a file and dotted overrides; its own ``plugins`` are turned on beside those given."""
    data = _renamed(override(load(path), overrides))
    named = data.get("plugins", [])
    if not isinstance(named, list) or not all(isinstance(plugin, str) for plugin in named):
        raise ConfigError([("plugins", f"should be a list of folders or packages, found {named!r}")])
    return check(section, data, Parts([*named, *(p for p in plugins if p not in named)]))


def revive(section: type[S], data: dict[str, Any], plugins: Sequence[str] = ()) -> S:
    """A checked config from a checkpoint: data, which turns nothing on. ``plugins`` come from the caller alone."""
    data = _renamed(data)
    unknown = [p for p in data.get("plugins", []) if package(p) not in map(package, plugins)]
    if unknown:
        raise ConfigError(
            f"this checkpoint was trained with the plugins {', '.join(unknown)}, whose code loading would run; "
            f"if you trust them, load it with plugins={unknown} (on the command line --plugins {' '.join(unknown)})"
        )
    return check(section, data, Parts(plugins))


def dump(config: Section) -> str:
    """A config as JSON text; ``revive`` of it gives the same config."""
    return json.dumps(config.model_dump(mode="json"), indent=2, ensure_ascii=False) + "\n"
