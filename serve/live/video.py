"""A client's video file as frames: received into a temporary file, decoded as training decodes it."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeVar

from fastapi import Request
from starlette.datastructures import UploadFile

from casa_core.errors import MediaError
from casa_core.media.decode import encode_jpeg
from casa_core.media.video import VideoFrames, frame_times, open_track
from infra.endpoint_settings import Limits
from serve.api.errors import ApiError, bad_request

T = TypeVar("T")


@asynccontextmanager
async def received(request: Request) -> AsyncIterator[tuple[Path, dict[str, str]]]:
    """The file in a call's body, which exists for as long as the context, and the call's other fields.

    The body is the video itself, or a form with a `file`. It is never in memory as a whole.

    Raises:
        ApiError: There is no video in the body.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    fields = dict(request.query_params)
    with tempfile.NamedTemporaryFile(prefix="casa-video-") as file:
        if kind == "multipart/form-data":
            async with request.form(max_files=1, max_fields=16) as form:
                uploaded = form.get("file")
                if not isinstance(uploaded, UploadFile):
                    message = "A form needs the video as a file named `file`."
                    raise bad_request(message, "file", "missing_required_parameter")
                fields |= {name: value for name, value in form.items() if isinstance(value, str)}
                await asyncio.to_thread(shutil.copyfileobj, uploaded.file, file)
        elif kind.startswith("video/") or kind in ("application/octet-stream", "image/gif"):
            async for chunk in request.stream():
                await asyncio.to_thread(file.write, chunk)
        else:
            message = (
                f"The header content-type is {kind!r}. Send the video itself as video/…, or a form "
                "(multipart/form-data) with a `file`."
            )
            raise ApiError(415, message, code="unsupported_media_type", param="content-type")
        await asyncio.to_thread(file.flush)
        yield Path(file.name), fields


class UploadedVideo:
    """The frames of a video file, decoded in a thread of its own.

    Attributes:
        duration: Seconds, as the file states or its packets show.
        damage: Why the frames ended before that, once they have.
    """

    def __init__(self, frames: VideoFrames, times: list[float], thread: ThreadPoolExecutor) -> None:
        self.duration = frames.duration
        self.damage: MediaError | None = None
        self._frames, self._times, self._thread = frames, times, thread

    async def frames(self) -> AsyncGenerator[tuple[float, bytes], None]:
        """Time, in seconds, and JPEG bytes of each, as ``casa caption`` sends them, to the end or the damage.

        Raises:
            MediaError: Not even the first can be decoded.
        """
        decoded = self._frames.at(self._times)
        for number, time in enumerate(self._times):
            try:
                yield time, await _in(self._thread, lambda: encode_jpeg(next(decoded)))
            except MediaError as error:
                if not number:
                    raise
                self.damage = error
                return


@asynccontextmanager
async def opened(path: Path, fps: float, limits: Limits) -> AsyncIterator[UploadedVideo]:
    """A video file as frames, `fps` of them per second.

    Raises:
        ApiError: It is no video, or exceeds a limit.
    """
    thread = ThreadPoolExecutor(1, "casa-video")
    frames: VideoFrames | None = None
    try:
        frames = await _in(thread, lambda: _checked(path, limits))
        times = await _in(thread, lambda: _times(frames, fps, limits))
        yield UploadedVideo(frames, times, thread)
    except MediaError as error:
        raise invalid_video(error) from error
    finally:
        if frames is not None:
            thread.submit(frames.close)  # after a frame that is being decoded
        thread.shutdown(wait=False)


def invalid_video(error: MediaError) -> ApiError:
    """400 for bytes that are not a usable video: what, why, the remedy, and the reason's slug."""
    return bad_request(damage_of(error), "file", "invalid_video")


def damage_of(error: MediaError) -> str:
    """What is wrong with a video, in sentences."""
    sentences = [part.rstrip(".") for part in (error.what, error.why, error.remedy) if part]
    return f"{'. '.join(sentences)}. ({error.reason})"


def _checked(path: Path, limits: Limits) -> VideoFrames:
    if path.stat().st_size:
        container, track = open_track(path)
        size = track.codec_context.width, track.codec_context.height
        container.close()
        if size[0] * size[1] > limits.image_pixels:  # before a frame is decoded
            message = (
                f"Its frames have {size[0]} x {size[1]} pixels; at most {limits.image_pixels} are accepted."
            )
            raise bad_request(message, "file", "video_too_large")
    return VideoFrames(path)


def _times(frames: VideoFrames, fps: float, limits: Limits) -> list[float]:
    seconds = frames.duration
    if seconds > limits.video_seconds:
        message = f"The video lasts {seconds:.1f} s; at most {limits.video_seconds:g} s are accepted. Cut it."
        raise bad_request(message, "file", "video_too_long")
    if seconds * fps > limits.session_frames:
        message = (
            f"At {fps:g} frames per second these are {seconds * fps:.0f} frames; at most "
            f"{limits.session_frames} are accepted. Ask for fewer, or cut the video."
        )
        raise bad_request(message, "fps")
    return frame_times(0.0, seconds, fps)


async def _in(thread: ThreadPoolExecutor, function: Callable[[], T]) -> T:
    return await asyncio.get_running_loop().run_in_executor(thread, function)
