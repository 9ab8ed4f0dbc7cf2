"""JSON schema of config files, for editors, from the same sections and signatures that check them."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, TypeAdapter

from mmkt.config import Section, fields_of, is_nested, plain
from mmkt.parts import PartOf, Parts, part_of, settings, strip


def schema(section: type[Section], parts: Parts) -> dict[str, Any]:
    """JSON schema (2020-12) of a config file, for editors; imports every part."""
    body = _block_schema(fields_of(section), parts, {name: f.description for name, f in section.model_fields.items()})
    body["properties"]["base"] = {
        "type": ["string", "array"],
        "items": {"type": "string"},
        "description": "Files below this one.",
    }
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "mmkt", **body}


def _block_schema(fields: Mapping[str, tuple[Any, Any]], parts: Parts, about: Mapping[str, str | None]) -> dict[str, Any]:
    properties = {}
    for name, (hint, default) in fields.items():
        properties[name] = _schema(hint, parts)
        if about.get(name):
            properties[name] |= {"description": about[name]}
        if default is not inspect.Parameter.empty and not isinstance(default, BaseModel):
            properties[name] |= {"default": plain(default)}
    return {"type": "object", "properties": properties, "additionalProperties": False}


def _schema(hint: Any, parts: Parts) -> dict[str, Any]:
    inner, optional = strip(hint)
    part = part_of(inner)
    found: dict[str, Any]
    if part:
        found = {"anyOf": _part_schemas(part, parts)}
    elif inspect.isclass(inner) and issubclass(inner, Section):
        found = _block_schema(fields_of(inner), parts, {name: f.description for name, f in inner.model_fields.items()})
    elif typing.get_origin(inner) is dict and is_nested(typing.get_args(inner)[1]):
        found = {
            "type": "object",
            "additionalProperties": {"anyOf": [_schema(typing.get_args(inner)[1], parts), {"type": "null"}]},
        }
    else:
        return TypeAdapter(hint).json_schema()
    return {"anyOf": [found, {"type": "null"}]} if optional else found


def _part_schemas(part: PartOf, parts: Parts) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = [{"enum": list(parts.files(part.room))}]
    for name in parts.files(part.room):
        cls = parts.find(part.room, name)
        fields = settings(cls) | (fields_of(part.extra) if part.extra else {})
        body = _block_schema(fields, parts, {})
        body["properties"]["name"] = {"const": name}
        found.append(body | {"description": (inspect.getdoc(cls) or "").split("\n")[0]})
    return found
