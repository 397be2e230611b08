"""Results as `casa evaluate` writes them, of answers that a test chooses: no model, no inference."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pipelines.evaluate.benchmarks.layout.benchmark import Question
from pipelines.evaluate.results import BenchmarkResult, Throughput, judged, result_of, write_result
from pipelines.evaluate.tables import TableQuestions
from pipelines.evaluate.worker import ROWS, prompt_text
from pipelines.storage.uri import Folder

Answers = Callable[[int, Question], str | Exception]
"""Index and question → an answer, or why there is none."""


def write_evaluation(
    folder: Folder, tables: TableQuestions, answers: Answers, name: str = "m", **decoding: Any
) -> BenchmarkResult:
    """Answer a benchmark's questions and write its folder below ``folder``."""
    benchmark = tables.benchmark
    rows = [_row(at, one, answers) for at, one in enumerate(tables.read(0, len(tables)))]
    samples, scores = judged(benchmark, rows)
    facts = {
        "checkpoint": {"name": name, "folder": f"/models/{name}", "fingerprint": name * 8},
        "data": {"root": tables.root, "split": "test", "digest": tables.digest, "most": tables.most},
        "decoding": {"mode": "offline", "sampling": {"max_new_tokens": 8, **decoding}},
        "throughput": Throughput(seconds=2.5, asked=10, tokens=20, workers=1, device="cpu"),
        "code": {"evaluate": "1"},
        "date": "2026-03-01T09:30:00+00:00",
    }
    result = result_of(benchmark, samples, scores, facts)
    write_result(folder / benchmark.name, result, samples)
    return result


def _row(at: int, question: Any, answers: Answers) -> dict[str, Any]:
    row: dict[str, Any] = dict.fromkeys(ROWS.names) | {"index": at, "question_id": question.id, "error": ""}
    if not isinstance(question, Question):
        return row | {"error": question.reason}
    truth, said = question.truth, answers(at, question)
    row |= {
        "category": truth.category,
        "group": truth.group,
        "prompt": prompt_text(question.sample),
        "truths": list(truth.answers),
        "options": list(truth.options),
    }
    if isinstance(said, Exception):
        return row | {"error": str(said)}
    return row | {"answer": said, "finish_reason": "length" if said.endswith("…") else "stop"}
