"""The settings of `prepare` from text, read and checked as all configuration is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, get_type_hints

from pydantic import create_model

from sam3dist.config.distill import Settings
from sam3dist.config.overrides import with_overrides
from sam3dist.data.settings import PrepareSettings
from sam3dist.errors import ConfigError


def prepare_settings(overrides: Mapping[str, Any]) -> PrepareSettings:
    """The settings of `prepare` with overrides; the keys are the names of its fields. Raises ConfigError."""
    hints = get_type_hints(PrepareSettings)
    # PrepareSettings is a plain data class; this gives it the same reading of text and the same errors.
    shape = {field.name: (hints[field.name], field.default) for field in fields(PrepareSettings)}
    for key in overrides:
        if key.partition(".")[0] in ("run", "data"):
            raise ConfigError(f"{key}: has no effect on prepare, which writes to OUT_DIR and takes {', '.join(shape)}.")
    model = create_model("Prepare", __base__=Settings, **shape)  # type: ignore[call-overload]
    return PrepareSettings(**with_overrides(model(), overrides).model_dump())
