"""Video files of a corpus, fetched whole, and once for consecutive records about the same video."""

from __future__ import annotations

from casa_core.media.decode import VideoFrames
from pipelines.data.read.source.base import BadRecord
from pipelines.data.read.source.files import Files

VIDEO_SUFFIXES = (
    ".mp4", ".m4v", ".mkv", ".webm", ".mov", ".avi", ".ts", ".mpg", ".mpeg", ".flv", ".wmv", ".3gp", ".ogv"
)  # fmt: skip
VIDEO_BYTES = 4 << 20
"""Assumed size of a video, for plans: asking for each would cost a request."""


class Videos:
    """The videos under a corpus's root; the last one read is kept, since records about one are neighbours."""

    def __init__(self, files: Files) -> None:
        self._files = files
        self._name = ""
        self._data = b""
        self._duration: float | None = None

    def read(self, *names: str) -> bytes:
        """The bytes of the first of these files that exists.

        Raises:
            BadRecord: ``missing_video``.
        """
        why = ""
        for name in names:
            if name == self._name:
                return self._data
            try:
                data = self._files.read(name)
            except OSError as error:  # a network's failures are TransferErrors, and stop the run
                why = type(error).__name__  # its message would say where the corpus lies
                continue
            self._name, self._data, self._duration = name, data, None
            return data
        raise BadRecord("missing_video", f"there is no file {' or '.join(names)}: {why}")

    def duration(self) -> float:
        """Seconds that the container of the video read last states.

        Raises:
            MediaError: ``empty_file`` or ``not_a_video``.
        """
        if self._duration is None:
            with VideoFrames(self._data) as video:
                self._duration = video.duration
        return self._duration
