"""The interface of a metric: score one answer, and turn the scores of a test set into its headline number.

One rule is one small file; a new one subclasses `Metric` and gets an entry in `by_name.METRICS`. Everything
here is arithmetic on answers: a new version of a rule costs no inference.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Truth:
    """What is known about the right answer of one question.

    Attributes:
        answers: Every answer that counts as right; for a multiple choice the letter of the right option.
        options: Texts of a multiple choice's options, in the order of their letters.
        category: Part of the test set that the question belongs to; empty where there are none.
        group: Questions of one group are not independent (a pair of MME, the questions about one video) and
            are resampled together; empty for a question of its own.
    """

    answers: tuple[str, ...]
    options: tuple[str, ...] = ()
    category: str = ""
    group: str = ""


@dataclass(frozen=True, slots=True)
class Clusters:
    """Scores added up over what is resampled together, ``g`` clusters in all.

    The headline is a sum, or a mean, over strata of ``points of the stratum / weight of the stratum``.

    Attributes:
        points: Sum of a cluster's scores, [g].
        weights: What a cluster counts, most often its number of questions, [g].
        strata: Number of each cluster's stratum, from 0 on, [g].
        names: Name of each stratum.
    """

    points: FloatArray
    weights: FloatArray
    strata: IntArray
    names: tuple[str, ...] = ("",)


class Metric(ABC):
    """A rule that scores answers.

    Attributes:
        name: A short stable slug, unique among `by_name.METRICS`.
        version: Changes whenever a score may change. A score means something only with it.
        source: Where the rule comes from: a paper, or an evaluation's code.
        unit: Unit of the headline, for people.
        scale: Headline of an answerer that is always right; of one stratum where ``sums_strata``.
        sums_strata: Whether strata are added up instead of averaged.
        needs_whole_set: Whether a score depends on the other questions' truths, so that only `scores` of a
            whole set gives it.
        needs_judge: Whether scores come from a judge's verdicts, and `score` only stands in for them.
    """

    name: ClassVar[str]
    version: ClassVar[str]
    source: ClassVar[str]
    unit: ClassVar[str] = "%"
    scale: ClassVar[float] = 100.0
    sums_strata: ClassVar[bool] = False
    needs_whole_set: ClassVar[bool] = False
    needs_judge: ClassVar[bool] = False

    @abstractmethod
    def score(self, answer: str, truth: Truth) -> float:
        """Score of one answer, from 0 to 1."""

    def scores(self, answers: Iterable[str], truths: Iterable[Truth]) -> FloatArray:
        """Scores of many answers, [n]."""
        return np.array([self.score(a, t) for a, t in zip(answers, truths, strict=True)], dtype=np.float64)

    def clusters(self, scores: FloatArray, truths: Sequence[Truth]) -> Clusters:
        """One cluster per group, all in one stratum: the headline is the mean over questions."""
        return clustered(scores, truths)

    def total(self, scores: FloatArray, truths: Sequence[Truth]) -> float:
        """The headline number of a test set, in ``unit``.

        Args:
            scores: As `scores` gives them, [n].
            truths: The truths they belong to.

        Raises:
            ValueError: If there are no scores.
            DataError: Where the truths are not what the metric needs.
        """
        clusters = self.clusters(scores, truths)
        return float(self.headline(clusters, np.ones((1, len(clusters.points))))[0])

    def headline(self, clusters: Clusters, counts: FloatArray) -> FloatArray:
        """Headlines of several draws, [b], from how often each draw has each cluster, ``counts`` [b, g]."""
        members = np.zeros((len(clusters.points), len(clusters.names)))
        members[np.arange(len(clusters.points)), clusters.strata] = 1.0
        points = counts @ (members * clusters.points[:, None])
        weights = counts @ (members * clusters.weights[:, None])
        values = points / weights
        return self.scale * (values.sum(axis=1) if self.sums_strata else values.mean(axis=1))

    def parts(self, scores: FloatArray, truths: Sequence[Truth]) -> dict[str, float]:
        """Numbers beside the headline, in ``unit``: here the mean of each category, in alphabetical order."""
        found: dict[str, list[float]] = defaultdict(list)
        for score, truth in zip(scores, truths, strict=True):
            found[truth.category].append(float(score))
        return {name: self.scale * float(np.mean(found[name])) for name in sorted(found) if name}


def clustered(scores: FloatArray, truths: Sequence[Truth], *, by_category: bool = False) -> Clusters:
    """Scores added up per group, a question without one being its own, in the order of first appearance.

    Args:
        scores: Scores of the questions, [n].
        truths: Their truths.
        by_category: Whether every category is a stratum of its own; a group is then one of its category.

    Raises:
        ValueError: If there are no scores, or not as many as truths.
    """
    if not len(scores) or len(scores) != len(truths):
        raise ValueError("A headline needs at least one score, and as many truths as scores.")
    strata: dict[str, int] = {}
    numbers: dict[tuple[int, str | int], int] = {}
    member = np.empty(len(scores), dtype=np.int64)
    for at, truth in enumerate(truths):
        stratum = strata.setdefault(truth.category if by_category else "", len(strata))
        member[at] = numbers.setdefault((stratum, truth.group or at), len(numbers))
    return Clusters(
        points=np.bincount(member, scores, len(numbers)).astype(np.float64),
        weights=np.bincount(member, minlength=len(numbers)).astype(np.float64),
        strata=np.array([stratum for stratum, _ in numbers], dtype=np.int64),
        names=tuple(strata),
    )


class CategoryMean(Metric):
    """A metric whose headline is the mean over categories, each counting the same."""

    def clusters(self, scores: FloatArray, truths: Sequence[Truth]) -> Clusters:
        """One cluster per group, every category a stratum."""
        return clustered(scores, truths, by_category=True)


def without_stop(answer: str, truth: str) -> str:
    """The answer without outer white space and trailing full stops, unless the truth ends with one too.

    The official repository of CASA strips them, since its models like to end an answer with one; there a
    truth such as ``U.S.`` can no longer be given.
    """
    said = answer.strip()
    return said if truth.strip().endswith(".") else said.rstrip(".").rstrip()
