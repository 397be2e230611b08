"""From a recipe to the stages of its run: each stage is given exactly the settings that decide its output."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from pipelines.dag.plan import StageSpec
from pipelines.dag.raw_inputs import identify
from pipelines.recipe.data import Source
from pipelines.recipe.model import Recipe
from pipelines.recipe.pack_settings import pack_settings

DEFAULT_VIDEO_FPS = 2.0


def build_stages(recipe: Recipe) -> list[StageSpec]:
    """The stages of a run, in an order in which each comes after its inputs.

    Raises:
        ConfigError: If a source's ``path`` holds nothing.
    """
    where = _json(recipe.where)
    where["store"] = str(store_folder(recipe))
    stages: list[StageSpec] = []
    for name, source in recipe.data.sources.items():
        stages += _source_stages(recipe, name, source, where)
    clean = {name: f"clean-{name}" for name in recipe.data.sources}
    stages.append(_pack(recipe, clean, where))
    stages.append(_train(recipe, clean, where, images=True))
    examined = {"train": "train", **clean}
    if "blind" in recipe.evaluate.baselines:
        stages.append(_train(recipe, clean, where, images=False))
        examined["blind"] = "train-blind"
    evaluate = {"evaluate": _json(recipe.evaluate), "sources": list(clean)}
    stages.append(_stage("evaluate", evaluate, examined, "pipelines.evaluate.run", where))
    report = {"report": _json(recipe.report), "model_name": recipe.deploy.model_name}
    everything = {stage.name: stage.name for stage in stages}
    stages.append(_deploy(recipe, clean, where))
    stages.append(_stage("report", report, everything, "pipelines.report.run", where))
    return stages


def store_folder(recipe: Recipe) -> Path:
    """The recipe's store as an absolute path."""
    return Path(recipe.where.store).expanduser().absolute()


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
            _stage("corpus", corpus, {}, "pipelines.data.corpus", where, suffix=name),
            _stage("clean", clean, {"corpus": f"corpus-{name}"}, "pipelines.data.clean", where, suffix=name),
        ]
    assert source.path is not None  # The recipe has checked that a source has one origin.
    if "://" in source.path:
        from pipelines.data.locations import identify_remote  # late: it loads pyarrow

        path = source.path
        clean["raw"] = identify_remote(path)
    else:
        path = str(Path(source.path).expanduser().absolute())
        clean["raw"] = identify(Path(path), cache=store_folder(recipe) / "session" / "raw_hashes.json")
    return [_stage("clean", clean, {}, "pipelines.data.clean", where, suffix=name, location={"path": path})]


def _pack(recipe: Recipe, clean: dict[str, str], where: dict[str, Any]) -> StageSpec:
    what, location = pack_settings(recipe, cache=store_folder(recipe) / "session" / "raw_hashes.json")
    return _stage("pack", what, clean, "pipelines.data.pack", where, location=location)


def _train(recipe: Recipe, clean: dict[str, str], where: dict[str, Any], *, images: bool) -> StageSpec:
    what = {
        # Tokenizer and template come with the pack artifact.
        "model": recipe.model.model_dump(mode="json", exclude={"tokenizer", "template"}),
        "train": _json(recipe.train),
        "seed": recipe.seed,
        "images": images,
    }
    inputs = {"pack": "pack", **clean}
    return _stage("train", what, inputs, "pipelines.train.run", where, suffix="" if images else "blind")


def _deploy(recipe: Recipe, clean: dict[str, str], where: dict[str, Any]) -> StageSpec:
    """The endpoint, with the clean artifacts' held-out clips for its live page to play."""
    what = {"deploy": _json(recipe.deploy)}
    spec = _stage("deploy", what, {"train": "train", **clean}, "pipelines.deploy", where)
    return replace(spec, state=True, check="pipelines.deploy:check")


def endpoint_url(recipe: Recipe) -> str:
    """Where the endpoint of a run answers, as seen from this machine."""
    from pipelines import deploy  # late: only some commands need an HTTP client

    return deploy.endpoint_url(_json(recipe.where))


def _stage(
    kind: str,
    what: dict[str, Any],
    inputs: dict[str, str],
    module: str,
    where: dict[str, Any],
    *,
    suffix: str = "",
    location: dict[str, str] | None = None,
) -> StageSpec:
    return StageSpec(
        name=f"{kind}-{suffix}" if suffix else kind,
        kind=kind,
        what=what,
        inputs=inputs,
        function=f"{module}:run_stage",
        where=where,
        location=location or {},
    )


def _json(model: BaseModel) -> dict[str, Any]:
    return model.model_dump(mode="json")
