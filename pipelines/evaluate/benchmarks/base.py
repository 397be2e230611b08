"""What every benchmark is: a way to question an engine about held-out samples, and to score its answers.

One benchmark is one small file. A new one subclasses nothing: it offers the members of `Benchmark` and is
named in ``BENCHMARKS`` (``benchmarks/__init__.py``). Most picture benchmarks differ from `vqa.Vqa` only in
their prompt, in when an answer counts as right and in what is averaged.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from casa_core.engine.protocol import EngineProtocol
from casa_core.types import Sample
from pipelines.evaluate.metrics.scores import Estimate

MODEL, BLIND = "model", "blind"
"""Names of the two examinees: the trained model, and the same recipe trained with every image withheld."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The recipe's ``evaluate`` section.

    Attributes:
        batch_size: Questions an engine answers together.
        max_new_tokens: Limit on an answer's tokens.
        frame_tolerance: How many frames early or late a live word may be.
        baselines: Further models that sit the same exam; only ``blind`` exists.
    """

    batch_size: int = 64
    max_new_tokens: int = 8
    frame_tolerance: int = 1
    baselines: tuple[str, ...] = (BLIND,)

    @classmethod
    def of_recipe(cls, section: Mapping[str, Any]) -> Settings:
        """Read the validated section of a recipe; ``baselines`` may be any sequence."""
        return cls(**{**section, "baselines": tuple(section.get("baselines", (BLIND,)))})


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalSample:
    """A held-out sample with its bytes, its row in the clean artifact and the corpus' remarks on it."""

    row: int
    sample: Sample
    meta: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class SpokenFrame:
    """One frame of a live clip: its time in seconds, what should and what was said before the next frame."""

    timestamp: float
    truth: str
    spoken: str
    truncated: bool
    latency_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """What one model said to one question or one clip.

    Attributes:
        row: Row of the sample in the clean artifact's held-out split.
        turn: Which of the sample's questions, from 0.
        question_type: The group it is averaged in.
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
        key: What its headline value is called in the stage's summary, after the source's name.
        cells: Column → estimate. A constant baseline has no spread: its ``low`` equals its ``high``.
    """

    name: str
    key: str
    cells: dict[str, Estimate]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scoreboard:
    """The scores of every model and baseline on one source, ready to be printed or drawn.

    Attributes:
        benchmark: Name of the benchmark.
        title: For a heading.
        measure: What the numbers are, in words.
        columns: In reading order.
        headline: The column that stands for the whole.
        lines: The model first, baselines after it.
        notes: Further counts worth knowing, in words.
    """

    benchmark: str
    title: str
    measure: str
    columns: tuple[str, ...]
    headline: str
    lines: tuple[ScoreRow, ...]
    notes: tuple[str, ...] = ()

    def headlines(self) -> dict[str, float]:
        """Each line's headline value under its summary key."""
        return {line.key: line.cells[self.headline].value for line in self.lines}


class Benchmark(Protocol):
    """A way to examine a model."""

    @property
    def name(self) -> str:
        """A short stable slug."""
        ...

    def accepts(self, sample: Sample) -> bool:
        """Whether samples of this shape are what the benchmark asks about."""
        ...

    def batch_size(self, settings: Settings) -> int:
        """How many samples one call of `run` should get."""
        ...

    def run(
        self, engine: EngineProtocol, held_out: Sequence[EvalSample], settings: Settings
    ) -> list[Prediction]:
        """Question the engine; outcomes follow the order of the samples (and of the turns within one)."""
        ...

    def score(self, outcomes: Mapping[str, Sequence[Prediction]], settings: Settings) -> Scoreboard:
        """Score every model's outcomes (by model name; ``model`` is present) and add the fixed baselines."""
        ...


def constant(values: Iterable[tuple[str, float]], count: int) -> dict[str, Estimate]:
    """Cells of a baseline that does not vary: value, no spread."""
    return {column: Estimate(value, value, value, count) for column, value in values}
