"""A recipe's stages as steps of another system's workflow: each makes one stage, by ``casa run --until``."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from casa_core.errors import ConfigError
from pipelines.dag.plan import StageSpec
from pipelines.recipe import Recipe
from pipelines.recipe.shipping import RECIPE, recipe_files

STATE_KIND = "deploy"
LONGEST_NAME = 40
"""Characters: KubeRay takes 47 for a RayJob, a number behind it among them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One stage's step.

    Attributes:
        name: The stage's, as Kubernetes and Airflow take it.
        kind: The stage's kind.
        needs: Names of the steps that come before it.
        stage: The stage's own name.
    """

    name: str
    kind: str
    needs: tuple[str, ...]
    stage: str

    def command(self, recipe: str) -> list[str]:
        """What the step runs; what is done already is skipped, and what was begun goes on.

        Args:
            recipe: Path of the recipe's file where the step runs.
        """
        return ["casa", "run", recipe, "--until", self.stage, "--plain"]


def workflow_steps(stages: Sequence[StageSpec], *, with_endpoint: bool) -> list[Step]:
    """A step per stage, each after its inputs.

    Args:
        with_endpoint: Whether there is a cluster that outlives the steps, for an endpoint to run on.

    Raises:
        ConfigError: Where two stages' names would be one.
    """
    taken = [stage for stage in stages if with_endpoint or stage.kind != STATE_KIND]
    names = {stage.name: _name(stage.name) for stage in taken}
    if len(set(names.values())) != len(names):
        raise ConfigError(
            "Two stages would have one name in the workflow.",
            f"Names are lower case, of letters, digits and dashes, and {LONGEST_NAME} characters at most.",
            "Give the recipe's sources and variants shorter, or more different, names.",
        )
    return [
        Step(
            name=names[stage.name],
            kind=stage.kind,
            needs=tuple(dict.fromkeys(names[one] for one in stage.inputs.values())),
            stage=stage.name,
        )
        for stage in taken
    ]


def _name(stage: str) -> str:
    return re.sub(r"[^a-z0-9-]+", "-", stage.lower())[:LONGEST_NAME].strip("-")


def recipe_text(recipe: Recipe, address: str | None = None) -> str:
    """The recipe as a file of its own, with whatever was overridden; bases are part of it.

    Args:
        address: Ray's address where the steps run, instead of the recipe's.

    Raises:
        ConfigError: For a store, raw data or an earlier recipe that another machine would not find.
    """
    files = recipe_files(recipe, address)
    if len(files) > 1:
        assert recipe.model.weights is not None, "the only way to a second file"
        raise ConfigError(
            f"The recipe goes on from {recipe.model.weights.recipe}, a file that the steps would not find.",
            "They are given one file: this recipe's.",
            "Train that first, and name its model: `model.weights.checkpoint`.",
        )
    return files[RECIPE]
