"""One worker of an evaluation: an engine that is fed continuously with the questions of several chunks.

References go in and texts come out, so little travels: a worker reads the questions of a chunk itself. While
the last answers of one chunk are generated, the pictures of the next are decoded and its prompts read; what a
question is answered depends on neither (``tests/core/engine/test_mixture.py``).
"""

from __future__ import annotations

import asyncio
import math
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, Protocol

import pyarrow as pa

from casa_core.engine.requests import GenerationRequest, SamplingParams
from casa_core.errors import CasaError
from casa_core.types import Image, Text
from pipelines.data.store.rows import is_stream, is_video
from pipelines.evaluate.benchmarks.layout.benchmark import Question
from pipelines.evaluate.kept.answers import CAPTIONS, Answer, AnswerStore, answer_key
from pipelines.evaluate.watching import comment, prompt_text, watch
from pipelines.storage.host import cached_copy
from pipelines.storage.uri import Folder

if TYPE_CHECKING:
    from casa_core.analysis.masking import Masking
    from casa_core.engine.engine import Engine

Mode = Literal["offline", "streaming"]

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
VIDEO_TOKENS = 46_080
"""Image tokens of a video in the paper's training on videos."""


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A checkpoint and how its answers are computed.

    Attributes:
        folder: The checkpoint; a remote one is copied to each machine once.
        digest: Changes with the folder's files; empty where it lies on every machine.
        fingerprint: From :func:`pipelines.evaluate.kept.answers.model_fingerprint`.
        sampling: Apart from the length of an answer, which is the benchmark's.
        slots: Questions answered together.
        threads: Torch's in one worker; 0 lets torch choose.
        mode: How a video is shown: all frames before the question, or frame by frame as a live stream.
        max_side: Largest side of a picture where it is not the checkpoint's; frames of a video may have a
            bound of their own.
        max_video_tokens: Image tokens that a video shown as a whole is fitted to, as training fits it; by
            default the checkpoint's, and ``VIDEO_TOKENS`` where it has none.
        mask: What attention is masked, see :mod:`casa_core.analysis.masking`.
    """

    folder: Folder
    digest: str
    fingerprint: str
    sampling: SamplingParams = field(default_factory=SamplingParams)
    dtype: str = "auto"
    quantize: str = "none"
    slots: int = 16
    threads: int = 1
    mode: Mode = "offline"
    max_side: int | None = None
    max_video_tokens: int | None = None
    mask: Masking | None = None


class AnswerWorker:
    """Answers chunks of questions; several threads may call it, for one engine.

    Args:
        sources: The benchmarks' questions, by name.
        store: The answers that need no inference.
    """

    def __init__(self, model: Model, sources: Mapping[str, QuestionSource], store: AnswerStore) -> None:
        self._model, self._sources, self._store = model, sources, store
        self._lock = threading.Lock()
        self._masked = ExitStack()

    def __call__(self, chunks: pa.Table) -> pa.Table:
        """``CHUNKS`` in, ``ROWS`` out."""
        rows: list[dict[str, Any]] = []
        for chunk in chunks.to_pylist():
            answering = self._chunk(chunk["benchmark"], chunk["start"], chunk["stop"])
            try:
                rows += asyncio.run_coroutine_threadsafe(answering, self._started[0]).result()
            except BaseExceptionGroup as group:
                raise group.exceptions[0] from group
        return pa.Table.from_pylist(rows, ROWS)

    @property
    def _started(self) -> tuple[asyncio.AbstractEventLoop, Mapping[str, Answer]]:
        """The loop that answers run on, and the answers that are known. Not made by the constructor, and the
        engine neither: Ray takes an error there for a lost actor, and starts it again and again."""
        with self._lock:
            return self._loop_and_known

    @cached_property
    def _loop_and_known(self) -> tuple[asyncio.AbstractEventLoop, Mapping[str, Answer]]:
        known, loop = self._store.read(), asyncio.new_event_loop()
        threading.Thread(target=loop.run_forever, name="casa-answers", daemon=True).start()
        return loop, known

    @cached_property
    def _streams(self) -> asyncio.Semaphore:
        """A place for each slot of the engine: it refuses a stream that has none."""
        return asyncio.Semaphore(self._model.slots)

    @property
    def _engine(self) -> Any:
        """Loaded by the first question that is not known."""
        with self._lock:
            return self._loaded

    @cached_property
    def _loaded(self) -> Any:
        import torch
        from transformers.utils import logging

        from casa_core.dtypes import DTYPES
        from casa_core.engine.client import EngineClient
        from casa_core.engine.engine import Engine
        from casa_core.engine.settings import EngineSettings

        logging.disable_progress_bar()
        own = self._model
        if own.threads:
            torch.set_num_threads(own.threads)
        settings = EngineSettings(
            slots=own.slots, answer_slots=0, waiting=1 << 20, live_share=math.inf, threads=True
        )
        options: dict[str, Any] = {} if own.quantize == "none" else {"quantize": own.quantize}
        if own.dtype != "auto":
            options["dtype"] = DTYPES[own.dtype]
        with cached_copy(own.folder, own.digest) as folder:
            engine = Engine.from_pretrained(folder, settings=settings, **options)
        self._change(engine)
        return EngineClient(engine)

    def _change(self, engine: Engine) -> None:
        """Have an engine show and attend to pictures as the model says."""
        from casa_core.analysis.masking import masked_attention

        own, shown = self._model, engine.processor
        shown.max_side = own.max_side or shown.max_side
        shown.max_video_tokens = own.max_video_tokens or shown.max_video_tokens or VIDEO_TOKENS
        _ = shown.image_settings  # refuses what cannot work
        if own.mask:
            self._masked.enter_context(masked_attention(engine.model, own.mask))

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
        known, error, answer = self._started[1].get(key), "", None
        engine = None if known else await asyncio.to_thread(lambda: self._engine)
        try:
            answer = known or await self._answer(engine, question, sampling)
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

    async def _answer(self, engine: Any, question: Question, sampling: SamplingParams) -> Answer:
        live = is_stream(question.sample)
        if live or (self._model.mode == "streaming" and is_video(question.sample)):
            async with self._streams:
                return await (comment if live else watch)(engine, question.sample, sampling)
        request = GenerationRequest(sample=question.sample, sampling=sampling, request_id=question.id)
        return Answer.of(await engine.generate(request))


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
