"""HTTP and WebSocket client of the endpoint: ask about a picture, caption a video."""

from __future__ import annotations

import json
import mimetypes
import os
import struct
import time
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx

from casa_core.errors import ClusterError, ConfigError, MediaError
from casa_core.media.data_uri import to_data_uri
from casa_core.media.decode import encode_jpeg
from casa_core.media.video import VideoFrames, frame_times

if TYPE_CHECKING:
    from websockets.sync.client import ClientConnection

CONNECT_S = 5.0
ANSWER_S = 300.0
FRAME_EVENTS = ("caption", "dropped", "error")
"""What becomes of a frame; other events are about the session."""
_TIMEOUT = httpx.Timeout(ANSWER_S, connect=CONNECT_S)


def authorization() -> dict[str, str]:
    """The header with the API key that the environment names in `CASA_API_KEY`; none without it."""
    key = os.environ.get("CASA_API_KEY", "")
    return {"Authorization": f"Bearer {key}"} if key else {}


def user_turn(question: str, images: Sequence[Path] = ()) -> dict[str, Any]:
    """A user's message about some pictures.

    Raises:
        MediaError: A picture cannot be read.
    """
    pictures = [{"type": "image_url", "image_url": {"url": _data_uri(image)}} for image in images]
    return {"role": "user", "content": [*pictures, {"type": "text", "text": question}]}


def answer(
    url: str, messages: Sequence[dict[str, Any]], *, model: str | None = None, stream: bool = True
) -> Iterator[str]:
    """Continue a conversation and yield the answer as it is generated.

    Args:
        url: The endpoint's, for example `http://127.0.0.1:8000`.
        messages: In OpenAI's form; the last is the user's.
        model: Name of a served model; the endpoint's first by default.
        stream: Yield pieces as they come; otherwise the whole answer at once.

    Raises:
        ClusterError: Nothing listens there, or the endpoint failed.
        ConfigError: The endpoint refused the request; its reason is in the message.
    """
    body = {"model": model or served_model(url), "messages": list(messages), "stream": stream}
    try:
        with httpx.stream(
            "POST",
            f"{url}/v1/chat/completions",
            json=body,
            headers=authorization(),
            timeout=_TIMEOUT,
            trust_env=False,
        ) as response:
            if response.status_code != 200:
                response.read()
                raise _refusal(url, response)
            if stream:
                yield from _words(url, _lines(response.iter_bytes()))
            else:
                yield json.loads(response.read())["choices"][0]["message"]["content"]
    except httpx.HTTPError as error:
        raise _unreachable(url, error) from error


def _lines(chunks: Iterator[bytes]) -> Iterator[str]:
    """Lines, ended by a line feed alone: words may hold what else ends lines for Python, U+2028 above all."""
    held = b""
    for chunk in chunks:
        *whole, held = (held + chunk).split(b"\n")
        yield from (line.decode() for line in whole)
    if held:
        yield held.decode()


def caption(
    url: str,
    video: Path,
    *,
    query: str = "",
    model: str | None = None,
    fps: float = 2.0,
    realtime: bool = False,
) -> Iterator[dict[str, Any]]:
    """Stream a video's frames and yield the endpoint's caption events in order, one per frame.

    No frame is dropped: at most as many are under way as the endpoint queues. With `realtime`, frames are
    sent at the pace of the video, as a camera would; a late endpoint then makes the video wait.

    Args:
        query: The request that steers the captions.
        model: Name of a served model; the endpoint's first by default.
        fps: Frames sent per second of video.
        realtime: Send at the video's own pace.

    Yields:
        `{"type": "caption", "timestamp", "text", "latency_ms", "text_tokens", …}`, or, for a frame the
        endpoint could not use, `{"type": "error", …}`; last `{"type": "session.ended", …}`. Between them
        `{"type": "session.moved", …}` where the endpoint moves the session.

    Raises:
        ClusterError: Nothing listens there, or the session broke off.
        ConfigError: The endpoint ended the session; its reason is in the message.
        MediaError: The video cannot be read; where it is damaged in the middle, after the last event.
    """
    from websockets.exceptions import InvalidHandshake
    from websockets.sync.client import connect

    frames = encoded_frames(video, fps)
    first = next(frames, None)  # an unreadable video is reported before anything is sent
    address = f"{url.replace('http', 'ws', 1)}/v1/live"
    try:
        with connect(
            address,
            additional_headers=authorization(),
            open_timeout=CONNECT_S,
            max_size=None,
            proxy=None,
        ) as socket:
            sent = _UpToDamage(chain(() if first is None else (first,), frames))
            yield from _session(url, socket, {"query": query, "model": model}, iter(sent), realtime)
    except (OSError, TimeoutError, InvalidHandshake) as error:
        raise _unreachable(url, error) from error
    if sent.damage is not None:
        raise sent.damage


class _UpToDamage:
    """Frames, up to where the video cannot be decoded; then `damage` is why."""

    def __init__(self, frames: Iterator[tuple[float, bytes]]) -> None:
        self.damage: MediaError | None = None
        self._frames = frames

    def __iter__(self) -> Iterator[tuple[float, bytes]]:
        try:
            yield from self._frames
        except MediaError as error:
            self.damage = error


def served_model(url: str) -> str:
    """Name of the endpoint's first model.

    Raises:
        ClusterError: Nothing listens there, or it is something else.
    """
    try:
        answer = httpx.get(f"{url}/v1/models", headers=authorization(), timeout=_TIMEOUT, trust_env=False)
        return answer.raise_for_status().json()["data"][0]["id"]
    except httpx.HTTPStatusError as error:
        raise _refusal(url, error.response) from error
    except httpx.HTTPError as error:
        raise _unreachable(url, error) from error
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise ClusterError(
            f"{url} is not an endpoint of this project.", "It lists no models.", "Check the address."
        ) from error


def encoded_frames(video: Path, fps: float) -> Iterator[tuple[float, bytes]]:
    """`(timestamp, JPEG bytes)` every 1/fps seconds: the frames that training sees at these times.

    Raises:
        MediaError: `not_a_video`, `empty_file` or `truncated_video`.
    """
    if not fps > 0:
        raise ConfigError(f"`fps` is {fps}.", "It must be above 0.", "Models are trained with 2.0.")
    try:
        with VideoFrames(video) as frames:
            times = frame_times(0.0, frames.duration, fps)
            for time_s, pixels in zip(times, frames.at(times), strict=True):
                yield time_s, encode_jpeg(pixels)
    except FileNotFoundError as error:
        raise MediaError("not_a_video", f"{video} does not exist.", "", "Check the path.") from error
    except MediaError as error:
        why = f"{error.what} {error.why}"
        raise MediaError(error.reason, f"{video} cannot be decoded.", why, error.remedy) from error


def _session(
    url: str,
    socket: ClientConnection,
    start: dict[str, str | None],
    frames: Iterator[tuple[float, bytes]],
    realtime: bool,
) -> Iterator[dict[str, Any]]:
    """A whole session on an open connection."""
    from websockets.exceptions import ConnectionClosed

    try:
        socket.send(json.dumps({"type": "session.start", **start}))
        window = _event(url, socket)["limits"]["queued_frames"]
        yield from _exchange(url, socket, frames, window, realtime)
        socket.send(json.dumps({"type": "session.end"}))
        yield _event(url, socket)
    except ConnectionClosed as closed:
        # Where sending failed, the reason may still lie among the events that were not read yet.
        try:
            while True:
                _event(url, socket, within_s=0.1)
        except ConnectionClosed:
            raise ClusterError(f"The live session at {url} broke off.", str(closed), "Run again.") from closed


def _exchange(
    url: str, socket: ClientConnection, frames: Iterator[tuple[float, bytes]], window: int, realtime: bool
) -> Iterator[dict[str, Any]]:
    """Send frames with at most `window` unanswered; each gets exactly one of `FRAME_EVENTS`."""
    waiting, began = 0, time.monotonic()
    for timestamp, jpeg in frames:
        while realtime and (ahead := began + timestamp - time.monotonic()) > 0:
            # Captions that come while the next frame is not due yet are passed on at once.
            if waiting and (event := _event(url, socket, within_s=ahead)) is not None:
                waiting -= event["type"] in FRAME_EVENTS
                yield event
            elif not waiting:
                time.sleep(ahead)
        while waiting >= window:
            yield (event := _event(url, socket))
            waiting -= event["type"] in FRAME_EVENTS
        socket.send(struct.pack("<d", timestamp) + jpeg)
        waiting += 1
    while waiting:
        yield (event := _event(url, socket))
        waiting -= event["type"] in FRAME_EVENTS


def _event(url: str, socket: ClientConnection, within_s: float | None = None) -> Any:
    """The next event; None when `within_s` is given and passes first. A fatal error event raises."""
    try:
        event = json.loads(socket.recv(timeout=within_s or ANSWER_S))
    except TimeoutError:
        if within_s is not None:
            return None
        raise
    if event["type"] == "error" and event["fatal"]:
        raise _error(url, event["error"])
    return event


def _words(url: str, lines: Iterator[str]) -> Iterator[str]:
    for line in lines:
        payload = line.removeprefix("data: ")
        if not payload or payload == "[DONE]":
            continue
        chunk = json.loads(payload)
        if "error" in chunk:
            raise _error(url, chunk["error"])
        for choice in chunk["choices"]:
            if text := choice["delta"].get("content"):
                yield text


def _data_uri(image: Path) -> str:
    try:
        data = image.read_bytes()
    except OSError as error:
        raise MediaError("not_an_image", f"{image} cannot be read.", str(error), "Check the path.") from error
    guessed = mimetypes.guess_type(image.name)[0] or ""
    media_type = guessed if guessed.startswith("image/") else "image/png"  # the endpoint looks at the bytes
    return to_data_uri(data, media_type)


def _refusal(url: str, response: httpx.Response) -> ClusterError | ConfigError:
    try:
        return _error(url, response.json()["error"])
    except (ValueError, KeyError, TypeError):
        return ClusterError(
            f"{url} answered with HTTP {response.status_code}, not as an endpoint of this project.",
            response.text[:200],
            "Check the address.",
        )


def _error(url: str, error: dict[str, Any]) -> ClusterError | ConfigError:
    if error["type"] == "invalid_request_error":
        return ConfigError(f"The endpoint refused the request ({error['code']}).", error["message"])
    return ClusterError(f"The endpoint at {url} failed ({error['code']}).", error["message"], "Try again.")


def _unreachable(url: str, error: Exception) -> ClusterError:
    return ClusterError(
        f"No endpoint answers at {url}.",
        str(error) or type(error).__name__,
        "`casa run` starts one and `casa status` shows where it listens.",
    )
