"""An engine's client that counts: every answer and live session passes it, whatever the transport."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import aclosing, contextmanager
from typing import Any

from casa_core.engine.events import Failed, FrameDropped, FrameRefused, Outcome, StreamMoved
from casa_core.engine.load import LoadSnapshot
from casa_core.engine.protocol import FrameImage
from casa_core.engine.requests import (
    CaptionEvent,
    GenerationDelta,
    GenerationRequest,
    GenerationResult,
    StreamSettings,
)
from casa_core.engine.saved_session import SavedSession, Transcript
from casa_core.errors import CasaError
from serve.calls import EngineCalls
from serve.observe.metrics import Metrics
from serve.observe.record import RequestRecord, current_request

logger = logging.getLogger("casa.serve.session")


class ObservedClient:
    """A client with its answers and sessions counted; it offers what the client offers.

    Args:
        client: A The engines of this process or of a cluster.
    """

    def __init__(self, client: EngineCalls, metrics: Metrics) -> None:
        self._client, self._metrics = client, metrics

    async def generate(self, request: GenerationRequest) -> GenerationResult:
        """As the client's."""
        with _observed_answer(self._metrics) as answer:
            asked = time.monotonic()
            result = await self._client.generate(request)
            answer.first = asked + result.first_token_s
            answer.end(result.finish_reason, result)
        return result

    async def stream(self, request: GenerationRequest) -> AsyncGenerator[GenerationDelta, None]:
        """As the client's."""
        with _observed_answer(self._metrics) as answer:
            async with aclosing(self._client.stream(request)) as deltas:
                async for delta in deltas:
                    answer.first = answer.first or time.monotonic()
                    if delta.finish_reason is not None:
                        answer.end(delta.finish_reason, delta)
                    yield delta

    async def open_session(
        self, settings: StreamSettings, begin: SavedSession | Transcript | None = None
    ) -> ObservedSession:
        """As the client's."""
        try:
            session = await self._client.open_session(settings, begin)
        except CasaError:
            self._metrics.sessions.labels("refused").inc()
            raise
        left = begin.transcript if isinstance(begin, SavedSession) else begin
        return ObservedSession(session, self._metrics, asked=0 if left is None else len(left.prompts))

    async def ping(self) -> None:
        """As the client's."""
        await self._client.ping()

    async def load(self) -> LoadSnapshot:
        """As the client's."""
        return await self._client.load()

    def close(self) -> None:
        """As the client's."""
        self._client.close()


class _Answer:
    """One answer's times; ``first`` is when its first token came, 0 before."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics, self._record = metrics, current_request()
        self._arrived = self._record.started if self._record else time.monotonic()
        self.first = 0.0
        self.ended = False

    def end(self, reason: str, counts: GenerationDelta | GenerationResult | None = None) -> None:
        """Count it, once, with its tokens where it was finished."""
        if self.ended:
            return
        self.ended = True
        metrics, now = self._metrics, time.monotonic()
        metrics.answers.labels(reason).inc()
        if counts is None:
            return
        metrics.answer_seconds.observe(now - self._arrived)
        metrics.first_token_seconds.observe(self.first - self._arrived)
        if counts.completion_tokens > 1:
            metrics.per_token_seconds.observe((now - self.first) / (counts.completion_tokens - 1))
        metrics.prompt_tokens.inc(counts.prompt_tokens)
        metrics.cached_tokens.inc(counts.cached_tokens)
        metrics.image_tokens.inc(counts.image_tokens)
        metrics.generated_tokens.labels("answer").inc(counts.completion_tokens)
        _add(self._record, counts.prompt_tokens, counts.image_tokens, counts.completion_tokens)


@contextmanager
def _observed_answer(metrics: Metrics) -> Iterator[_Answer]:
    answer = _Answer(metrics)
    metrics.answers_running.inc()
    try:
        yield answer
    except CasaError:
        answer.end("refused")
        raise
    except Exception:
        answer.end("error")
        raise
    finally:
        metrics.answers_running.dec()
        answer.end("cancelled")  # if nothing else: its generator was closed, or its task cancelled


class ObservedSession:
    """A live session whose frames are counted; it offers what the client's session offers.

    Args:
        asked: Questions that it brings from another process.
    """

    def __init__(self, session: Any, metrics: Metrics, asked: int = 0) -> None:
        self._session, self._metrics, self._record = session, metrics, current_request()
        self._arrived: dict[float, float] = {}
        self._asked: deque[float] = deque([time.monotonic()] * asked)
        self._counts: dict[str, int] = dict.fromkeys(
            ("captioned", "on_time", "dropped", "refused", "lost", "answers", "tokens"), 0
        )
        self._started = time.monotonic()
        self._result = "closed"
        self._open = True
        metrics.sessions_open.inc()

    async def push_frame(self, image: FrameImage, timestamp: float) -> None:
        """As the session's."""
        self._arrived[timestamp] = time.monotonic()
        await self._session.push_frame(image, timestamp)

    async def prompt(self, query: str) -> None:
        """As the session's."""
        self._asked.append(time.monotonic())
        try:
            await self._session.prompt(query)
        except Exception:
            self._asked.pop()
            raise

    async def __aiter__(self) -> AsyncIterator[Outcome]:
        try:
            async for outcome in self._session:
                self._count(outcome)
                yield outcome
        except Exception:
            self._result = "failed"
            raise

    def finish(self) -> None:
        """As the session's."""
        self._session.finish()

    @property
    def place(self) -> tuple[str, str] | None:
        """As the session's."""
        return self._session.place

    def state(self) -> Transcript | None:
        """As the session's."""
        return self._session.state()

    async def leave(self) -> SavedSession | Transcript | None:
        """As the session's."""
        return await self._session.leave()

    def close(self) -> None:
        """As the session's; its line is logged."""
        self._session.close()
        if not self._open:
            return
        self._open = False
        seconds = time.monotonic() - self._started
        metrics = self._metrics
        metrics.sessions_open.dec()
        metrics.sessions.labels(self._result).inc()
        metrics.session_seconds.inc(seconds)
        said = {
            "session": self._record.id if self._record else "",
            "key": self._record.key if self._record else "",
            "result": self._result,
            "seconds": round(seconds, 3),
            **self._counts,
        }
        logger.info("live session %(session)s %(result)s after %(seconds)s s", said, extra={"fields": said})

    def _count(self, outcome: Outcome) -> None:
        match outcome:
            case CaptionEvent(prompt=str()):
                self._metrics.prompt_seconds.observe(self._since(self._asked.popleft()))
                self._generated("prompt", outcome)
                self._counts["answers"] += 1
            case CaptionEvent():
                self._caption(outcome)
            case FrameDropped(timestamp):
                self._lose(timestamp, "dropped")
            case FrameRefused(timestamp, _):
                self._lose(timestamp, "refused")
            case StreamMoved(exact, frames_lost):
                self._metrics.moves.labels("exact" if exact else "approximate").inc()
                for timestamp in frames_lost:
                    self._lose(timestamp, "lost")
            case Failed() | GenerationDelta() | GenerationResult():
                raise AssertionError("A session's iteration has none of these.")

    def _caption(self, caption: CaptionEvent) -> None:
        metrics, on_time = self._metrics, not caption.late_s
        if (arrived := self._arrived.pop(caption.timestamp, None)) is not None:
            metrics.caption_seconds.observe(self._since(arrived))
        metrics.late_seconds.observe(caption.late_s)
        metrics.on_time.inc(on_time)
        metrics.frames.labels("captioned").inc()
        self._counts["captioned"] += 1
        self._counts["on_time"] += on_time
        self._generated("caption", caption)

    def _lose(self, timestamp: float, outcome: str) -> None:
        self._arrived.pop(timestamp, None)
        self._metrics.frames.labels(outcome).inc()
        self._counts[outcome] += 1

    def _generated(self, work: str, caption: CaptionEvent) -> None:
        tokens = len(caption.token_ids)
        self._metrics.generated_tokens.labels(work).inc(tokens)
        self._counts["tokens"] += tokens
        _add(self._record, 0, 0, tokens)

    @staticmethod
    def _since(moment: float) -> float:
        return time.monotonic() - moment


def _add(record: RequestRecord | None, prompt: int, image: int, generated: int) -> None:
    if record is not None:
        record.prompt_tokens += prompt
        record.image_tokens += image
        record.tokens += generated
