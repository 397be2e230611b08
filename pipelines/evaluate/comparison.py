"""Two evaluations on the same questions: paired differences, what changed, and which facts differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from casa_core.errors import DataError
from pipelines.evaluate.facts import facts_of
from pipelines.evaluate.kept.files import read_samples
from pipelines.evaluate.metrics import resampling
from pipelines.evaluate.metrics.by_name import metric_named
from pipelines.evaluate.metrics.resampling import Comparison
from pipelines.evaluate.results import BenchmarkResult, Score, read_result, result_folders, truths_of
from pipelines.storage.uri import Folder

Sample = Mapping[str, Any]
ASKED = ("question_id", "prompt", "truths", "options")
"""What makes two rows the same question."""
ASIDE = ("counts", "url")
"""What may differ between two results of one judge."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluated:
    """One model's result on a benchmark, as its folder holds it."""

    folder: Folder
    result: BenchmarkResult
    samples: Sequence[Sample]


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """Two models on one benchmark.

    Attributes:
        comparison: Differences are the first model's score minus the second's.
        changed: Positions of the samples whose scores differ, those where the second is most better first.
        facts: Name → both values, of the facts that differ.
    """

    first: Evaluated
    second: Evaluated
    comparison: Comparison
    changed: tuple[int, ...]
    facts: Mapping[str, tuple[str, str]]

    @property
    def scores(self) -> tuple[Score, Score]:
        """Both headlines."""
        return self.first.result.score, self.second.result.score


def compare_folders(first: Folder, second: Folder) -> tuple[list[Compared], list[str]]:
    """Compare two evaluations on all benchmarks that both have.

    Args:
        first, second: Outputs of `casa evaluate`, or a benchmark's folder in each.

    Raises:
        DataError: Where there are no results, none of the same benchmark, or one of other questions.

    Returns:
        The comparisons, and the benchmarks that only one of them has.
    """
    one, two = ({path.name: path for path in result_folders(each)} for each in (first, second))
    if [first] == list(one.values()) and [second] == list(two.values()):  # one benchmark in two settings
        return [compare(_evaluated(first), _evaluated(second))], []
    if not (common := [name for name in one if name in two]):
        raise DataError(
            f"{first} and {second} have no benchmark in common.",
            f"The first has {', '.join(one)}, the second {', '.join(two)}.",
            "Evaluate both checkpoints on the same benchmarks.",
        )
    others = sorted(one.keys() ^ two.keys())
    return [compare(_evaluated(one[name]), _evaluated(two[name])) for name in common], others


def _evaluated(folder: Folder) -> Evaluated:
    return Evaluated(folder=folder, result=read_result(folder), samples=read_samples(folder))


def compare(first: Evaluated, second: Evaluated) -> Compared:
    """Compare two results of one benchmark.

    Raises:
        DataError: Where the questions are not the same, or their scores are by other rules.
    """
    _check(first, second)
    asked = [at for at, row in enumerate(first.samples) if row["score"] is not None]
    scores = [np.array([one.samples[at]["score"] for at in asked], np.float64) for one in (first, second)]
    truths = truths_of([first.samples[at] for at in asked])
    gains = scores[0] - scores[1]
    order = sorted(np.flatnonzero(gains), key=lambda at: (gains[at], at))
    facts, others = facts_of(first.result), facts_of(second.result)
    return Compared(
        first=first,
        second=second,
        comparison=resampling.compare(metric_named(first.result.score.metric), scores[0], scores[1], truths),
        changed=tuple(asked[at] for at in order),
        facts={
            name: (facts.get(name, ""), others.get(name, ""))
            for name in facts | others
            if facts.get(name) != others.get(name)
        },
    )


def _check(first: Evaluated, second: Evaluated) -> None:
    title = first.result.title
    rules = [f"{one.result.score.metric}, version {one.result.score.version}" for one in (first, second)]
    if rules[0] != rules[1]:
        raise DataError(
            f"The scores on {title} are by two rules.",
            f"The first are by {rules[0]}, the second by {rules[1]}.",
            "`casa score FOLDER` scores an evaluation's answers anew, without a model.",
        )
    judges = [{k: v for k, v in one.result.judge.items() if k not in ASIDE} for one in (first, second)]
    if judges[0] != judges[1]:
        name = next(k for k in judges[0] | judges[1] if judges[0].get(k) != judges[1].get(k))
        raise DataError(
            f"The scores on {title} were judged in two ways.",
            f"{name}: {judges[0].get(name, 'none')} and {judges[1].get(name, 'none')}.",
            "Evaluate both with the same judge and baseline; answers are kept.",
        )
    known, other = (_questions(one.samples) for one in (first, second))
    if known == other:
        return
    at = next((n for n, pair in enumerate(zip(known, other, strict=False)) if pair[0] != pair[1]), None)
    if at is None:
        why = f"The first are {len(known)}, the second {len(other)}."
    else:
        name = next(n for n, a, b in zip((*ASKED, "use"), known[at], other[at], strict=True) if a != b)
        why = f"Row {at} has another {name.replace('_', ' ')}: {known[at][0]} and {other[at][0]}."
    raise DataError(
        f"The questions on {title} are not the same.",
        why,
        "Evaluate both with the same data, prompts and --limit; or name two benchmarks' folders that agree.",
    )


def _questions(samples: Sequence[Sample]) -> list[tuple[Any, ...]]:
    return [(*(row[name] for name in ASKED), row["score"] is None) for row in samples]
