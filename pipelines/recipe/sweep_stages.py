"""The stages of a sweep: shared ones once, each member's own, and the comparison."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from pipelines.dag.plan import StageSpec
from pipelines.recipe.model import Recipe
from pipelines.recipe.stages import evaluated_stages, stage_spec, where_of
from pipelines.recipe.sweep_members import Member


def build_sweep(recipe: Recipe, members: Sequence[Member]) -> list[StageSpec]:
    """The stages of all members, each stage that several have in common once, and the comparison of all."""
    stages: dict[str, StageSpec] = {}
    inputs: dict[str, str] = {}
    for member in members:
        names: dict[str, str] = {}
        for stage in evaluated_stages(member.recipe):
            own = replace(stage, inputs={role: names[name] for role, name in stage.inputs.items()})
            same = next((other.name for other in stages.values() if _is_same(own, other)), None)
            name = same or _free_name(stage, member, stages)
            names[stage.name] = name
            stages.setdefault(name, replace(own, name=name))
        inputs |= {f"{kind}-{member.name}": names[kind] for kind in ("train", "evaluate")}
    what = {"sweep": recipe.name, "members": [[member.variant, member.seed] for member in members]}
    return [*stages.values(), stage_spec("compare", what, inputs, where_of(recipe))]


def _is_same(one: StageSpec, other: StageSpec) -> bool:
    return replace(one, name="", placement={}) == replace(other, name="", placement={})


def _free_name(stage: StageSpec, member: Member, taken: dict[str, StageSpec]) -> str:
    """A data stage keeps its name where it can; train and evaluate stages always have the member's."""
    shared = stage.kind not in ("train", "evaluate") and stage.name not in taken
    return stage.name if shared else f"{stage.name}-{member.name}"
