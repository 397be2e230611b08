"""A live stream in lockstep: each frame is pushed, and its words are waited for."""

from __future__ import annotations

import weakref

from casa_core.engine.events import Failed, FrameRefused
from casa_core.engine.live_stream import LiveStream
from casa_core.engine.loop import EngineLoop
from casa_core.engine.protocol import FrameImage
from casa_core.engine.requests import CaptionEvent
from casa_core.engine.saved_session import SavedSession, Transcript
from casa_core.errors import DataError


class StreamSession:
    """One live stream (:class:`casa_core.engine.protocol.StreamProtocol`) of an engine's loop.

    Args:
        number: Of ``EngineLoop.open_stream``, ``restore`` or ``replay``.
    """

    def __init__(self, loop: EngineLoop, number: int) -> None:
        self._loop = loop
        self._number = number
        self._stream: LiveStream | None = loop.stream_state(number)
        # A session that is forgotten gives its slot back, as a closed one does.
        self._forgotten = weakref.finalize(self, loop.forget, number)

    @property
    def text_tokens(self) -> int:
        """Text tokens in the KV cache."""
        return 0 if self._stream is None else len(self._loop.settled(self._number).ids)

    @property
    def kv_tokens(self) -> int:
        """All tokens in the text KV cache: for insertion image tokens are among them."""
        return 0 if self._stream is None else self._loop.kv_tokens(self._number)

    @property
    def image_tokens(self) -> int:
        """Image tokens in the window cache: the latest frame's."""
        return 0 if self._stream is None else self._loop.image_tokens(self._number)

    def push_frame(self, image: FrameImage | None, timestamp: float) -> CaptionEvent:
        """Read the next frame and generate the words that follow it; see ``StreamProtocol.push_frame``."""
        self._open()
        self._loop.push_frame(self._number, image, timestamp)
        return self._caption()

    def prompt(self, query: str) -> CaptionEvent:
        """Ask something further about the latest frame, and wait for the answer.

        Raises:
            DataError: If the stream is closed, or the prompt is too long.
        """
        self._open()
        self._loop.prompt(self._number, query)
        return self._caption()

    def save(self) -> SavedSession:
        """An exact snapshot, as ``EngineLoop.save``."""
        self._open()
        return self._loop.save(self._number)

    def transcript(self) -> Transcript:
        """An approximate snapshot, as ``EngineLoop.transcript``."""
        self._open()
        return self._loop.transcript(self._number)

    def close(self) -> None:
        """Free the stream's slot; closing twice is harmless."""
        if self._forgotten.detach() is not None:
            self._loop.cancel(self._number)
        self._stream = None

    def _caption(self) -> CaptionEvent:
        """Step until nothing of the stream is left to read or to say: its last caption."""
        stream = self._open()
        last: CaptionEvent | None = None
        while last is None or stream.words or stream.waiting or stream.prompts:
            for event in self._loop.events_of((self._number,)):
                match event.outcome:
                    case CaptionEvent() as caption:
                        last = caption
                    case FrameRefused(_, error) | Failed(error):
                        raise error
                    case _:
                        pass
            self._loop.stream_state(self._number)
        return last

    def _open(self) -> LiveStream:
        if self._stream is None:
            raise DataError(
                "The session is closed.", "It was closed before this call.", "Open a new session."
            )
        return self._stream
