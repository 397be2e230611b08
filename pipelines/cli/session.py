"""What the commands work on: a recipe's plan in its store, or the latest run of a store."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from casa_core.errors import ConfigError
from pipelines.dag.code_version import current_versions
from pipelines.dag.jobs import Cluster
from pipelines.dag.plan import PlannedStage, StageSpec, plan
from pipelines.dag.records import Records
from pipelines.recipe import Recipe, build_stages, load_recipe
from pipelines.recipe.load import load_sweep
from pipelines.recipe.stages import endpoint_url, store_folder
from pipelines.recipe.sweep_stages import build_sweep


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenRun:
    """A recipe, planned in its store."""

    recipe: Recipe
    stages: list[PlannedStage]
    records: Records
    cluster: Cluster

    @property
    def endpoint(self) -> str:
        return endpoint_url(self.recipe)

    def record(self) -> None:
        """Make this the store's latest run, which ``casa status`` and others speak of."""
        self.records.prepare()
        ray = self.recipe.where.ray.model_dump(mode="json")
        self.records.write_run(self.recipe.name, ray, self.endpoint, self.stages)


def open_run(recipe: str, overrides: Sequence[str]) -> OpenRun:
    """Load a recipe and plan it.

    Raises:
        ConfigError: If the recipe is wrong.
    """
    loaded = load_recipe(recipe, overrides)
    return _open(loaded, build_stages(loaded))


def open_sweep(recipe: str, overrides: Sequence[str]) -> OpenRun:
    """Load a recipe's sweep and plan it.

    Raises:
        ConfigError: If the recipe is wrong, or has no sweep.
    """
    loaded, members = load_sweep(recipe, overrides)
    return _open(loaded, build_sweep(loaded, members))


def _open(loaded: Recipe, specs: list[StageSpec]) -> OpenRun:
    store = store_folder(loaded)
    stages = plan(specs, store, current_versions())
    records = Records(store)
    cluster = Cluster(loaded.where.ray.model_dump(mode="json"), records.session)
    return OpenRun(recipe=loaded, stages=stages, records=records, cluster=cluster)


@dataclass(frozen=True, slots=True, kw_only=True)
class LatestRun:
    """The latest run of a store, as it was recorded."""

    recipe: str
    endpoint: str
    stages: list[dict[str, Any]]
    records: Records
    cluster: Cluster


def latest_run(store: Path) -> LatestRun:
    """The latest run of a store.

    Raises:
        ConfigError: If there is none.
    """
    store = store.expanduser().absolute()
    run = Records(store).read_run() if store.is_dir() else None
    if run is None:
        raise ConfigError(
            f"There is no run in {store}.",
            "the store records its latest run, and has none",
            "`casa run` starts one; `--store` names another store",
        )
    records = Records(store)
    return LatestRun(
        recipe=run["recipe"],
        endpoint=run["endpoint"],
        stages=run["stages"],
        records=records,
        cluster=Cluster(run["ray"], records.session),
    )
