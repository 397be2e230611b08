"""Settings of a stage: frozen, complete and typed. They have no defaults: those stand in the recipe alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar, dataclass_transform

import pydantic
from pydantic.dataclasses import dataclass

from casa_core.errors import ConfigError

Class = TypeVar("Class", bound=type)
Settings = TypeVar("Settings")


@dataclass_transform(frozen_default=True, kw_only_default=True)
def stage_settings(kind: Class) -> Class:
    """Class decorator: a frozen dataclass with keyword fields, which refuses unknown keys and wrong types."""
    make = dataclass(frozen=True, kw_only=True, config=pydantic.ConfigDict(extra="forbid"))
    return make(kind)  # type: ignore[return-value]


def read_settings(kind: type[Settings], values: Mapping[str, Any]) -> Settings:
    """A stage's settings, of a class made by :func:`stage_settings`, from the JSON in its context.

    Raises:
        ConfigError: If a field is missing, unknown or of the wrong type; names all of them.
    """
    try:
        return pydantic.TypeAdapter(kind).validate_python(dict(values))
    except pydantic.ValidationError as error:
        problems = [f"{'.'.join(map(str, p['loc']))}: {p['msg']}" for p in error.errors()]
        raise ConfigError(
            f"These are not {kind.__name__}.",
            "\n".join(problems),
            "Take the settings from a recipe, which fills in every default.",
        ) from error
