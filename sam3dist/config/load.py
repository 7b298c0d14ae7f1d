"""Presets and search spaces from YAML, and configurations back to YAML."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel

from sam3dist.config import keys
from sam3dist.config.distill import DistillConfig
from sam3dist.config.overrides import build, with_overrides
from sam3dist.config.plain import plain, read_yaml
from sam3dist.config.search import SearchConfig
from sam3dist.config.space import Remainder, ends
from sam3dist.errors import ConfigError

__all__ = ["load_preset", "load_search", "plain", "presets", "to_yaml", "with_overrides", "with_search_overrides"]

PRESETS = Path(__file__).parent / "presets"


def presets() -> dict[str, str]:
    """The names of the presets that ship with the package, each with the first line of its file: what it is for."""
    texts = {path.stem: path.read_text(encoding="utf-8") for path in sorted(PRESETS.glob("*.yaml"))}
    return {name: text.split("\n", 1)[0].lstrip("# ") for name, text in texts.items()}


def load_preset(name_or_path: str | Path) -> DistillConfig:
    """The run of a preset, or of a YAML file; keys that it leaves out take their defaults.

    ConfigError names the file, the key, and what is wrong.
    """
    name = str(name_or_path)
    known = presets()
    if name in known:
        path = PRESETS / f"{name}.yaml"
    elif name.endswith((".yaml", ".yml")) or Path(name).is_file():
        path = Path(name)
    else:
        near = keys.nearest(name, known)
        guess = f"did you mean {near}?" if near else f"use one of {', '.join(known)}, or the path of a YAML file."
        raise ConfigError(f"{name}: no such preset; {guess}")
    content = {"name": path.stem, **read_yaml(path)}
    return _from_file(DistillConfig, DistillConfig().model_dump(), content, path)


def load_search(path: str | Path) -> SearchConfig:
    """The search of a YAML file, with every key of its space checked against the run it starts from."""
    if not Path(path).is_file():
        raise ConfigError(f"{path}: no such search space; the ones that ship are in search_spaces/.")
    search = _from_file(SearchConfig, {}, {"name": Path(path).stem, **read_yaml(path)}, path)
    return _checked(search, f"{path}: ")


def with_search_overrides(search: SearchConfig, overrides: Mapping[str, Any]) -> SearchConfig:
    """The search with some of its own keys set (`trials=4`) and others set on every trial (`data.train=DIR`)."""
    own = SearchConfig.model_fields
    of_search = {key: value for key, value in overrides.items() if key.partition(".")[0] in own}
    of_trials = {key: value for key, value in overrides.items() if key not in of_search}
    if of_search.get("sampler") == "random":
        of_search = {"startup_trials": None, **of_search}  # what a file says of it is meant for the sampler it names
    for key in of_trials:
        if key.partition(".")[0] not in DistillConfig.model_fields:
            known = [*own, *(name for name, _ in keys.fields(DistillConfig, search.base().model_dump()))]
            near = keys.nearest(key, known)
            guess = f"did you mean {near}?" if near else f"a search has {', '.join(own)}; a trial what its preset has."
            raise ConfigError(f"{key}: no such key; {guess}")
    # Checked before they are stored, so that an error names what was typed.
    with_overrides(search.base(), of_trials)
    changed = with_overrides(search, of_search)
    return _checked(with_overrides(changed, {"overrides": {**changed.overrides, **of_trials}}), "")


def _from_file(model: Any, tree: dict[str, Any], content: Mapping[str, Any], path: str | Path) -> Any:
    try:
        return build(model, tree, content)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def _checked(search: SearchConfig, where: str) -> SearchConfig:
    """The same search, once both ends of each range and every choice have proved to be valid settings."""
    try:
        base = search.base()
        for key, span in search.space.items():
            for value in (0.0, 1.0) if isinstance(span, Remainder) else ends(span):
                with_overrides(base, {key: value})
        if search.max_latency_ms is not None and base.objective.size != "latency_ms":
            limit = f"max_latency_ms={search.max_latency_ms:g}"
            raise ConfigError(f"{limit}: nobody measures it; set objective.size=latency_ms as well.")
        for number, seed in enumerate(search.seeds):
            unknown = next((key for key in seed if key not in search.space), None)
            if unknown is not None:
                near = keys.nearest(unknown, search.space)
                guess = f"; did you mean {near}?" if near else "; add it to space, or to overrides."
                raise ConfigError(f"seeds[{number}].{unknown}: not in the space{guess}")
            tied = next((key for key in seed if isinstance(search.space[key], Remainder)), None)
            if tied is not None:
                raise ConfigError(f"seeds[{number}].{tied}: follows from another key of the space; leave it out.")
            with_overrides(base, seed)
    except ConfigError as error:
        raise ConfigError(f"{where}{error}") from None
    return search


def to_yaml(config: BaseModel, comments: bool = False) -> str:
    """The configuration as YAML with every value resolved; loading it gives the same configuration back.

    With `comments`, each setting is preceded by what it does and what it may be.
    """
    if comments:
        return "\n".join(_commented(config)) + "\n"
    return _dump(config.model_dump(mode="json"))


def _dump(tree: dict[str, Any]) -> str:
    return yaml.dump(tree, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110)


class _Dumper(yaml.SafeDumper):
    """Mappings over lines, lists in one."""


_Dumper.add_representer(
    list, lambda dumper, items: dumper.represent_sequence("tag:yaml.org,2002:seq", items, flow_style=True)
)


def _commented(config: BaseModel, kinds: Iterable[str] = (), indent: str = "") -> Iterator[str]:
    """The lines of one section; `kinds` are those that it was chosen from."""
    values = config.model_dump(mode="json")
    for name, field in type(config).model_fields.items():
        inner = getattr(config, name)
        if isinstance(inner, BaseModel):
            yield from [] if indent else [""]
            yield from _comment(type(inner).__doc__, indent)
            yield f"{indent}{name}:"
            yield from _commented(inner, keys.kinds(field.annotation), indent + "  ")
        else:
            limits = f"one of {', '.join(kinds)}" if kinds and name == "kind" else keys.limits(field)
            sentence = f" {limits[0].upper()}{limits[1:]}." if limits else ""
            yield from _comment(f"{field.description}{sentence}", indent)
            yield textwrap.indent(_dump({name: values[name]}).rstrip(), indent)


def _comment(text: str | None, indent: str) -> list[str]:
    sign = f"{indent}# "
    words = " ".join((text or "").split()).replace("None", "null")
    return textwrap.wrap(words, 110, initial_indent=sign, subsequent_indent=sign)
