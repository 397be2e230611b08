"""Published scores of the paper's benchmarks, each with its source: README, project page and paper differ."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

import yaml

from pipelines.recipe.fields import Section

FILE = Path(__file__).with_name("published.yaml")


class Table(Section):
    """A table of a source: model → its scores, in the order of the table's columns."""

    source: str
    where: str
    setting: str
    columns: Literal["pictures", "videos", "live"] = "pictures"
    rows: dict[str, list[float | None]]


class Tables(Section):
    """The whole file."""

    pictures: list[str]
    videos: list[str]
    live: list[str]
    tables: list[Table]
    groups: list[str]
    group_tables: list[Table]


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedScore:
    """One number of one table.

    Attributes:
        benchmark: Name of the benchmark, or of a group of benchmarks.
        model: As the source calls it, with what sets the row apart.
        score: In the unit of the benchmark's headline.
        source: Short name of the source; ``where`` and ``setting`` say more.
    """

    benchmark: str
    model: str
    score: float
    source: str
    where: str
    setting: str


def published(benchmark: str, *, source: str | None = None) -> list[PublishedScore]:
    """Every published score of a benchmark, in the order of the sources; none for an unknown one.

    Args:
        benchmark: Its name, as in ``catalogue.CATALOGUE``.
        source: Only those of this source.
    """
    return [s for s in _scores() if s.benchmark == benchmark and source in (None, s.source)]


MASKED = {
    "self": "own token masked",
    "random_text": "random text token masked",
    "random_token": "random token masked",
}
"""Kind of masking → as table 8 calls it."""


def published_beside(
    benchmark: str, max_side: int | None = None, mask: str | None = None
) -> list[PublishedScore]:
    """The same, those first that were measured in the same mode: at a resolution, or masked."""

    def other(score: PublishedScore) -> bool:
        if mask:
            return not (score.source == "paper table 8" and score.model.endswith(f", {MASKED[mask]}"))
        return not (score.source == "paper table 12" and score.model.endswith(f" at {max_side}"))

    return sorted(published(benchmark), key=other)


def published_groups(source: str) -> list[PublishedScore]:
    """The means over groups of benchmarks that a table of the paper gives."""
    return [s for s in _group_scores() if s.source == source]


@cache
def tables() -> Tables:
    """The file of published tables."""
    return Tables.model_validate(yaml.safe_load(FILE.read_text(encoding="utf-8")))


@cache
def _scores() -> tuple[PublishedScore, ...]:
    found = tables()
    names = {"pictures": found.pictures, "videos": found.videos, "live": found.live}
    return tuple(score for table in found.tables for score in _of_table(table, names[table.columns]))


@cache
def _group_scores() -> tuple[PublishedScore, ...]:
    found = tables()
    return tuple(score for table in found.group_tables for score in _of_table(table, found.groups))


def _of_table(table: Table, columns: list[str]) -> list[PublishedScore]:
    return [
        PublishedScore(
            benchmark=name,
            model=model,
            score=score,
            source=table.source,
            where=table.where,
            setting=table.setting,
        )
        for model, row in table.rows.items()
        for name, score in zip(columns, row, strict=True)
        if score is not None
    ]
