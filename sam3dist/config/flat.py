"""Settings of a plain data class from text, read and checked as all configuration is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, fields
from typing import Any, TypeVar, get_type_hints

from pydantic import Field, create_model

from sam3dist.config.base import Settings
from sam3dist.config.overrides import with_overrides
from sam3dist.errors import ConfigError

Kind = TypeVar("Kind")


def flat_settings(kind: type[Kind], overrides: Mapping[str, Any], verb: str, section: str = "") -> Kind:
    """An object of the data class with overrides of its fields, whose text is read as YAML.

    section: what all keys begin with, as in `submit.id`; by default they are the names of the fields. ConfigError as of
    `with_overrides`, and for keys of a run, which have no effect on `verb`.
    """
    hints = get_type_hints(kind)
    shape: dict[str, Any] = {}
    for field in fields(kind):  # type: ignore[arg-type]
        made = field.default_factory
        shape[field.name] = hints[field.name], field.default if made is MISSING else Field(default_factory=made)
    for key in overrides:
        if key.partition(".")[0] in ("run", "data"):
            raise ConfigError(f"{key}: has no effect on {verb}, which takes {', '.join(shape)}.")
    model = create_model(verb, __base__=Settings, **shape)
    if section:
        whole = create_model(verb, __base__=Settings, **{section: (model, model())})  # type: ignore[call-overload]
        return kind(**getattr(with_overrides(whole(), overrides), section).model_dump())
    return kind(**with_overrides(model(), overrides).model_dump())
