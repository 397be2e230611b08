"""A recipe as files that a machine elsewhere can read: what it names on this machine travels with it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from casa_core.errors import ConfigError
from pipelines.recipe.load import load_recipe
from pipelines.recipe.model import Recipe
from pipelines.storage.uri import is_remote

RECIPE = "recipe.yaml"
"""File of the recipe itself."""
STORES = (("store",), ("data_store",), ("train", "checkpoints"))
"""Settings of ``where`` that name a folder or a URI."""


def recipe_files(recipe: Recipe, address: str | None = None) -> dict[str, str]:
    """A recipe, its base and overrides laid over each other, and the recipes it starts from, as YAML by file.

    Args:
        recipe: Where its cluster is local, paths become absolute.
        address: Ray's where the recipe is read, instead of the recipe's.

    Raises:
        ConfigError: If it names a path relative to this machine's folder, and its cluster is elsewhere.
    """
    values = _values(recipe)
    where = values.setdefault("where", {})
    where.setdefault("store", recipe.where.store)
    if address is not None:
        where.setdefault("ray", {})["address"] = address
    local = recipe.where.ray.is_local and address is None
    for keys in STORES:
        section = where
        for key in keys[:-1]:
            section = section.get(key) or {}
        _settle(section, keys[-1], f"where.{'.'.join(keys)}", local=local)
    for name, source in (values.get("data", {}).get("sources") or {}).items():
        _settle(source, "path", f"data.sources.{name}.path", local=local)
    files: dict[str, str] = {}
    _add(files, RECIPE, values)
    return files


def _values(recipe: Recipe) -> dict[str, Any]:
    """What the recipe sets; defaults stay the reader's."""
    return recipe.model_dump(mode="json", exclude_unset=True) | {"name": recipe.name}


def _add(files: dict[str, str], name: str, values: dict[str, Any]) -> None:
    files[name] = ""  # its place; an earlier recipe's name counts it
    weights = (values.get("model") or {}).get("weights") or {}
    earlier = str(weights.get("recipe") or "")
    if earlier.endswith((".yaml", ".yml")):
        weights["recipe"] = f"earlier-{len(files)}.yaml"
        _add(files, weights["recipe"], _values(load_recipe(earlier)))
    files[name] = yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=110)


def _settle(section: dict[str, Any], key: str, setting: str, *, local: bool) -> None:
    """Make a relative path absolute where it is read on this machine, and refuse it where it is not."""
    named = section.get(key)
    if not isinstance(named, str) or is_remote(named):
        return
    folder = Path(named).expanduser()
    if folder.is_absolute():
        return
    if not local:
        raise ConfigError(
            f"{setting} = {named} is a folder of this machine.",
            "The run works on its cluster's nodes, where that path is another's, or nobody's.",
            f"Let {setting} be a URI, such as s3://bucket/prefix, or the absolute path of a shared folder.",
        )
    section[key] = str(folder.absolute())
