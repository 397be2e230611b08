"""The comparison of a sweep's variants: every number that the table, the plot and the page show."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pipelines.compare.members import Trained
from pipelines.compare.statistics import Interval, paired_difference, t_interval


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One variant.

    Attributes:
        variant: Its name.
        members: Its trained models, by seed.
        scores: Column → mean over seeds.
        differences: Column → paired difference from the first variant; empty for the first itself.
        parameters: Number of the model's parameters.
        loss, seconds, operations_per_token: Means over seeds, as in `Trained`.
    """

    variant: str
    members: tuple[Trained, ...]
    scores: dict[str, Interval]
    differences: dict[str, Interval]
    parameters: int
    loss: Interval
    seconds: Interval
    operations_per_token: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """A sweep's variants, side by side.

    Attributes:
        name: The recipe's name.
        columns: Names of the scores, the headline first.
        chance: Column → score of guessing.
        questions: Number of questions that each model answered.
        rows: Variants in the recipe's order; differences are taken from the first.
    """

    name: str
    columns: tuple[str, ...]
    chance: dict[str, float]
    questions: int
    rows: tuple[Row, ...]

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seeds of each variant."""
        return tuple(member.seed for member in self.rows[0].members)


def compare(name: str, trained: Sequence[Trained]) -> Comparison:
    """Compare the members of a sweep.

    Args:
        name: The sweep's name.
        trained: Every variant with every seed, variants in order.
    """
    variants = list(dict.fromkeys(member.variant for member in trained))
    by_variant = {variant: [m for m in trained if m.variant == variant] for variant in variants}
    first = by_variant[variants[0]]
    rows = tuple(_row(variant, by_variant[variant], first) for variant in variants)
    one = trained[0]
    return Comparison(
        name=name, columns=tuple(one.scores), chance=one.chance, questions=one.questions, rows=rows
    )


def _row(variant: str, members: Sequence[Trained], first: Sequence[Trained]) -> Row:
    columns = members[0].scores

    def of(column: str, own: Sequence[Trained]) -> list[float]:
        return [member.scores[column] for member in own]

    return Row(
        variant=variant,
        members=tuple(members),
        scores={column: t_interval(of(column, members)) for column in columns},
        differences={}
        if members[0] is first[0]
        else {column: paired_difference(of(column, members), of(column, first)) for column in columns},
        parameters=members[0].parameters,
        loss=t_interval([member.loss for member in members]),
        seconds=t_interval([member.seconds for member in members]),
        operations_per_token=members[0].operations_per_token,
    )
