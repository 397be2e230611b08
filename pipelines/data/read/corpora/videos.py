"""Video files of a corpus, fetched whole, and once for consecutive records about the same video."""

from __future__ import annotations

from typing import Any

from casa_core.media.decode import VideoFrames
from pipelines.data.read.source.files import Files
from pipelines.data.read.source.record_paths import read_named

VIDEO_SUFFIXES = (
    ".mp4", ".m4v", ".mkv", ".webm", ".mov", ".avi", ".ts", ".mpg", ".mpeg", ".flv", ".wmv", ".3gp", ".ogv"
)  # fmt: skip
VIDEO_BYTES = 4 << 20
"""Assumed size of a video, for plans: asking for each would cost a request."""


class Videos:
    """The videos under a corpus's root; the last one read is kept, since records about one are neighbours."""

    def __init__(self, files: Files) -> None:
        self._files = files
        self._name: Any = None
        self._data = b""
        self._duration: float | None = None

    def read(self, value: Any, folder: str = "") -> bytes:
        """The bytes of the video that a record names; see :func:`read_named`.

        Raises:
            BadRecord: ``missing_video``, or what is wrong with the name.
        """
        if (value, folder) != self._name:
            self._data = read_named(self._files, value, folder, "missing_video")
            self._name, self._duration = (value, folder), None
        return self._data

    def duration(self) -> float:
        """Seconds that the container of the video read last states.

        Raises:
            MediaError: ``empty_file`` or ``not_a_video``.
        """
        if self._duration is None:
            with VideoFrames(self._data) as video:
                self._duration = video.duration
        return self._duration
