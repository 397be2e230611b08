"""POST /v1/captions: a whole video file, captioned as a live stream would be, none of its frames dropped.

`response_format` has the names of OpenAI's transcriptions: `json`, `verbose_json`, `text`, `srt` and `vtt`;
`sse` sends the session's events as they come. A file that is damaged in the middle is captioned up to there,
and the answer has a warning.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Coroutine, Iterator
from contextlib import AsyncExitStack, aclosing, contextmanager
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse
from pydantic import Field, ValidationError
from starlette.types import Receive, Scope, Send

from casa_core.errors import MediaError
from infra.subtitles import Caption, cues, sub_rip, web_vtt
from serve.api.errors import internal_error, too_many
from serve.api.schemas import Body, Words
from serve.live.event_log import Event
from serve.live.messages import SessionStart
from serve.live.run import LiveRun
from serve.live.sessions import LiveSessions, Owner
from serve.live.sse import EventStream, sse
from serve.live.video import UploadedVideo, damage_of, invalid_video, opened, received

logger = logging.getLogger("casa.serve")
PATH = "/v1/captions"
WARNING_HEADER = "x-casa-warning"
CLIENT_CLOSED = 499
"""nginx's status for a call whose client has left; no client reads it."""
TEXTS = {"vtt": "text/vtt", "srt": "application/x-subrip", "text": "text/plain"}


class CaptionOptions(Body):
    """How a video is captioned; fields of the form, or of the address."""

    query: Words = Field(default="", description="What to speak about.")
    model: Words | None = None
    fps: Annotated[float, Field(gt=0, le=60, allow_inf_nan=False)] = Field(
        default=2.0, description="Frames per second of video; models are trained with 2."
    )
    max_tokens_per_frame: Annotated[int, Field(ge=1)] | None = None
    response_format: Literal["json", "verbose_json", "text", "srt", "vtt", "sse"] = "json"


def captions_router(sessions: LiveSessions) -> APIRouter:
    """The route that captions a file, in one of a replica's live sessions."""
    router = APIRouter(tags=["live"])
    uploads = _Uploads(sessions.settings.limits.uploads)

    @router.post(PATH, summary="Caption a video file.", openapi_extra={"requestBody": _BODY})
    async def caption_video(request: Request) -> Response:
        async with AsyncExitStack() as stack:
            sessions.check()  # before the file comes
            stack.enter_context(uploads.taken())
            path, fields = await stack.enter_async_context(received(request))
            options = _options(fields)
            video = await stack.enter_async_context(opened(path, options.fps, sessions.settings.limits))
            named = options.model_dump(include={"query", "model", "max_tokens_per_frame"})
            run = await sessions.start(SessionStart(**named), Owner.of(request.state))
            stack.callback(run.close)
            if options.response_format == "sse":
                return _CaptionStream(_lines(run, video), stack.pop_all())
            answer = await _unless_gone(request, _answer(run, video, options))
            return answer or Response(status_code=CLIENT_CLOSED)

    return router


class _Uploads:
    """Counts the files that are received and captioned at a time: each takes room on disk."""

    def __init__(self, limit: int) -> None:
        self._free = limit

    @contextmanager
    def taken(self) -> Iterator[None]:
        if not self._free:
            raise too_many("As many videos are captioned as may be. Try again later.", "too_many_uploads")
        self._free -= 1
        try:
            yield
        finally:
            self._free += 1


class _CaptionStream(EventStream):
    """Server-sent events, and what they need until they end."""

    def __init__(self, events: AsyncGenerator[str, None], needed: AsyncExitStack) -> None:
        super().__init__(events)
        self._needed = needed

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with self._needed:
            await super().__call__(scope, receive, send)


def _options(fields: dict[str, str]) -> CaptionOptions:
    try:
        return CaptionOptions.model_validate_strings(fields, strict=False)
    except ValidationError as error:
        raise RequestValidationError(error.errors()) from error


async def captioned(run: LiveRun, video: UploadedVideo) -> AsyncGenerator[Event, None]:
    """A session's events while it is given a video's frames, to its end."""
    reader = run.attach()
    feeding = asyncio.create_task(_feed(run, video))
    try:
        async for event in reader:
            yield event
    finally:
        feeding.cancel()
        await asyncio.gather(feeding, return_exceptions=True)
        run.close()


async def _feed(run: LiveRun, video: UploadedVideo) -> None:
    """Give a session the frames, no more at a time than it queues."""
    try:
        async with aclosing(video.frames()) as frames:
            async for time, jpeg in frames:
                await run.until_room()
                if run.over:
                    return
                await run.push(jpeg, time)
        if video.damage is not None:
            run.warn("truncated_video", damage_of(video.damage))
        run.finish()
    except MediaError as error:
        run.fail(invalid_video(error))
    except Exception:
        if not run.over:
            logger.exception("captions %s failed", run.id)
            run.fail(internal_error(run.id))


async def _lines(run: LiveRun, video: UploadedVideo) -> AsyncGenerator[str, None]:
    async with aclosing(captioned(run, video)) as events:
        async for event in events:
            yield sse(event)


async def _answer(run: LiveRun, video: UploadedVideo, options: CaptionOptions) -> Response:
    """The whole answer.

    Raises:
        ApiError: What ended the session.
    """
    said: list[Caption] = []
    warnings: list[dict[str, str]] = []
    async with aclosing(captioned(run, video)) as events:
        async for event in events:
            if event["type"] == "caption" and event["text"]:
                said.append((event["timestamp"], event["text"]))
            elif event["type"] == "warning":
                warnings.append(event["warning"])
    if run.failure is not None:
        raise run.failure
    headers = {WARNING_HEADER: " ".join(one["message"] for one in warnings)} if warnings else None
    if options.response_format in TEXTS:
        text = _text(said, warnings, options.response_format)
        return PlainTextResponse(text, headers=headers, media_type=TEXTS[options.response_format])
    whole = {
        "text": " ".join(text for _, text in said),
        "duration": round(video.duration, 3),
        "usage": run.usage,
        "warnings": warnings,
    }
    if options.response_format == "verbose_json":
        whole |= _segments(said)
    return JSONResponse(whole, headers=headers)


def _text(said: list[Caption], warnings: list[dict[str, str]], form: str) -> str:
    if form == "srt":
        return sub_rip(said)
    if form == "vtt":
        return "\n".join([web_vtt(said), *(f"NOTE {one['message']}\n" for one in warnings)])
    return "".join(f"{text}\n" for _, _, text in cues(said))


def _segments(said: list[Caption]) -> dict[str, Any]:
    return {
        "task": "caption",
        "segments": [
            {"id": number, "start": start, "end": end, "text": text}
            for number, (start, end, text) in enumerate(cues(said))
        ],
        "captions": [{"timestamp": time, "text": text} for time, text in said],
    }


async def _unless_gone(request: Request, work: Coroutine[Any, Any, Response]) -> Response | None:
    """The work's result; `None` where the client leaves before, which ends the work."""

    async def left() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    working, leaving = asyncio.ensure_future(work), asyncio.ensure_future(left())
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        return working.result() if working.done() else None
    finally:
        for task in (working, leaving):
            task.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


_BODY = {
    "required": True,
    "content": {
        "video/*": {"schema": {"type": "string", "format": "binary"}},
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "required": ["file"],
                "properties": {
                    "file": {"type": "string", "format": "binary"},
                    **CaptionOptions.model_json_schema()["properties"],
                },
            }
        },
    },
}
