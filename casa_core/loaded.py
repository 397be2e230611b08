"""A trained model to ask and to let caption, in a few lines and without Ray: what ``import casa`` offers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from casa_core.engine.engine import Engine
from casa_core.engine.requests import CaptionEvent, GenerationRequest, SamplingParams, StreamSettings
from casa_core.errors import ConfigError, DataError, MediaError
from casa_core.media.decode import encode_png
from casa_core.media.video import LIVE_FPS, VideoFrames, frame_times
from casa_core.processing.arrangement import arrange
from casa_core.processing.picture_sources import picture_to_rgb
from casa_core.types import Image, Sample


def load(folder: str | Path, *, device: str = "auto", **options: Any) -> LoadedModel:
    """Load a checkpoint: the ``model`` folder that training, or ``casa export``, writes.

    Args:
        folder: The checkpoint.
        device: ``auto`` takes a GPU if there is one.
        options: Further keywords of :meth:`casa_core.engine.engine.Engine.from_pretrained`: ``dtype``,
            ``compile``, ``quantize``.

    Raises:
        StoreError: If it is not a whole checkpoint.
    """
    return LoadedModel(Engine.from_pretrained(folder, device=device, **options))


class LoadedModel:
    """A model that answers questions about pictures and captions videos.

    Args:
        engine: Runs it; for batches and live sessions use it directly.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def ask(self, pictures: Any, question: str, **sampling: Any) -> str:
        """Answer a question about pictures.

        Args:
            pictures: One, a list of them in the order they are shown, or ``None``. A picture is a path, a
                URL, encoded bytes, a Pillow image, a tensor or an array.
            question: What the user says after them.
            sampling: Fields of :class:`casa_core.engine.requests.SamplingParams`: ``max_new_tokens``,
                ``temperature``, ``stop``, …; by default the likeliest answer.

        Raises:
            MediaError, DataError: If a picture cannot be read, or the question is empty.
            ConfigError: If a field of ``sampling`` is out of range.
        """
        if not _text(question, "question").strip():
            raise DataError("The question is empty.", "It has no words.", "Ask something about the pictures.")
        given = [] if pictures is None else pictures if isinstance(pictures, list | tuple) else [pictures]
        shown = [
            Image(data=encode_png(picture_to_rgb(picture, f"picture {n}")))
            for n, picture in enumerate(given, 1)
        ]
        sample = Sample(source="ask", sample_id="0", parts=arrange([("user", [*shown, question])]))
        request = GenerationRequest(sample=sample, sampling=SamplingParams(**sampling))
        return self.engine.generate([request])[0].text

    def caption(
        self, video: str | Path | bytes, query: str = "", *, fps: float = LIVE_FPS, **settings: Any
    ) -> Iterator[CaptionEvent]:
        """Watch a video frame by frame, and say what the model says after each: it sees no later frame.

        Args:
            video: A file's path or its bytes.
            query: The request that steers the captions.
            fps: Frames shown per second of video.
            settings: Further fields of :class:`casa_core.engine.requests.StreamSettings`.

        Yields:
            An event per frame, with its ``timestamp`` in seconds and the ``text``, often empty.

        Raises:
            MediaError: If the video cannot be read.
            DataError: If ``video`` is neither a path nor bytes, or ``query`` no text.
            ConfigError: If ``fps`` or a setting is out of range.
        """
        if not isinstance(video, str | Path | bytes):
            raise DataError(
                f"The video is of type {type(video).__name__}.",
                "Expected a file's path or its bytes.",
                "Write it to a file first.",
            )
        if not 0 < fps < float("inf"):
            raise ConfigError(f"`fps` is {fps}.", "It counts frames per second.", "Set it above 0.")
        query = _text(query, "query")
        path = Path(video) if isinstance(video, str) else video
        if isinstance(path, Path) and not path.is_file():
            raise MediaError("not_a_video", f"{path} is not a file.", "", "Give the path of a video.")
        with VideoFrames(path) as frames:
            times = frame_times(0.0, frames.duration, fps)
            session = self.engine.open_session(settings=StreamSettings(query=query, **settings))
            try:
                for time, pixels in zip(times, frames.at(times), strict=True):
                    yield session.push_frame(pixels, time)
            finally:
                session.close()


def _text(value: object, what: str) -> str:
    if not isinstance(value, str):
        raise DataError(
            f"The {what} is of type {type(value).__name__}.", "Expected a text.", f"Pass the {what} as str."
        )
    return value
