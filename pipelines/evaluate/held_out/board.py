"""A kind of held-out source: which samples it takes, what a model is asked about one, and the score board.

One kind is one small file. A new one subclasses nothing: it has the members of `Benchmark` and an entry in
``BENCHMARKS`` (``held_out/__init__.py``).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from casa_core.types import Sample
from pipelines.dag.settings import stage_settings
from pipelines.evaluate.benchmarks.layout.benchmark import Question
from pipelines.evaluate.kept.answers import Caption
from pipelines.evaluate.metrics.intervals import Estimate

MODEL, BLIND = "model", "blind"
"""Names of the evaluated models: the trained model, and the same recipe trained with every image withheld."""


@stage_settings
class BenchmarkSettings:
    """The recipe's ``evaluate`` section.

    Attributes:
        batch_size: Questions an engine answers together.
        max_new_tokens: Limit on an answer's tokens.
        frame_tolerance: How many frames early or late a live word may be.
        baselines: Further models to evaluate; only ``blind`` exists.
    """

    batch_size: int
    max_new_tokens: int
    frame_tolerance: int
    baselines: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SpokenFrame:
    """One frame of a live clip: time (s), true and generated words before the next frame."""

    timestamp: float
    truth: str
    spoken: str
    truncated: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """One model's output for one question or one clip.

    Attributes:
        row: The sample's row in the clean artifact's held-out split.
        turn: Index of the question in the sample, from 0.
        question_type: Group in which it is averaged.
        correct: Whether the answer is right; ``None`` where right and wrong is not one bit (a clip).
        frames: The clip frame by frame; empty for a question.
    """

    row: int
    turn: int
    sample_id: str
    question_type: str
    question: str
    truth: str
    answer: str
    correct: bool | None
    frames: tuple[SpokenFrame, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreRow:
    """One line of a score board: a model or a baseline.

    Attributes:
        name: ``model``, ``blind``, ``chance``, ``silent``…
        key: Name of its headline value in the stage's summary, after the source's name.
        cells: Column → estimate. A constant baseline has no spread: its ``low`` equals its ``high``.
    """

    name: str
    key: str
    cells: dict[str, Estimate]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scoreboard:
    """The scores of every model and baseline on one source, ready to be printed or drawn.

    Attributes:
        benchmark: The benchmark's name.
        title: Heading.
        measure: Name of the measure, for people.
        columns: In reading order.
        headline: The column that stands for the whole.
        lines: The model first, baselines after it.
        notes: Further counts, as text.
        not_above_blind: Columns in which the model's interval is not above its blind twin's, so that nothing
            shows that it looks at the pictures.
    """

    benchmark: str
    title: str
    measure: str
    columns: tuple[str, ...]
    headline: str
    lines: tuple[ScoreRow, ...]
    notes: tuple[str, ...] = ()
    not_above_blind: tuple[str, ...] = ()

    def compared(self, *columns: str) -> Scoreboard:
        """The board with ``not_above_blind`` out of these columns, where a blind twin was evaluated."""
        model, *others = self.lines
        twin = next((line for line in others if line.name == BLIND), None)
        if twin is None:
            return self
        alike = tuple(name for name in columns if model.cells[name].low <= twin.cells[name].high)
        return replace(self, not_above_blind=alike)

    def headlines(self) -> dict[str, float]:
        """Each line's headline value under its summary key."""
        return {line.key: line.cells[self.headline].value for line in self.lines}


class Benchmark(Protocol):
    """A way to evaluate a model on samples of one shape."""

    @property
    def name(self) -> str:
        """A short stable slug."""
        ...

    def accepts(self, sample: Sample) -> bool:
        """Whether the benchmark can evaluate on samples of this shape."""
        ...

    def questions(self, sample: Sample, meta: Mapping[str, Any]) -> Iterator[Question]:
        """What is asked about one sample; ``meta`` are the corpus' remarks on it. Question types are the
        truths' categories."""
        ...

    def max_new_tokens(self, settings: BenchmarkSettings) -> int:
        """Longest answer; of a clip, the most tokens after one frame."""
        ...

    def judged(self, prediction: Prediction, sample: Sample, captions: Sequence[Caption]) -> Prediction:
        """A prediction with what follows from the sample, whose pictures' bytes are not needed.

        Args:
            captions: What was said after each frame of a clip; empty for a question.
        """
        ...

    def score(
        self, predictions: Mapping[str, Sequence[Prediction]], settings: BenchmarkSettings
    ) -> Scoreboard:
        """Score every model's predictions (by model name; ``model`` is present) and add fixed baselines."""
        ...
