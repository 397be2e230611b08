"""Live sessions as plain HTTP calls, for clients that have no WebSocket: /v1/streaming/sessions.

The messages are those of the WebSocket (`messages`); what becomes of frames and questions is read as
server-sent events. A session's id is all that one needs to use it. A session that is neither read nor sent
anything for `limits.resume_seconds` ends.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Request, Response
from starlette.datastructures import UploadFile

from serve.api.errors import ApiError, as_api_error, bad_request
from serve.api.json_body import JsonRoute
from serve.api.responses import ErrorResponse
from serve.api.settings import Limits
from serve.live.messages import (
    Frame,
    FrameText,
    SessionPrompt,
    SessionStart,
    json_frame,
    raw_frame,
)
from serve.live.run import LiveRun
from serve.live.sessions import LiveSessions, Owner
from serve.live.sse import EventStream, event_lines

SESSION_HEADER = "x-session-id"
"""Clients may send a session's id in it; a proxy can then find the replica that has it."""
PATH = "/v1/streaming/sessions"
ENDED: dict[int | str, dict[str, Any]] = {409: {"description": "It has ended.", "model": ErrorResponse}}
EVENTS: dict[int | str, dict[str, Any]] = {
    200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}},
    204: {"description": "It has ended, and everything was read."},
    **ENDED,
}
IMAGE_SCHEMA = {"schema": {"type": "string", "format": "binary"}}
FRAME_BODY = {
    "required": True,
    "content": {
        "image/*": IMAGE_SCHEMA,
        "application/json": {"schema": FrameText.model_json_schema()},
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "required": ["timestamp", "image"],
                "properties": {"timestamp": {"type": "number"}, "image": IMAGE_SCHEMA["schema"]},
            }
        },
    },
}
After = Annotated[int, Query(ge=0, description="Send the events after this number.")]


def rest_router(sessions: LiveSessions) -> APIRouter:
    """The routes of live sessions over plain HTTP."""
    router = APIRouter(prefix=PATH, tags=["live"], route_class=JsonRoute)
    limits = sessions.settings.limits

    @router.post("", status_code=201, summary="Open a live session.")
    async def open_session(
        request: Request, response: Response, body: SessionStart | None = None
    ) -> dict[str, Any]:
        run = await sessions.start(body or SessionStart(), Owner.of(request.state))
        response.headers.update({"location": f"{PATH}/{run.id}", SESSION_HEADER: run.id})
        return {**_described(run), "urls": _urls(run.id), "session_header": SESSION_HEADER}

    @router.get("/{session_id}", summary="State and usage of a session.")
    async def describe(session_id: str) -> dict[str, Any]:
        return _described(await sessions.find(session_id))

    @router.post(
        "/{session_id}/frame",
        status_code=202,
        summary="Send a frame.",
        responses=ENDED,
        openapi_extra={"requestBody": FRAME_BODY},
    )
    async def push_frame(session_id: str, request: Request) -> dict[str, Any]:
        run = await sessions.find(session_id)
        async with _refusals_noted(run):
            frame = await _frame(request, limits)
            await run.push(frame.image_bytes, frame.timestamp)
        return {**_place(run), "timestamp": frame.timestamp}

    @router.post("/{session_id}/prompt", status_code=202, summary="Ask something further.", responses=ENDED)
    async def prompt(session_id: str, body: SessionPrompt) -> dict[str, Any]:
        run = await sessions.find(session_id)
        async with _refusals_noted(run):
            await run.ask(body.query)
        return _place(run)

    @router.get(
        "/{session_id}/events",
        summary="What becomes of frames and questions, as it happens.",
        response_class=Response,
        responses=EVENTS,
    )
    async def events(
        session_id: str,
        after: After = 0,
        last_event_id: Annotated[str | None, Header(description="As browsers send it; for `after`.")] = None,
    ) -> Response:
        run = await sessions.find(session_id, to_read=True)
        if last_event_id is not None:
            after = _event_number(last_event_id)
        if run.over and after >= run.event:
            return Response(status_code=204)  # tells browsers not to connect again
        resumed = run.resumed_event(after) if after else None
        return EventStream(event_lines(run, run.attach(after), resumed))

    @router.delete("/{session_id}", summary="End a session.")
    async def end(
        session_id: str,
        drain: Annotated[bool, Query(description="Wait until what was sent has been captioned.")] = False,
    ) -> dict[str, Any]:
        run = await sessions.find(session_id)
        if drain and not run.over:
            run.finish()
            await run.until_over()
        run.close()
        return _described(run)

    return router


def _described(run: LiveRun) -> dict[str, Any]:
    failure = run.failure.body()["error"] if run.failure is not None else None
    return {
        "id": run.id,
        "object": "streaming.session",
        **run.facts,
        "state": "ended" if run.over else "open",
        "is_read": run.is_read,
        **_place(run),
        "usage": run.usage,
        "error": failure,
    }


def _place(run: LiveRun) -> dict[str, Any]:
    return {"session_id": run.id, "event": run.event, "credits": run.credits}


def _urls(session_id: str) -> dict[str, str]:
    base = f"{PATH}/{session_id}"
    return {"session": base, **{name: f"{base}/{name}" for name in ("frame", "prompt", "events")}}


def _event_number(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 16):
        raise bad_request("Last-Event-ID is the number of an event of this session.", "last-event-id")
    return int(text)


async def _frame(request: Request, limits: Limits) -> Frame:
    """The frame that a call carries: an encoded image, a form or JSON."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "application/json":
        return json_frame(await request.body(), limits)
    if kind == "multipart/form-data":
        async with request.form(max_files=1, max_fields=4) as form:
            image = form.get("image")
            if not isinstance(image, UploadFile):
                raise bad_request("A form needs a file named `image`.", "image", "missing_required_parameter")
            return raw_frame(await image.read(limits.frame_bytes + 1), _time(form.get("timestamp")), limits)
    if kind.startswith("image/") or kind == "application/octet-stream":
        timestamp = _time(request.query_params.get("timestamp"))
        return raw_frame(await request.body(), timestamp, limits)
    message = (
        f"The header content-type is {kind!r}. Send image/…, with the time as ?timestamp=, "
        "multipart/form-data or application/json."
    )
    raise ApiError(415, message, code="unsupported_media_type", param="content-type")


def _time(text: object) -> float:
    """A time in the stream; its range is checked with the frame."""
    if not isinstance(text, str):
        message = "A frame needs its time in the stream, seconds, as `timestamp`."
        raise bad_request(message, "timestamp", "missing_required_parameter")
    try:
        return float(text)
    except ValueError:
        raise bad_request("A timestamp is a finite number of seconds, 0 or more.", "timestamp") from None


@asynccontextmanager
async def _refusals_noted(run: LiveRun) -> AsyncIterator[None]:
    """Let the session's events name what is refused, as well as the answer to the call."""
    try:
        yield
    except Exception as error:
        if (refusal := as_api_error(error)) is None:
            raise
        run.refuse(refusal)
        raise refusal from error
