"""The questions of a clean artifact's held-out split, for the runner; and what its answers come to."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import accumulate
from typing import Any

from pipelines.data.store.readers import CleanReader
from pipelines.data.store.rows import CleanSample
from pipelines.evaluate import HELD_OUT
from pipelines.evaluate.benchmarks.layout.benchmark import Question
from pipelines.evaluate.held_out import benchmark_for
from pipelines.evaluate.held_out.board import Benchmark, BenchmarkSettings, Prediction
from pipelines.evaluate.kept.answers import answer_of_row
from pipelines.storage.uri import Folder


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """The held-out questions of one source; a :class:`pipelines.evaluate.worker.QuestionSource`.

    Attributes:
        folder: The clean artifact.
        counts: How many questions each of its rows has.
        max_new_tokens: Longest answer; of a clip, the most tokens after one frame.
        most: So many questions at most, evenly spread.
    """

    folder: Folder
    counts: tuple[int, ...]
    max_new_tokens: int
    most: int | None = None

    @classmethod
    def of(cls, folder: Folder, settings: BenchmarkSettings, most: int | None = None) -> HeldOut:
        """Count a source's questions; none where it has no held-out split.

        Raises:
            DataError: If no benchmark takes its samples.
        """
        reader = _reader(folder)
        if len(reader) == 0:
            return cls(folder=folder, counts=(), max_new_tokens=settings.max_new_tokens)
        benchmark = benchmark_for(reader.sample(0).sample)
        samples = (reader.sample(row).sample for row in range(len(reader)))
        counts = tuple(sum(1 for _ in benchmark.questions(sample, {})) for sample in samples)
        return cls(folder=folder, counts=counts, max_new_tokens=benchmark.max_new_tokens(settings), most=most)

    @cached_property
    def _ends(self) -> list[int]:
        return list(accumulate(self.counts))

    def __len__(self) -> int:
        total = self._ends[-1] if self._ends else 0
        return total if self.most is None else min(total, self.most)

    def place(self, index: int) -> tuple[int, int]:
        """The row of a question, and its number among the row's."""
        number = index * self._ends[-1] // len(self)
        row = bisect_right(self._ends, number)
        return row, number - (self._ends[row] - self.counts[row])

    @property
    def benchmark(self) -> Benchmark:
        """The one that takes its samples."""
        return benchmark_for(_reader(self.folder).sample(0).sample)

    def read(self, start: int, stop: int) -> Iterator[Question]:
        """Those from ``start`` to before ``stop``."""
        reader, benchmark = _reader(self.folder), self.benchmark
        read, questions = -1, list[Question]()
        for index in range(start, stop):
            row, turn = self.place(index)
            if row != read:
                own = CleanSample.from_row(reader[row])
                read, questions = row, list(benchmark.questions(own.sample, own.meta))
            yield questions[turn]

    def predictions(self, rows: Iterable[Mapping[str, Any]]) -> Iterator[Prediction]:
        """What the runner's rows about it come to, in the same order."""
        reader, benchmark = _reader(self.folder), self.benchmark
        for row in rows:
            number, turn = self.place(row["index"])
            answer = answer_of_row(row, text=row["answer"].strip())
            prediction = Prediction(
                row=number,
                turn=turn,
                sample_id=row["question_id"],
                question_type=row["category"],
                question=row["prompt"],
                truth=row["truths"][0],
                answer=answer.text,
                correct=None,
            )
            yield benchmark.judged(prediction, reader.sample(number).sample, answer.captions)


@lru_cache(maxsize=8)
def _reader(folder: Folder) -> CleanReader:
    return CleanReader(folder, HELD_OUT)
