"""From a recipe to the stages of its run: each stage is given exactly the settings that decide its output."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from casa_core.errors import ConfigError
from casa_core.fusion.config import fusion_config
from pipelines.dag.artifact import read_manifest
from pipelines.dag.checkpoints import find_checkpoint
from pipelines.dag.code_version import STAGE_MODULES
from pipelines.dag.plan import StageSpec
from pipelines.dag.raw_inputs import identify, identify_remote, local_folder
from pipelines.recipe.data import DEFAULT_VIDEO_FPS, Source
from pipelines.recipe.model import Recipe
from pipelines.recipe.where import Where
from pipelines.storage.host import session_folder
from pipelines.storage.uri import Folder, recipe_folder

MODEL_FOLDERS = "model_folders"
"""Where further checkpoints of the endpoint lie, as JSON: a setting that no fingerprint holds."""
START = "train of the earlier recipe"
"""Stands for the train stage of ``model.weights.recipe`` until that recipe's stages are there."""


def build_stages(recipe: Recipe) -> list[StageSpec]:
    """The stages of a run, in an order in which each comes after its inputs.

    Raises:
        ConfigError: If a source's ``path`` holds nothing.
    """
    where = where_of(recipe)
    stages = _up_to_evaluation(recipe, where)
    report = {"report": _json(recipe.report), "model_name": recipe.deploy.model_name}
    everything = {stage.name: stage.name for stage in stages}
    stages = _with_earlier(recipe, stages)
    stages.append(_deploy(recipe, where))
    stages.append(stage_spec("report", report, everything, where))
    return stages


def evaluated_stages(recipe: Recipe) -> list[StageSpec]:
    """The stages that train the recipe's model and evaluate it: a member of a sweep."""
    return _with_earlier(recipe, _up_to_evaluation(recipe, where_of(recipe)))


def where_of(recipe: Recipe) -> dict[str, Any]:
    """On what the recipe's stages run; ``store`` as an absolute path or a URI."""
    return _json(recipe.where) | {"store": str(store_folder(recipe))}


def _up_to_evaluation(recipe: Recipe, where: dict[str, Any]) -> list[StageSpec]:
    """The stages that train the recipe's model and its baselines and evaluate them; without an earlier's."""
    stages = _up_to_training(recipe, where)
    evaluated = {"train": "train", **_clean(recipe)}
    if "blind" in recipe.evaluate.baselines:
        stages.append(_blind(stages[-1], recipe))
        evaluated["blind"] = "train-blind"
    what = {"evaluate": _json(recipe.evaluate), "sources": list(recipe.data.sources)}
    return [*stages, stage_spec("evaluate", what, evaluated, where)]


def _blind(train: StageSpec, recipe: Recipe) -> StageSpec:
    """The same training without pictures."""
    workers = recipe.where.train.of_blind()
    return replace(
        train,
        name="train-blind",
        settings=train.settings | {"images": False},
        placement=train.placement | {"train": _json(workers)},
    )


def _clean(recipe: Recipe) -> dict[str, str]:
    """Source → the stage that cleans it."""
    return {name: f"clean-{name}" for name in recipe.data.sources}


def _up_to_training(recipe: Recipe, where: dict[str, Any]) -> list[StageSpec]:
    """The stages that train the recipe's model, the last of them ``train``; without an earlier recipe's."""
    stages: list[StageSpec] = []
    for name, source in recipe.data.sources.items():
        stages += _source_stages(recipe, name, source, where)
    return [*stages, _pack(recipe, where), _train(recipe, where)]


def _with_earlier(recipe: Recipe, stages: list[StageSpec], above: tuple[str, ...] = ()) -> list[StageSpec]:
    """``stages``, preceded by those of the recipe that training starts from.

    A stage that both have, such as cleaning the same source, is one; another of the same name gets the
    earlier recipe's name behind its own.

    Raises:
        ConfigError: If recipes start from each other.
    """
    weights = recipe.model.weights
    if weights is None or weights.recipe is None:
        return stages
    from pipelines.recipe.load import load_recipe

    earlier = load_recipe(weights.recipe).model_copy(update={"where": recipe.where})
    path = (*above, recipe.name)
    if earlier.name in path:
        raise ConfigError(
            f"The recipe {earlier.name} starts from itself.",
            f"{' ← '.join((*path, earlier.name))}.",
            "Correct `model.weights.recipe` in one of them.",
        )
    _check_same_model(recipe, earlier)
    first = _with_earlier(earlier, _up_to_training(earlier, stages[0].placement), path)
    taken = {stage.name: stage for stage in stages}
    names: dict[str, str] = {}
    added: list[StageSpec] = []
    for stage in first:
        inputs = {role: names.get(name, name) for role, name in stage.inputs.items()}
        renamed = replace(stage, inputs=inputs)
        same = taken.get(stage.name)
        names[stage.name] = stage.name
        if same is None or replace(renamed, placement=same.placement) != same:
            if same is not None:
                names[stage.name] = f"{stage.name}-{earlier.name}"
            added.append(replace(renamed, name=names[stage.name]))
    start = {START: names["train"]}
    later = [
        replace(stage, inputs={role: start.get(name, name) for role, name in stage.inputs.items()})
        for stage in stages
    ]
    return [*added, *later]


def _check_same_model(recipe: Recipe, earlier: Recipe) -> None:
    theirs, ours = (
        {"backbone": one.model.backbone, **one.model.fusion.model_dump(exclude={"init"})}
        for one in (earlier, recipe)
    )
    for name, value in ours.items():
        if theirs[name] != value:
            raise ConfigError(
                f"The recipe {recipe.name} cannot go on from {earlier.name}.",
                f"Its {name} is {value!r}, there it is {theirs[name]!r}.",
                "Set model to that of the earlier recipe.",
            )


def store_folder(recipe: Recipe) -> Folder:
    """The recipe's store, an absolute path or on S3."""
    return recipe_folder(recipe.where.store, _json(recipe.where))


def _hash_cache(recipe: Recipe) -> Path:
    return session_folder(store_folder(recipe)) / "raw_hashes.json"


def _source_stages(recipe: Recipe, name: str, source: Source, where: dict[str, Any]) -> list[StageSpec]:
    """``corpus-<name>`` where the source is made, and ``clean-<name>``."""
    clean: dict[str, Any] = {
        "source": name,
        "reader": source.reader,
        "max_failures": recipe.data.max_failures,
        **source.reader_options(),
        **source.picture_limits(),
    }
    if source.has_video:
        clean["fps"] = source.fps if source.fps is not None else DEFAULT_VIDEO_FPS
    if source.make is not None:
        corpus = {"make": _json(source.make), "seed": recipe.seed}
        return [
            stage_spec("corpus", corpus, {}, where, suffix=name),
            stage_spec("clean", clean, {"corpus": f"corpus-{name}"}, where, suffix=name),
        ]
    assert source.path is not None  # The recipe has checked that a source has one origin.
    if "://" in source.path:
        path = source.path
        clean["raw"] = identify_remote(path)
    else:
        path = str(Path(source.path).expanduser().absolute())
        by_content = source.identity != "times"
        clean["raw"] = identify(Path(path), cache=_hash_cache(recipe), read=by_content)
    return [stage_spec("clean", clean, {}, where, suffix=name, location={"path": path})]


def _pack(recipe: Recipe, where: dict[str, Any]) -> StageSpec:
    what, location = pack_settings(recipe, cache=_hash_cache(recipe))
    return stage_spec("pack", what, _clean(recipe), where, location=location)


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
        "max_failures": recipe.data.max_failures,
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


def _train(recipe: Recipe, where: dict[str, Any]) -> StageSpec:
    weights, location = _weights(recipe)
    what = {
        # Tokenizer and template come with the pack artifact.
        "model": recipe.model.model_dump(mode="json", exclude={"tokenizer", "template", "weights"}),
        "weights": weights,
        "train": recipe.train.model_dump(mode="json", exclude={"seed"}),
        "seed": recipe.seed if recipe.train.seed is None else recipe.train.seed,
        "images": True,
        "evaluate": _json(recipe.evaluate) | {"baselines": []} if recipe.train.score_every else None,
    }
    inputs = {"pack": "pack", **_clean(recipe)}
    if recipe.model.weights is not None and recipe.model.weights.recipe is not None:
        inputs["start"] = START
    named = where | {"recipe": recipe.name}  # what trackers call the run
    return stage_spec("train", what, inputs, named, location=location)


def _weights(recipe: Recipe) -> tuple[dict[str, Any], dict[str, str]]:
    """What identifies the weights training starts from, and where local ones lie. Those of an earlier
    recipe are an input of the stage."""
    weights = recipe.model.weights
    if weights is None or weights.recipe is not None:
        return {}, {}
    what, location = weights.model_dump(mode="json", exclude_none=True), {}
    for name in ("language_model", "vision_tower", "checkpoint"):
        setting, on_hub = f"model.weights.{name}", name != "checkpoint"
        folder = local_folder(getattr(weights, name), "There are no weights", setting, may_be_on_hub=on_hub)
        if folder is not None:
            what[name] = identify(folder, cache=_hash_cache(recipe))
            location[name] = str(folder)
    return what, location


def _deploy(recipe: Recipe, where: dict[str, Any]) -> StageSpec:
    """The endpoint, with the clean artifacts' held-out clips for its live page to play."""
    cache = _hash_cache(recipe)
    found = {name: find_checkpoint(recipe_folder(path, where)) for name, path in recipe.deploy.models.items()}
    models = {name: _identity(folder, cache) for name, folder in found.items()}
    what = {"deploy": {**_json(recipe.deploy), "models": models}}
    folders = {name: str(folder) for name, folder in found.items()}
    location = {MODEL_FOLDERS: json.dumps(folders)} if folders else {}
    spec = stage_spec("deploy", what, {"train": "train", **_clean(recipe)}, where, location=location)
    return replace(spec, state=True, check=f"{STAGE_MODULES['deploy']}:check")


def _identity(checkpoint: Folder, cache: Path) -> dict[str, str]:
    """What identifies a further checkpoint of the endpoint: its training run, else its files."""
    if (manifest := read_manifest(checkpoint.parent)) is not None:
        return {"fingerprint": manifest["fingerprint"], "digest": manifest["content_digest"]}
    local = isinstance(checkpoint, Path)
    digest = (identify(checkpoint, cache) if local else identify_remote(str(checkpoint)))["digest"]
    return {"fingerprint": digest, "digest": digest}


def endpoint_of(where: Where) -> str:
    """Where the endpoint of a run answers, as seen from this machine, or from the cluster's head if it
    listens on loopback."""
    from pipelines.deploy.endpoint import endpoint_url  # late: only some commands need an HTTP client

    return endpoint_url(where.serve.host, where.serve.port, where.ray.address)


def stage_spec(
    kind: str,
    what: dict[str, Any],
    inputs: dict[str, str],
    where: dict[str, Any],
    *,
    suffix: str = "",
    location: dict[str, str] | None = None,
) -> StageSpec:
    """A stage of a kind, named as its kind and, where it is one of several, a suffix."""
    return StageSpec(
        name=f"{kind}-{suffix}" if suffix else kind,
        kind=kind,
        settings=what,
        inputs=inputs,
        function=f"{STAGE_MODULES[kind]}:run_stage",
        placement=where,
        location=location or {},
    )


def _json(model: BaseModel) -> dict[str, Any]:
    return model.model_dump(mode="json")
