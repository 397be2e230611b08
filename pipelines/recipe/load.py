"""Reading a recipe: YAML, dotted overrides, validation."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from casa_core.errors import ConfigError
from pipelines.recipe.explain import explain
from pipelines.recipe.model import Deploy, Recipe
from pipelines.recipe.where import Where
from pipelines.text_format import did_you_mean

RECIPES = Path(__file__).resolve().parents[1] / "recipes"
KINDS = {list: "list", str: "text"}
"""What a file may hold in place of settings, in words."""


def list_recipes() -> list[str]:
    """Names of the recipes that come with the project."""
    return sorted(path.stem for path in RECIPES.glob("*.yaml"))


def load_recipe(name_or_path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read and validate a recipe.

    Args:
        name_or_path: A YAML file, or the name of a recipe that comes with the project.
        overrides: ``dotted.path=value``; the value is read as YAML.

    Raises:
        ConfigError: For a wrong key, type or combination: names its path, what was expected, and the closest
            valid name.
    """
    path = locate(name_or_path)
    return validated(read_values(path, overrides), f"recipe {path.stem}")


def load_deploy(values: Mapping[str, Any], overrides: Sequence[str] = ()) -> Deploy:
    """Validate a recipe's section ``deploy`` alone: the settings of an endpoint without a run.

    Args:
        values: Settings of the section.
        overrides: As for :func:`load_recipe`, their paths within the section: ``limits.sessions=4``.

    Raises:
        ConfigError: As :func:`load_recipe`.
    """
    own = dict(values)
    for override in overrides:
        apply_override(own, override)
    try:
        return Deploy.model_validate(own)
    except ValidationError as error:
        raise explain(error, own, Deploy, "section deploy") from None


def load_where(values: Mapping[str, Any], overrides: Sequence[str] = ()) -> Where:
    """Validate a recipe's section ``where`` alone, as a manifest holds it.

    Args:
        values: Settings of the section; what no recipe knows (any more) is left out.
        overrides: ``where.dotted.path=value``.

    Raises:
        ConfigError: As :func:`load_recipe`, and for an override of anything else.
    """
    own = {"where": {name: value for name, value in values.items() if name in Where.model_fields}}
    for override in overrides:
        if not override.startswith("where."):
            raise ConfigError(
                f"`--set {override}` would make it another run.",
                "What is made again has the settings that it had; only where it runs can be another.",
                "Use `casa run` for other settings, and `casa diff` to compare.",
            )
        apply_override(own, override)
    try:
        return Where.model_validate(own["where"])
    except ValidationError as error:
        raise explain(error, own["where"], Where, "section where") from None


def read_values(path: Path, overrides: Sequence[str]) -> dict[str, Any]:
    """A recipe's settings as its file, its base and ``overrides`` have them."""
    values = _with_base(path, ())
    for override in overrides:
        apply_override(values, override)
    return values


def validated(values: dict[str, Any], what: str) -> Recipe:
    """The recipe of ``values``; errors name it as ``what``."""
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        raise explain(error, values, Recipe, what) from None


def locate(name_or_path: str | Path) -> Path:
    """The YAML file of a recipe."""
    path = Path(name_or_path)
    if (path.suffix in (".yaml", ".yml") and not path.is_dir()) or path.is_file():
        if path.is_file():
            return path
        raise ConfigError(
            f"There is no recipe file {path}.",
            f"It would be {path.absolute()}.",
            f"Give a YAML file or one of the project's recipes: {', '.join(list_recipes())}.",
        )
    embedded = RECIPES / f"{path}.yaml"
    if embedded.is_file():
        return embedded
    if path.is_dir():
        raise ConfigError(
            f"{path} is a folder, and a recipe is a YAML file.",
            f"It holds {', '.join(sorted(one.name for one in path.glob('*.y*ml'))) or 'no YAML file'}.",
            "Name the file.",
        )
    raise ConfigError(
        f"There is no recipe called {path}.",
        f"Recipes that come with the project: {', '.join(list_recipes())}.",
        did_you_mean(str(path), list_recipes(), "Give one of these names, or the path of a YAML file."),
    )


def _with_base(path: Path, above: tuple[Path, ...]) -> dict[str, Any]:
    """The recipe's settings, laid over those of the recipe that its ``base`` names."""
    if path.resolve() in above:
        raise ConfigError(
            f"The recipe {path} is its own base.",
            f"{' → '.join(step.name for step in (*above, path.resolve()))}.",
            "Remove `base` from one of them.",
        )
    values = parse_yaml(path.read_text(), f"recipe {path}")
    if not isinstance(values, dict):
        raise ConfigError(
            f"The recipe {path} is not a mapping of settings.",
            "It is empty." if values is None else f"It holds a {KINDS.get(type(values), 'single value')}.",
            f"Start from {RECIPES / 'quickstart.yaml'}.",
        )
    base = values.pop("base", None)
    if base is None:
        return values
    beside = path.parent / str(base)
    found = beside if beside.is_file() else locate(str(base))
    return laid_over(_with_base(found, (*above, path.resolve())), values)


def laid_over(base: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    """Sections merge, other values replace; ``null`` removes a section that the base has.

    In the place of a value it stays: a setting that knows no ``null`` is refused, and does not silently fall
    back to its default.
    """
    merged = dict(base)
    for key, value in values.items():
        if value is None and isinstance(merged.get(key), dict):
            del merged[key]
        elif isinstance(value, dict) and isinstance(merged.get(key), dict):
            merged[key] = laid_over(merged[key], value)
        else:
            merged[key] = value
    return merged


def apply_override(values: dict[str, Any], override: str) -> None:
    """Set one ``dotted.path=value`` in place. The validation checks that the path exists."""
    path, separator, text = override.partition("=")
    keys = path.strip().split(".")
    if not separator or not all(keys):
        raise ConfigError(
            f"`--set {override}` is not an override.",
            "It has the form `dotted.path=value`.",
            "For example `--set train.steps=200`.",
        )
    section = values
    for depth, key in enumerate(keys[:-1], start=1):
        if section.get(key) is None:
            section[key] = {}
        section = section[key]
        if not isinstance(section, dict):
            raise ConfigError(
                f"`--set {override}`: {'.'.join(keys[:depth])} is a value, not a section.",
                f"Its value is {section!r}.",
                f"Set it with `--set {'.'.join(keys[:depth])}=…`.",
            )
    section[keys[-1]] = parse_yaml(text, f"the value of `--set {override}`")


class _Loader(yaml.SafeLoader):
    """YAML with numbers as people write them (``1e-3``) and without keys that silently win over others."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} is given twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+$"),
    list("-+0123456789"),
)


def parse_yaml(text: str, what: str) -> Any:
    """A YAML text's value, with numbers as people write them (``1e-3``).

    Args:
        what: What the text is, for the error.

    Raises:
        ConfigError: If it is no YAML.
    """
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        raise ConfigError(
            f"Cannot read {what} as YAML.", str(error), "Check quotes, brackets and indentation."
        ) from None
