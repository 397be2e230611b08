"""One worker of an evaluation: an engine that is fed continuously with the questions of several chunks.

References go in and texts come out, so little travels: a worker reads the questions of a chunk itself. While
the last answers of one chunk are generated, the pictures of the next are decoded and its prompts read; what a
question is answered depends on neither (``tests/core/engine/test_mixture.py``).
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any, Protocol

import pyarrow as pa

from casa_core.engine.requests import SamplingParams
from casa_core.errors import CasaError
from casa_core.types import Image, Text
from pipelines.data.store.rows import is_stream
from pipelines.evaluate.benchmarks.layout.benchmark import Question
from pipelines.evaluate.kept.answers import CAPTIONS, Answer, AnswerStore, answer_key
from pipelines.evaluate.model_engine import Model, ModelEngine
from pipelines.evaluate.watching import prompt_text

ROWS = pa.schema(
    [
        ("benchmark", pa.string()),
        ("index", pa.int64()),
        ("question_id", pa.string()),
        ("category", pa.string()),
        ("group", pa.string()),
        ("prompt", pa.string()),
        ("truths", pa.list_(pa.string())),
        ("options", pa.list_(pa.string())),
        ("answer", pa.string()),
        ("finish_reason", pa.string()),
        ("prompt_tokens", pa.int32()),
        ("image_tokens", pa.int32()),
        ("completion_tokens", pa.int32()),
        ("captions", CAPTIONS),
        ("key", pa.string()),
        ("reused", pa.bool_()),
        ("error", pa.string()),
    ]
)
"""A worker's output: one row per question. Where one could not be answered, ``error`` says why."""

CHUNKS = pa.schema([("benchmark", pa.string()), ("start", pa.int64()), ("stop", pa.int64())])
AT_A_TIME = 2
"""Chunks that a worker has in hand."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Unreadable:
    """A row that is no question, and why."""

    id: str
    reason: str


class QuestionSource(Protocol):
    """The questions of one benchmark, read by whichever worker; small when it travels."""

    @property
    def max_new_tokens(self) -> int:
        """Longest answer."""
        ...

    def __len__(self) -> int: ...

    def read(self, start: int, stop: int) -> Iterator[Question | Unreadable]:
        """Those from ``start`` to before ``stop``."""
        ...


class AnswerWorker:
    """Answers chunks of questions; several threads may call it, for one engine.

    Args:
        sources: The benchmarks' questions, by name.
        store: The answers that need no inference.
    """

    def __init__(self, model: Model, sources: Mapping[str, QuestionSource], store: AnswerStore) -> None:
        self._model, self._sources, self._store = model, sources, store
        self._engine = ModelEngine(model)
        self._lock = threading.Lock()

    def __call__(self, chunks: pa.Table) -> pa.Table:
        """``CHUNKS`` in, ``ROWS`` out."""
        rows: list[dict[str, Any]] = []
        for chunk in chunks.to_pylist():
            _ = self._known  # read here and not in the engine's event loop, which must not wait
            rows += self._engine.run(self._chunk(chunk["benchmark"], chunk["start"], chunk["stop"]))
        return pa.Table.from_pylist(rows, ROWS)

    @cached_property
    def _loaded_answers(self) -> Mapping[str, Answer]:
        return self._store.read()

    @property
    def _known(self) -> Mapping[str, Answer]:
        """The answers that are known; read by the first chunk."""
        with self._lock:
            return self._loaded_answers

    async def _chunk(self, benchmark: str, start: int, stop: int) -> list[dict[str, Any]]:
        source = self._sources[benchmark]
        questions = await asyncio.to_thread(lambda: list(source.read(start, stop)))
        sampling = replace(self._model.sampling, max_new_tokens=source.max_new_tokens)
        # The longest first: the last to end is then a short one.
        order = sorted(range(len(questions)), key=lambda at: -_cost(questions[at]))
        async with asyncio.TaskGroup() as group:
            tasks = {at: group.create_task(self._row(questions[at], sampling)) for at in order}
        labels = ({"benchmark": benchmark, "index": start + at} for at in range(len(questions)))
        return [{**label, **tasks[at].result()} for at, label in enumerate(labels)]

    async def _row(self, question: Question | Unreadable, sampling: SamplingParams) -> dict[str, Any]:
        if isinstance(question, Unreadable):
            return {"question_id": question.id, "error": question.reason, "reused": False}
        own, truth = self._model, question.truth
        mode = "streaming" if is_stream(question.sample) else own.mode
        key = await asyncio.to_thread(answer_key, own.fingerprint, question.sample, sampling, mode)
        known, error, answer = self._known.get(key), "", None
        if known is None:
            await asyncio.to_thread(self._engine.load)  # where it cannot be, that is no question's error
        try:
            answer = known or await self._engine.answer(question.sample, sampling, question.id)
        except CasaError as refused:
            error = " ".join(str(part) for part in refused.args[:2])
        return {
            "question_id": question.id,
            "category": truth.category,
            "group": truth.group,
            "prompt": prompt_text(question.sample),
            "truths": list(truth.answers),
            "options": list(truth.options),
            "key": key,
            "reused": known is not None,
            "error": error,
            **({} if answer is None else {**asdict(answer), "answer": answer.text}),
        }


def chunk_table(sources: Mapping[str, QuestionSource], size: int) -> list[dict[str, Any]]:
    """Every benchmark's questions in chunks: rows of ``CHUNKS``."""
    return [
        {"benchmark": name, "start": start, "stop": min(start + size, len(source))}
        for name, source in sources.items()
        for start in range(0, len(source), size)
    ]


def _cost(question: Question | Unreadable) -> int:
    """What a question's reading takes, roughly: bytes of pictures, characters of text."""
    if isinstance(question, Unreadable):
        return 0
    parts: Sequence[Any] = question.sample.parts
    pictures = {id(part.data): len(part.data) for part in parts if isinstance(part, Image) and part.data}
    return sum(pictures.values()) + sum(len(part.text) for part in parts if isinstance(part, Text))
