"""Settings of the pack stage, from a recipe: files that it names count by content, not by path."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from casa_core.errors import ConfigError
from casa_core.fusion.config import fusion_config
from pipelines.dag.raw_inputs import identify, local_folder
from pipelines.recipe.model import Recipe


def pack_settings(recipe: Recipe, cache: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """Settings of the pack stage, and apart from them the paths of files that count by content.

    The second, ``tokenizer_path`` and ``hash_lists`` (JSON), are put back by
    :func:`pipelines.data.pack.settings.read_pack_settings`.

    Raises:
        ConfigError: For a tokenizer or a list of hashes that is not there.
    """
    tokenizer, tokenizer_path = _tokenizer(recipe, cache)
    filters, hash_lists = _filters(recipe, cache)
    # Where consecutive images go in the text is the template's and the fusion's matter alike.
    inserts = fusion_config(recipe.model.fusion.model_dump()).inserts and recipe.model.template != "casa-1"
    what = {
        "sources": list(recipe.data.sources),
        "tokenizer": tokenizer,
        "template": recipe.model.template,
        "image_placement": "in_place" if inserts else "window_start",
        "backbone": recipe.model.backbone,
        "filters": filters,
        **recipe.pack.model_dump(mode="json"),
        "seed": recipe.seed,
    }
    return what, tokenizer_path | hash_lists


def _tokenizer(recipe: Recipe, cache: Path) -> tuple[dict[str, Any], dict[str, str]]:
    tokenizer = recipe.model.tokenizer
    folder = local_folder(tokenizer.path, "There is no tokenizer", "model.tokenizer.path")
    if folder is None:
        return tokenizer.model_dump(mode="json"), {}
    return {"raw": identify(folder, cache)}, {"tokenizer_path": str(folder)}


def _filters(recipe: Recipe, cache: Path) -> tuple[dict[str, Any], dict[str, str]]:
    filters = recipe.data.filters.model_dump(mode="json", exclude_none=True)
    if recipe.data.filters.decontamination is None:
        return filters, {}
    paths = [Path(name).expanduser().absolute() for name in recipe.data.filters.decontamination.hashes]
    for path in paths:
        if not path.is_file():
            raise ConfigError(
                f"There is no list of hashes at {path}.",
                "`data.filters.decontamination.hashes` names it.",
                "Correct its path; it is relative to the folder you run in.",
            )
    filters["decontamination"]["hashes"] = [identify(path, cache)["digest"] for path in paths]
    return filters, {"hash_lists": json.dumps([str(path) for path in paths])}
