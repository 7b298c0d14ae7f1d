"""A configuration file as plain objects, for machines that train but have no pydantic.

Only what `to_yaml` wrote is read this way: there every value is resolved, so nothing is left to check or fill in.
"""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import yaml

from sam3dist.errors import ConfigError


class _Loader(yaml.SafeLoader):
    """YAML 1.1 as PyYAML reads it, but 5e-4 is a number and None is nothing, as people expect who write Python."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)
_Loader.add_implicit_resolver("tag:yaml.org,2002:null", re.compile(r"^[Nn]one$"), list("Nn"))


def parse_yaml(text: str, source: str | Path) -> Any:
    """What the YAML says, as dicts, lists and scalars. ConfigError names `source` and the line that is wrong."""
    try:
        return yaml.load(text, _Loader)  # _Loader is a SafeLoader: no objects are built
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" in line {mark.line + 1}" if mark and mark.line else ""
        problem = getattr(error, "problem", None) or "unreadable"
        raise ConfigError(f"{source}: not valid YAML{where} ({problem}); quote text that has signs in it.") from error


def read_yaml(path: str | Path) -> dict[str, Any]:
    """The mapping in a YAML file; ConfigError when there is no such file or no mapping in it."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise ConfigError(f"{path}: cannot be read ({reason}); give the path of a YAML file.") from error
    content = parse_yaml(text, path)
    if content is None:
        return {}
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise ConfigError(f"{path}: holds no settings; it must be a YAML mapping such as `name: my-run`.")
    return content


def plain(path_or_text: str | Path) -> SimpleNamespace:
    """The configuration with attributes like those of DistillConfig; lists become tuples.

    A str with a line break or a colon in it is YAML text, anything else the path of a file.
    """
    if isinstance(path_or_text, str) and re.search(r"\n|:\s", path_or_text):
        tree = _namespace(parse_yaml(path_or_text, "configuration"))
    else:
        tree = _namespace(read_yaml(path_or_text))
    if not isinstance(tree, SimpleNamespace):
        raise ConfigError("configuration: holds no settings; it must be a YAML mapping.")
    return tree


def _namespace(value: Any) -> Any:
    if isinstance(value, dict):
        return SimpleNamespace(**{key: _namespace(item) for key, item in value.items()})
    if isinstance(value, list):
        return tuple(_namespace(item) for item in value)
    return value
