"""What a sweep trains: its recipe's variants, or those that `casa sweep --over` makes, with each seed."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from casa_core.errors import ConfigError
from pipelines.recipe.load import (
    RECIPES,
    apply_override,
    laid_over,
    locate,
    parse_yaml,
    read_values,
    validated,
)
from pipelines.recipe.model import Recipe
from pipelines.recipe.sweep import LONGEST_NAME


@dataclass(frozen=True, slots=True)
class Member:
    """One training of a sweep.

    Attributes:
        variant: Its name in ``sweep.variants``.
        seed: Seed of its weights and sample order.
    """

    variant: str
    seed: int
    recipe: Recipe

    @property
    def name(self) -> str:
        """End of the names of its stages."""
        return f"{self.variant}-{self.seed}"


def load_sweep(
    name_or_path: str | Path, overrides: Sequence[str] = (), over: Sequence[str] = ()
) -> tuple[Recipe, list[Member]]:
    """Read a recipe and what its sweep compares, variant by variant.

    Args:
        name_or_path, overrides: As for :func:`load_recipe`; variants are laid over the overridden recipe.
        over: ``dotted.path=[value, …]``: instead of the recipe's variants, all combinations of these values.

    Raises:
        ConfigError: For a recipe that names no variants, or a variant that is no valid recipe.
    """
    path = locate(name_or_path)
    values = read_values(path, overrides)
    if over:
        values["sweep"] = {**(values.get("sweep") or {}), "variants": combinations(over)}
    recipe = validated(values, f"recipe {path.stem}")
    if recipe.sweep is None:
        raise ConfigError(
            f"The recipe {path.stem} has nothing to sweep.",
            "`casa sweep` trains the variants of its section `sweep`, and there is none.",
            "Give `--over train.learning_rate=[1e-3,3e-3]`, or add sweep.variants and sweep.seeds to the "
            f"recipe ({RECIPES / 'ablation.yaml'} has them).",
        )
    common = {key: value for key, value in values.items() if key != "sweep"}
    members = []
    for variant, changes in recipe.sweep.variants.items():
        for seed in recipe.sweep.seeds:
            own = laid_over(common, {**changes, "train": {**changes.get("train", {}), "seed": seed}})
            members.append(Member(variant, seed, validated(own, f"variant {variant} of {path.stem}")))
    return recipe, members


def combinations(over: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Variants of all combinations of settings' values, each named after its own: ``learning-rate-1e-3``.

    Args:
        over: ``dotted.path=[value, …]``.

    Raises:
        ConfigError: For what is no list of different values, or too few of them to compare.
    """
    axes = [_axis(text) for text in over]
    variants: dict[str, dict[str, Any]] = {}
    for chosen in itertools.product(*axes):
        settings: dict[str, Any] = {}
        for override, _ in chosen:
            apply_override(settings, override)
        name = "-".join(name for _, name in chosen)[:LONGEST_NAME].strip("-")
        variants[name if name not in variants else f"{name[:32]}-{len(variants) + 1}"] = settings
    if len(variants) < 2:
        raise ConfigError(
            f"`--over {over[0]}` leaves nothing to compare.",
            "A sweep compares at least two variants, and these are all combinations of its values.",
            "Give it a second value: `--over train.steps=[200,400]`.",
        )
    return variants


def _axis(text: str) -> list[tuple[str, str]]:
    """The overrides that one ``--over`` stands for, each with its part of a variant's name."""
    path, _, listed = text.partition("=")
    values = parse_yaml(listed, f"the values of `--over {text}`")
    words = [word.strip() for word in listed.strip().strip("[]").split(",")]
    if not isinstance(values, list) or not values or not path.strip():
        raise ConfigError(
            f"`--over {text}` names no values.",
            "It has the form `dotted.path=[value,value]`.",
            "For example `--over train.learning_rate=[1e-3,3e-3]`.",
        )
    twice = [value for number, value in enumerate(values) if value in values[:number]]
    if twice:
        raise ConfigError(
            f"`--over {text}` has {json.dumps(twice[0])} twice.",
            "Both variants would be the same.",
            "Give each value once.",
        )
    if path.strip() in ("seed", "train.seed"):
        raise ConfigError(
            f"`--over {text}` sweeps seeds, which are no variants.",
            "Each variant is trained with each of `sweep.seeds`, and its interval is over them.",
            "Give them as `--set sweep.seeds=[0,1,2]`.",
        )
    if len(words) != len(values):  # lists and sections among them
        words = [str(number + 1) for number in range(len(values))]
    key = path.strip().rpartition(".")[2]
    names = [re.sub(r"[^a-z0-9]+", "-", f"{key}-{word}".lower()).strip("-") for word in words]
    return [(f"{path}={json.dumps(value)}", name) for value, name in zip(values, names, strict=True)]
