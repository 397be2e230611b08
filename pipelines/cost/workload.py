"""What a data forecast starts from: a listing's or a recipe's corpora, and rates of one core."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from inspect import signature
from pathlib import Path
from typing import Any

from casa_core.errors import ConfigError, cause
from casa_core.media.images import ImageSettings
from pipelines.cost.forecast import Budgets, Rate, Rates
from pipelines.cost.listing import LISTINGS, Listing, read_listing
from pipelines.data.pack.processor import load_tokenizer
from pipelines.data.read.source.splits import Inventory
from pipelines.recipe.model import Recipe

RATES = Path(__file__).with_name("data_rates.json")
"""Measured by ``benchmarks/data_rates.py``."""
PAPER_LISTINGS = tuple(LISTINGS / f"{name}.json" for name in ("paper", "livecc"))
RATE_NAMES = tuple(field.name for field in fields(Rates))
LISTED_BACKBONE = "qwen2_5_vl"
"""A listing is planned for the vision tower of the paper's models."""
CHARACTERS_PER_TOKEN, CHARACTER_DOUBT = 4.0, 0.25
"""Assumed where the tokenizer is yet to be trained, and the relative error of that assumption."""
TEMPLATE_TOKENS = 3
"""Tokens that a template adds around a text, about."""


@dataclass(frozen=True, slots=True)
class Workload:
    """What is to be prepared: the corpora, the budgets of a sequence, the resolution of pictures.

    ``inventories`` has, by source, what becomes of each file; empty for a listing.
    """

    listing: Listing
    budgets: Budgets
    images: ImageSettings
    inventories: Mapping[str, Inventory] = field(default_factory=dict)


def workload_of_listing(
    path: Path,
    asked: tuple[str | None, Sequence[str]],
    text_tokens: int,
    image_tokens: int,
    max_side: int,
    max_frame_side: int,
) -> Workload:
    """The workload of a listing.

    Args:
        path: The listing, JSON; see :mod:`pipelines.cost.listing`.
        asked: Recipe and overrides that were given beside it: none may be.
        text_tokens, image_tokens: Budgets of a sequence.
        max_side, max_frame_side: Longest side of pictures and of frames, pixels.

    Raises:
        ConfigError: If a recipe is given too, or the file is no listing.
    """
    if asked[0] is not None or asked[1]:
        raise ConfigError(
            "A plan is made of a recipe or of a listing, not of both.", "", "Leave one of them out."
        )
    from pipelines.data.pack.processor import image_settings

    images = image_settings(LISTED_BACKBONE, max_side, max_frame_side)
    return Workload(read_listing(path), Budgets(text=text_tokens, image=image_tokens), images)


def _measured(path: Path) -> dict[str, Any]:
    """What a file of rates holds; nothing where there is no such file."""
    try:
        values = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        if isinstance(values, dict) and isinstance(values.get("rates", {}), dict):
            return values
        why = 'it holds no object {"rates": {name: number}}'
    except (OSError, ValueError) as error:
        why = cause(error)
    raise ConfigError(
        f"{path} holds no rates.",
        f"{why}.",
        "`python -m benchmarks.data_rates` writes such a file; or give each rate, `--rate name=number`.",
    )


def read_rates(path: Path | None, given: Sequence[str]) -> Rates:
    """Rates of one core: as given, otherwise as measured.

    Args:
        path: ``{"rates": {name: value}, "machine": …}``; the committed benchmark where it is ``None``.
        given: Rates as typed, ``name=number`` each.

    Raises:
        ConfigError: If a rate is neither given nor measured, or a given one is not a positive number.
    """
    path = path or RATES
    measured = _measured(path)
    origin = f"{path.name}, {measured.get('date', 'undated')}, {measured.get('machine', 'unknown machine')}"
    found = {name: Rate(value=value, source="as given") for name, value in map(_typed_rate, given)}
    for name in RATE_NAMES:
        if name in found:
            continue
        if name not in measured.get("rates", {}):
            raise ConfigError(
                f"There is no rate {name}.",
                f"{path} does not have it.",
                f"Give `--rate {name}=NUMBER`, or `--rates FILE`.",
            )
        spread = measured.get("spread", {}).get(name)
        spread = f", rounds within {spread:.0%}" if spread is not None else ""
        found[name] = Rate(value=measured["rates"][name], source=origin + spread)
    return Rates(**found)


def _typed_rate(text: str) -> tuple[str, float]:
    name, _, number = text.partition("=")
    try:
        value = float(number)
    except ValueError:
        value = 0.0
    if name not in RATE_NAMES or not 0 < value < math.inf:
        raise ConfigError(
            f"`--rate {text}` is no rate.",
            f"Expected one of {', '.join(RATE_NAMES)}, =, and a number above 0.",
            "For example `--rate clean_megapixels=30`.",
        )
    return name, value


def workload_of_recipe(name: str | None, overrides: Sequence[str]) -> Workload:
    """The workload of a recipe, from headers of its corpora and a bounded sample of their records.

    Raises:
        ConfigError: If no recipe is given, or one of its corpora is yet to be generated.
    """
    from pipelines.cost.listing_sample import sample_source
    from pipelines.data.pack.processor import image_settings
    from pipelines.data.read import READERS, open_reader
    from pipelines.recipe import load_recipe
    from pipelines.recipe.pack import frame_side

    if name is None:
        raise ConfigError("There is nothing to plan.", "", "Name a recipe, or give `--listing FILE.json`.")
    recipe = load_recipe(name, overrides)
    count_tokens, doubt = _token_counter(recipe.model.tokenizer.model_dump(mode="json"))
    pack, passes = recipe.pack, recipe.pack.mixture.passes
    side = frame_side(pack.max_side, pack.max_frame_side)
    images = image_settings(recipe.model.backbone, pack.max_side, side)
    sources, inventories = [], {}
    for source_name, source in recipe.data.sources.items():
        if source.path is None:
            raise ConfigError(
                f"The corpus of {source_name} is not there yet.",
                "The recipe generates it.",
                "Run `casa prepare`; generated corpora are small.",
            )
        known = signature(READERS[source.reader]).parameters.keys() - {"files", "source"}
        options = {
            key: value
            for key, value in source.model_dump(mode="json", exclude_none=True).items()
            if key in known
        }
        reader = open_reader(source.reader, source.path, source_name, options)
        inventories[source_name] = reader.inventory()
        sources.append(
            sample_source(
                reader,
                count_tokens,
                tokens_of=images.size,
                passes=passes.get(source_name, 1.0),
                text_doubt=doubt,
            )
        )
    return Workload(
        Listing(name=recipe.name, sources=tuple(sources)),
        Budgets(text=pack.text_tokens, image=pack.image_tokens),
        images,
        inventories,
    )


def workload_to_simulate(
    recipe: Recipe, overrides: Sequence[str], name: str, listing: Path | None
) -> Workload:
    """The data of a recipe's full run: of its own corpora where all lie on this machine, else of a listing.

    Args:
        recipe: The recipe, loaded from ``name`` with ``overrides``.
        listing: A listing that has its sources by name; the paper's where it is ``None``.

    Raises:
        ConfigError: If the listing lacks a source.
    """
    from pipelines.data.pack.processor import image_settings
    from pipelines.recipe.pack import frame_side

    paths = [source.path for source in recipe.data.sources.values()]
    if listing is None and all(
        path and "://" not in path and Path(path).expanduser().exists() for path in paths
    ):
        return workload_of_recipe(name, overrides)
    files = (listing,) if listing is not None else PAPER_LISTINGS
    listed = {source.name: source for file in files for source in read_listing(file).sources}
    missing = [name for name in recipe.data.sources if name not in listed]
    if missing:
        raise ConfigError(
            f"The size of {', '.join(missing)} is not known.",
            f"Not all corpora are folders on this machine, and {files[0].name} lists {', '.join(listed)}.",
            "Give `--listing FILE.json` that lists them (`examples/paper_listing.py` writes one), or folders "
            f"with `--set data.sources.{missing[0]}.path=…`.",
        )
    pack = recipe.pack
    side = frame_side(pack.max_side, pack.max_frame_side)
    passes = pack.mixture.passes
    sources = tuple(replace(listed[name], passes=passes.get(name, 1.0)) for name in recipe.data.sources)
    return Workload(
        Listing(name=recipe.name, sources=sources),
        Budgets(text=pack.text_tokens, image=pack.image_tokens),
        image_settings(recipe.model.backbone, pack.max_side, side),
    )


def _token_counter(tokenizer: Mapping[str, Any]) -> tuple[Callable[[str], float], float]:
    """A function that counts a text's tokens, and its relative error: a tokenizer's, or an estimate."""
    if not tokenizer.get("path"):
        return lambda text: len(text) / CHARACTERS_PER_TOKEN + TEMPLATE_TOKENS, CHARACTER_DOUBT
    loaded = load_tokenizer(tokenizer["path"], tokenizer.get("revision"))
    return lambda text: len(loaded.encode(text, add_special_tokens=False)) + TEMPLATE_TOKENS, 0.0
