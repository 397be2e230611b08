"""A video, streamed to the endpoint over a WebSocket that is resumed when it is lost."""

from __future__ import annotations

import json
import struct
import time
from collections.abc import Iterator
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from casa_core.errors import ClusterError, MediaError
from casa_core.media.video import LIVE_FPS
from infra.endpoint_client import (
    ANSWER_S,
    CONNECT_S,
    START_S,
    authorization,
    encoded_frames,
    endpoint_error,
    unreachable,
)

if TYPE_CHECKING:
    from websockets.sync.client import ClientConnection

FRAME_EVENTS = ("caption", "dropped", "error")
"""What becomes of a frame; other events are about the session."""
RETRY_S = (0.3, 1.0, 2.0, 4.0, 8.0, 15.0)
"""Seconds before each attempt to resume a session: as the live page makes them."""
MOVES = "session_moves"
"""Code of the error by which an endpoint that stops asks for the session to be resumed."""


def caption(
    url: str,
    video: Path,
    *,
    query: str = "",
    model: str | None = None,
    fps: float = LIVE_FPS,
    realtime: bool = False,
) -> Iterator[dict[str, Any]]:
    """Stream a video's frames and yield the endpoint's caption events in order, one per frame.

    No frame is dropped: at most as many are under way as the endpoint queues. With `realtime`, frames are
    sent at the pace of the video, as a camera would; a late endpoint then makes the video wait. A connection
    that is lost is resumed, with the frames that the endpoint has not taken.

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
    frames = encoded_frames(video, fps)
    first = next(frames, None)  # an unreadable video is reported before anything is sent
    sent = _UpToDamage(chain(() if first is None else (first,), frames))
    session = _Session(url)
    try:
        session.start({"query": query, "model": model})
        yield from _exchange(session, iter(sent), realtime)
    except TimeoutError as error:
        raise unreachable(url, error) from error
    finally:
        session.close()
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


def _exchange(
    session: _Session, frames: Iterator[tuple[float, bytes]], realtime: bool
) -> Iterator[dict[str, Any]]:
    """Send frames, no more at a time than the endpoint queues; each gets exactly one of `FRAME_EVENTS`."""
    began = time.monotonic()
    for timestamp, jpeg in frames:
        while realtime and (ahead := began + timestamp - time.monotonic()) > 0:
            # Captions that come while the next frame is not due yet are passed on at once.
            if not session.waiting:
                time.sleep(ahead)
            elif (event := session.next(ahead)) is not None:
                yield event
        while len(session.waiting) >= session.window:
            yield session.event()
        session.push(timestamp, jpeg)
    while session.waiting:
        yield session.event()
    session.end()
    yield (last := session.event())
    while last["type"] != "session.ended":
        yield (last := session.event())


class _Session:
    """A live session on whichever connection carries it.

    Attributes:
        waiting: Number and bytes of each frame without an answer, by its time.
        window: Frames that may be under way.
    """

    def __init__(self, url: str) -> None:
        self.waiting: dict[float, tuple[int, bytes]] = {}
        self.window = 1
        self._url = url
        self._id, self._after, self._pushed = "", 0, 0
        self._ending = False
        self._socket: ClientConnection | None = None

    def start(self, asked: dict[str, str | None]) -> None:
        """Open it, as is asked for.

        Raises:
            ClusterError, ConfigError: Nothing listens there, or the endpoint refuses.
        """
        from websockets.exceptions import ConnectionClosed, InvalidHandshake

        try:
            self._connect({"type": "session.start", **asked})
            started = self._receive(START_S)
        except (OSError, TimeoutError, InvalidHandshake) as error:
            raise unreachable(self._url, error) from error
        except ConnectionClosed as closed:
            if self._socket is None:  # during the handshake
                raise unreachable(self._url, closed) from closed
            self._raise_the_reason()
            raise self._broken(closed) from closed
        self._id, self.window = started["session_id"], started["limits"]["queued_frames"]
        self._after = started["event"]

    def push(self, timestamp: float, jpeg: bytes) -> None:
        """Send a frame."""
        self.waiting[timestamp] = self._pushed, jpeg
        self._pushed += 1
        self._send(struct.pack("<d", timestamp) + jpeg)

    def end(self) -> None:
        """Ask for the end."""
        self._ending = True
        self._send(json.dumps({"type": "session.end"}))

    def event(self) -> dict[str, Any]:
        """The next event.

        Raises:
            TimeoutError: None comes.
        """
        if (event := self.next(ANSWER_S)) is None:
            raise TimeoutError("no answer came")
        return event

    def next(self, within_s: float) -> dict[str, Any] | None:
        """The next event; `None` where so many seconds pass first. What is told twice, as the endpoint that
        had told it has died, is left out.

        Raises:
            ClusterError, ConfigError: The session has ended, or cannot be resumed.
        """
        from websockets.exceptions import ConnectionClosed

        end = time.monotonic() + within_s
        while True:
            try:
                event = self._receive(end - time.monotonic())
            except TimeoutError:
                return None
            except ConnectionClosed as closed:
                self._resume(closed)
                continue
            self._after = event.get("event", self._after)
            if event["type"] not in FRAME_EVENTS or self._settle(event.get("timestamp")):
                return event

    def close(self) -> None:
        """End the connection."""
        if self._socket is not None:
            self._socket.close()

    def _settle(self, timestamp: float | None) -> bool:
        """Whether a frame waited for this answer; one without a time is the oldest's."""
        if timestamp is None:
            timestamp = next(iter(self.waiting), None)
        return timestamp is not None and self.waiting.pop(timestamp, None) is not None

    def _connect(self, first: dict[str, Any]) -> None:
        from websockets.sync.client import connect

        self.close()
        self._socket = connect(
            f"{self._url.replace('http', 'ws', 1)}/v1/live",
            additional_headers={**authorization(), **({"x-session-id": self._id} if self._id else {})},
            open_timeout=CONNECT_S,
            max_size=None,
            proxy=None,
        )
        self._socket.send(json.dumps(first))

    def _receive(self, within_s: float) -> dict[str, Any]:
        """An event from the connection. A fatal error raises, unless the session is to be resumed."""
        assert self._socket is not None
        event = json.loads(self._socket.recv(timeout=max(within_s, 0.0)))
        while event["type"] == "error" and event["fatal"] and event["error"]["code"] == MOVES:
            event = json.loads(self._socket.recv(timeout=max(within_s, 1.0)))  # the connection is closed next
        if event["type"] == "error" and event["fatal"]:
            raise endpoint_error(self._url, event["error"])
        return event

    def _send(self, message: str | bytes) -> None:
        from websockets.exceptions import ConnectionClosed

        assert self._socket is not None
        try:
            self._socket.send(message)
        except ConnectionClosed as closed:
            self._resume(closed)

    def _resume(self, lost: Exception) -> None:
        """Continue on another connection: with the events that were missed, and what was not taken.

        Raises:
            ClusterError, ConfigError: It cannot be; the reason why it ended is among the last events.
        """
        from websockets.exceptions import ConnectionClosed, InvalidHandshake

        self._raise_the_reason()
        for pause in RETRY_S:
            time.sleep(pause)
            try:
                self._take_up()
            except (OSError, TimeoutError, InvalidHandshake, ConnectionClosed) as error:
                lost = error
            else:
                return
        raise self._broken(lost)

    def _raise_the_reason(self) -> None:
        """Raise the error that ended the session, if it is among the events that were not read."""
        from websockets.exceptions import ConnectionClosed

        with suppress(ConnectionClosed, TimeoutError):
            while True:
                self._receive(0.1)

    def _take_up(self) -> None:
        self._connect({"type": "session.resume", "session_id": self._id, "after": self._after})
        received = self._receive(CONNECT_S)["received"]
        assert self._socket is not None
        for timestamp, (number, jpeg) in self.waiting.items():
            if number >= received:
                self._socket.send(struct.pack("<d", timestamp) + jpeg)
        if self._ending:
            self._socket.send(json.dumps({"type": "session.end"}))

    def _broken(self, error: Exception) -> ClusterError:
        return ClusterError(f"The live session at {self._url} broke off.", str(error), "Run again.")
