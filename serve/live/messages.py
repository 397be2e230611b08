"""The wire format of live sessions: parsing of client messages and building of server events.

Client → server (WebSocket /v1/live)
    {"type": "session.start", "query": "…", "model": "…", "max_tokens_per_frame": 16}    first, once
    {"type": "session.resume", "session_id": "…", "after": 41}
        first, instead: continues a session whose connection was lost, with the events after number 41
    {"type": "frame", "timestamp": 0.5, "image": "data:image/jpeg;base64,…"}
    binary: the timestamp as a little-endian float64 (8 bytes), then the encoded image
    {"type": "session.prompt", "query": "…"}    a further question, about the latest frame; any time
    {"type": "session.usage"}    asks for the counts so far; it keeps a quiet session open, too
    {"type": "session.end"}
Server → client; `event` numbers the events of a session from 1
    {"type": "session.started", "session_id", "model", "limits": {…}, "credits"}
    {"type": "session.resumed", "session_id", "lost", "received", …as started}
        `event` is the number after which events follow; `lost` of them are no longer kept. Of the frames that
        were sent, the first `received` have come: the rest are to be sent again
    {"type": "caption", "timestamp", "text", "latency_ms", "engine_ms", "late_ms", "text_tokens", "tokens",
     "truncated", "credits"}
        one for each frame, in order; `text` is "" where the model stays silent; `late_ms` counts from the
        frame's deadline; a further question ends the words about a frame (`truncated`)
    {"type": "answer", "query", …as a caption}    to each session.prompt, in order
    {"type": "dropped", "timestamp", "reason": "queue_full" or "moved", "credits"}    in place of a caption
    {"type": "error", "error": {…OpenAI's shape…}, "timestamp" or null, "fatal": bool}
        `retry_after_s` where it is worth trying again (too many sessions, or questions); the code
        `session_moves` asks a client to resume the session
    {"type": "warning", "warning": {"code", "message"}}    of a video file that is damaged (`captions`)
    {"type": "session.moved", "exact": bool}
        the session goes on in another process: `exact` as if nothing had happened, or else without what
        earlier frames had added to the text; frames that were lost are then named by `dropped`
    {"type": "session.usage", …as ended}
    {"type": "session.ended", "received", "frames", "captions", "answers", "dropped", "refused", "tokens",
     "prompt_tokens", "image_tokens", "text_tokens", "seconds"}
        `frames` were captioned, `captions` of them with words; `tokens` were generated, `prompt_tokens` of
        text and `image_tokens` of frames were read; `text_tokens` are in the stream's KV cache

`credits` is how many frames may be sent now without one being dropped: a client that needs every frame (a
file, not a camera) sends no more than that.
"""

from __future__ import annotations

import math
import struct
from dataclasses import asdict, dataclass
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter, ValidationError
from starlette.types import Message

from casa_core.engine.requests import CaptionEvent
from serve.api.errors import ApiError, bad_request, field_path
from serve.api.json_body import parse_json
from serve.api.request_images import image_bytes
from serve.api.schemas import Body, Words
from serve.api.settings import Limits

_HEADER = struct.Struct("<d")


class SessionStart(Body):
    """Opens the session. The query steers the captions; without one, the deployment's own query does."""

    type: Literal["session.start"] = "session.start"
    query: Words = ""
    model: Words | None = None
    max_tokens_per_frame: Annotated[int, Field(ge=1)] | None = None


class FrameText(Body):
    """A frame in JSON; `image` is a data URI."""

    type: Literal["frame"] = "frame"
    timestamp: float
    image: Words


class SessionResume(Body):
    """Continues a session on another connection."""

    type: Literal["session.resume"]
    session_id: Words
    after: Annotated[int, Field(ge=0)] = 0


class SessionPrompt(Body):
    """Asks something further in the middle of the stream."""

    type: Literal["session.prompt"] = "session.prompt"
    query: Annotated[Words, Field(min_length=1)]


class SessionUsage(Body):
    """Asks for the counts so far."""

    type: Literal["session.usage"]


class SessionEnd(Body):
    """Ends the session: waiting frames are captioned, then the totals are reported."""

    type: Literal["session.end"]


Control = SessionStart | SessionResume | SessionPrompt | SessionUsage | SessionEnd
"""What a client may send besides frames."""
_ClientMessage = TypeAdapter(Annotated[Control | FrameText, Field(discriminator="type")])


@dataclass(frozen=True, slots=True)
class Frame:
    """A frame as received: its time in the stream (seconds) and its encoded image."""

    timestamp: float
    image_bytes: bytes


@dataclass(slots=True)
class SessionTotals:
    """The counts that `session.usage` and `session.ended` report."""

    received: int = 0
    frames: int = 0
    captions: int = 0
    answers: int = 0
    dropped: int = 0
    refused: int = 0
    tokens: int = 0
    prompt_tokens: int = 0
    image_tokens: int = 0
    text_tokens: int = 0

    def count(self, caption: CaptionEvent) -> None:
        """Count a caption or an answer."""
        of_frame = caption.prompt is None
        self.frames += of_frame
        self.captions += of_frame and bool(caption.text)
        self.answers += not of_frame
        self.tokens += len(caption.token_ids)
        self.prompt_tokens += caption.prompt_tokens
        self.image_tokens += caption.image_tokens
        self.text_tokens = caption.text_tokens


class BadFrame(ApiError):
    """A refused frame, with its timestamp where that could be read."""

    def __init__(self, refusal: ApiError, timestamp: float | None) -> None:
        super().__init__(refusal.status_code, refusal.message, code=refusal.code, param=refusal.param)
        self.timestamp = timestamp


def parse_message(message: Message, limits: Limits) -> Control | Frame:
    """Parse one WebSocket message of the client.

    Raises:
        ApiError: For a message of no documented form (`BadFrame` for a frame).
    """
    if (data := message.get("bytes")) is not None:
        return _binary_frame(data, limits)
    try:
        parsed = _ClientMessage.validate_python(parse_json(message["text"], limits))
    except ValidationError as error:
        raise _malformed(error) from error
    return text_frame(parsed, limits) if isinstance(parsed, FrameText) else parsed


def json_frame(body: bytes, limits: Limits) -> Frame:
    """A frame as the body of a call: the JSON that a WebSocket takes, `type` may be left out.

    Raises:
        ApiError: As :func:`parse_message`.
    """
    try:
        return text_frame(FrameText.model_validate(parse_json(body, limits)), limits)
    except ValidationError as error:
        raise _malformed(error, tagged=False) from error


def text_frame(message: FrameText, limits: Limits) -> Frame:
    """The frame in a JSON message.

    Raises:
        ApiError: `BadFrame` where its time could be read.
    """
    timestamp = _checked_time(message.timestamp)
    # Base64 is 4/3 of its bytes: refuse by length before decoding.
    _check_length(len(message.image) * 3 // 4, timestamp, limits, slack=128)
    try:
        data = image_bytes(message.image, "image")
    except ApiError as error:
        raise BadFrame(error, timestamp) from error
    return raw_frame(data, timestamp, limits)


def raw_frame(data: bytes, timestamp: float, limits: Limits) -> Frame:
    """A frame from its encoded image.

    Raises:
        ApiError: Its time is none, or it is too large (`BadFrame`).
    """
    _check_length(len(data), _checked_time(timestamp), limits)
    return Frame(timestamp, data)


def session_facts(session_id: str, model: str, limits: Limits) -> dict[str, Any]:
    """What a client is told about its session, with the limits that it needs."""
    names = ("queued_frames", "queued_prompts", "frame_bytes", "session_frames", "idle_seconds")
    shown = {name: getattr(limits, name) for name in (*names, "resume_seconds")}
    return {"session_id": session_id, "model": model, "limits": shown}


def caption_event(caption: CaptionEvent, latency_s: float) -> dict[str, Any]:
    """The `caption` event, or the `answer` to a further question; `latency_s` counts from the arrival of the
    frame or the question at the server."""
    what = {"type": "caption"} if caption.prompt is None else {"type": "answer", "query": caption.prompt}
    return {
        **what,
        "timestamp": caption.timestamp,
        "text": caption.text,
        "latency_ms": round(latency_s * 1000, 2),
        "engine_ms": round(caption.latency_s * 1000, 2),
        "late_ms": round(caption.late_s * 1000, 2),
        "text_tokens": caption.text_tokens,
        "tokens": len(caption.token_ids),
        "truncated": caption.truncated,
    }


def dropped_event(timestamp: float, reason: str) -> dict[str, Any]:
    """The `dropped` event of a frame."""
    return {"type": "dropped", "timestamp": timestamp, "reason": reason}


def usage_of(totals: SessionTotals, seconds: float) -> dict[str, Any]:
    """The counts of a session, as `session.usage` and `session.ended` hold them."""
    return {**asdict(totals), "seconds": round(seconds, 3)}


def _binary_frame(data: bytes, limits: Limits) -> Frame:
    if len(data) < _HEADER.size:
        message = "A binary message is a little-endian float64 timestamp followed by the encoded image."
        raise ApiError(400, message, code="invalid_message")
    return raw_frame(data[_HEADER.size :], _HEADER.unpack_from(data)[0], limits)


def _checked_time(timestamp: float) -> float:
    if not math.isfinite(timestamp) or timestamp < 0:
        raise bad_request("A timestamp is a finite number of seconds, 0 or more.", "timestamp")
    return timestamp


def _check_length(length: int, timestamp: float, limits: Limits, slack: int = 0) -> None:
    if length > limits.frame_bytes + slack:
        message = f"The frame is larger than {limits.frame_bytes} bytes."
        raise BadFrame(ApiError(413, message, code="frame_too_large", param="image"), timestamp)


def _malformed(error: ValidationError, *, tagged: bool = True) -> ApiError:
    first = error.errors()[0]
    # The first step of a union's path is its tag, the message's own type.
    param = field_path(first["loc"][tagged:])
    return ApiError(400, f"Invalid message: {first['msg']}.", code="invalid_message", param=param or None)
