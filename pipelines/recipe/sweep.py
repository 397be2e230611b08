"""``sweep``: variants of a recipe, each trained with several seeds on the same data, and then compared."""

from __future__ import annotations

from typing import Annotated, Any, Self

from pydantic import Field, field_validator, model_validator

from pipelines.recipe.fields import Index, Section

LONGEST_NAME = 40
"""Characters that a variant's name may have."""
Variant = Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]*$", max_length=LONGEST_NAME)]
OWN = ("name", "sweep", "where", "seed")
"""Settings that a variant cannot change: it would be another sweep."""


class Sweep(Section):
    """What to compare."""

    variants: Annotated[dict[Variant, dict[str, Any]], Field(min_length=2)] = Field(
        description="Name → settings laid over the recipe's. The first is what the others are compared with."
    )
    seeds: Annotated[list[Index], Field(min_length=1)] = Field(
        default=[0, 1, 2], description="Of initial weights and order: each variant trains once with each."
    )

    @field_validator("variants")
    @classmethod
    def _changes_what_is_compared(cls, value: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        for name, changes in value.items():
            for key in OWN:
                if key in changes:
                    raise ValueError(f"variant {name} changes {key}, which all have in common; remove it")
        return value

    @model_validator(mode="after")
    def _seeds_differ(self) -> Self:
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds = {self.seeds} names one twice; its runs would be the same")
        return self
