"""Dotted overrides: the one way in which the command line, Tune, presets and tests change a configuration."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar, get_args, get_origin

from pydantic import BaseModel, ValidationError

from sam3dist.config import keys
from sam3dist.config.plain import parse_yaml
from sam3dist.errors import ConfigError

Config = TypeVar("Config", bound=BaseModel)

NOTHING = ("null", "none", "~")
"""What stands for None in a field of text; in all others YAML says what does."""


def with_overrides(config: Config, overrides: Mapping[str, Any]) -> Config:
    """A new configuration with these dotted keys set; the given one stays as it is.

    A str is read as YAML, as it comes from a command line, but taken as it is for a field of text, such as a path; a
    mapping sets several keys of a section. When a `kind` changes, fields that only the old kind knows disappear and
    those of the new one take their defaults, also where both know the name, but with other values.
    ConfigError names the key, its value and what is allowed; for a misspelt key the nearest real one.
    """
    return build(type(config), config.model_dump(), overrides)


def build(model: type[Config], tree: dict[str, Any], overrides: Mapping[str, Any]) -> Config:
    """A configuration of class `model` from a tree of values, which is changed, and overrides of it."""
    for key, value in _kinds_first(overrides):
        _set(model, tree, key, value)
    try:
        return model.model_validate(tree)
    except ValidationError as error:
        raise ConfigError(_in_one_line(model, tree, error)) from None


def _kinds_first(overrides: Mapping[str, Any]) -> list[tuple[str, Any]]:
    return sorted(overrides.items(), key=lambda item: not f".{item[0]}".endswith(".kind"))


def _set(model: type[BaseModel], tree: dict[str, Any], key: str, value: Any) -> None:
    """Set one key, or every key of a section when `value` is a mapping."""
    parts = key.split(".")
    here: type[BaseModel] = model
    node = tree
    by_kind: dict[str, type[BaseModel]] = {}
    for depth, part in enumerate(parts):
        rest = parts[depth + 1 :]
        field = here.model_fields.get(part)
        if field is None:
            raise ConfigError(f"{key}: {_unknown(model, tree, key)}")
        if part == "kind" and by_kind and not rest:
            _change_kind(node, by_kind, key, _parsed(key, value, field.annotation))
            return
        by_kind = keys.kinds(field.annotation)
        below = keys.section(field.annotation, node.get(part))
        if below is None:
            _set_value(node, part, rest, key, value, field.annotation)
            return
        if not isinstance(node.get(part), dict):
            node[part] = {}
        here, node = below, node[part]
    parsed = _parsed(key, value, None)
    if not isinstance(parsed, Mapping):
        names = sorted(here.model_fields, key=lambda name: name != "kind")
        known = ", ".join(f"{key}.{name}" for name in names)
        raise ConfigError(f"{key}={value}: {key} is a section; set one of {known}.")
    for name, item in _kinds_first({str(name): item for name, item in parsed.items()}):
        _set(model, tree, f"{key}.{name}", item)


def _set_value(node: dict[str, Any], name: str, rest: list[str], key: str, value: Any, annotation: Any) -> None:
    if not rest:
        node[name] = _parsed(key, value, annotation)
    elif get_origin(annotation) is dict:
        # What is left is one key of a free mapping, as in space.distillation.temperature={uniform: [1, 8]}.
        node[name] = {**(node.get(name) or {}), ".".join(rest): _parsed(key, value, get_args(annotation)[1])}
    else:
        owner = key[: -len(".".join(rest)) - 1]
        raise ConfigError(f"{key}: {owner} is a single value and has nothing below it; set {owner} itself.")


def _change_kind(node: dict[str, Any], by_kind: dict[str, type[BaseModel]], key: str, kind: Any) -> None:
    chosen = by_kind.get(str(kind))
    if chosen is None:
        near = keys.nearest(str(kind), by_kind)
        guess = f"; did you mean {near}?" if near else "."
        raise ConfigError(f"{key}={kind}: must be one of {', '.join(by_kind)}{guess}")
    known = by_kind[node["kind"]].model_fields if node.get("kind") in by_kind else {}
    kept = {
        name: value
        for name, value in node.items()
        if name in chosen.model_fields
        and (name not in known or known[name].annotation == chosen.model_fields[name].annotation)
    }
    node.clear()
    node.update(kept, kind=kind)


def _parsed(key: str, value: Any, annotation: Any) -> Any:
    """The value a text stands for, where text is what a field does not want."""
    if not isinstance(value, str):
        return str(value) if keys.is_text(annotation) and isinstance(value, int | float) else value
    if keys.is_text(annotation):
        return _text(key, value, optional=annotation is not str)
    parsed = parse_yaml(value, f"{key}={value}")
    if keys.is_tuple(annotation):
        if parsed is None:
            return ()
        return tuple(part.strip() for part in parsed.split(",")) if isinstance(parsed, str) else parsed
    return parsed


def _text(key: str, text: str, optional: bool) -> str | None:
    if not text.strip():
        way_out = "write null for none" if optional else "write what it is"
        raise ConfigError(f"{key}= is empty, as from an unset shell variable; {way_out}, or leave it out.")
    return None if optional and text.strip().lower() in NOTHING else text


def _unknown(model: type[BaseModel], tree: Mapping[str, Any], key: str) -> str:
    elsewhere = keys.kind_that_knows(model, key)
    if elsewhere:
        return f"only known with {elsewhere}; set that as well, or leave this out."
    near = keys.nearest(key, [name for name, _ in keys.fields(model, tree)])
    if near:
        return f"no such key; did you mean {near}?"
    return f"no such key; it must start with one of {', '.join(model.model_fields)}."


def _in_one_line(model: type[BaseModel], tree: Mapping[str, Any], error: ValidationError) -> str:
    """The first thing pydantic found wrong, as "key=value: must be ..."."""
    problems = error.errors(include_url=False)
    first = problems[0]
    by_key = dict(keys.fields(model, tree))
    path: list[str] = []
    for part in first["loc"]:
        # The path also holds positions in lists and the tags of unions, which are no part of the key.
        candidate = ".".join([*path, str(part)])
        if any(key == candidate or key.startswith(candidate + ".") for key in by_key):
            path.append(str(part))
    key = ".".join(path)
    if first["type"] == "value_error":
        return str(first["ctx"]["error"])
    if key == "space" and len(first["loc"]) > 1:
        ranges = "{choice: [a, b]}, {uniform: [low, high]}, {loguniform: [low, high]} or {integer: [low, high]}"
        return f"space.{first['loc'][1]}: must be {ranges}."
    if first["type"] == "missing":
        return f"{first['loc'][-1]}: missing, and it has no default."
    value = first["input"]
    wanted = keys.allowed(by_key[key]) if key in by_key else first["msg"]
    choices = wanted.partition("one of ")[2].split(", ")
    near = keys.nearest(str(value), choices)
    more = f" {len(problems) - 1} more such settings." if len(problems) > 1 else ""
    return f"{key}={value}: must be {wanted}{f'; did you mean {near}?' if near else '.'}{more}"
