"""Live-WhisperX: JSONL of clips with a spoken commentary, each word with its times.

A line is ``[user, assistant]``; the user's content is a video span and a query (with ``previous``, ``title``
and ``category``, any of which may be absent), the assistant's a ``text_stream`` of ``[start, end, word]``.
All times are absolute in the video. **The last line is the list of line offsets.** They count characters
and equal bytes only in ASCII files, so they are checked before anything relies on them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from casa_core.errors import DataError
from casa_core.types import Image, Part, Sample, Text
from pipelines.data.files import Files
from pipelines.data.quarantine import Rejected
from pipelines.data.readers.base import RawMedia, Record, Span, sample_id, split_files

RECORDS_PER_SPAN = 64
_VIDEO_BYTES = 4 << 20
"""A guess at a video's size: asking for each would cost a request."""
_TAIL = 1 << 16
_TIME_TOLERANCE = 1e-6


class _BadRecord(Exception):
    """A line that breaks the layout: (reason, detail)."""


@dataclass(frozen=True, kw_only=True)
class LiveWhisperXReader:
    """Reads Live-WhisperX's layout.

    Attributes:
        files: The folder with the JSONL files; video paths are relative to it.
        source: The data source's name in the recipe.
        fps: Frames sampled a second, from the clip's start on; each is followed by the words that begin
            before the next.
    """

    files: Files
    source: str
    fps: float = 2.0

    def spans(self, split: str) -> list[Span]:
        """Spans of up to 64 lines.

        Raises:
            DataError: Where the last line's offsets contradict the file.
        """
        spans: list[Span] = []
        for name in split_files(self.files, split, ".jsonl"):
            bounds = line_bounds(self.files, name)
            for start in range(0, len(bounds) - 1, RECORDS_PER_SPAN):
                stop = min(start + RECORDS_PER_SPAN, len(bounds) - 1)
                begin, end = bounds[start], bounds[stop]
                size = end - begin + (stop - start) * _VIDEO_BYTES
                spans.append(Span(file=name, start=start, stop=stop, bytes=size, begin=begin, end=end))
        return spans

    def read(self, span: Span) -> Iterator[Record | Rejected]:
        """The records of the span's lines."""
        with self.files.open(span.file) as file:
            file.seek(span.begin)
            lines = file.read(span.end - span.begin).removesuffix(b"\n").split(b"\n")
        if len(lines) != span.records:
            raise _contradiction(span.file, f"{len(lines)} lines where it promises {span.records}")
        for row, line in enumerate(lines, start=span.start):
            try:
                yield self._parse(span.file, row, line)
            except _BadRecord as error:
                reason, detail = error.args
                yield Rejected(
                    source=self.source,
                    file=span.file,
                    row=row,
                    sample_id=sample_id(span.file, row),
                    reason=reason,
                    detail=detail,
                )

    def _parse(self, file: str, row: int, line: bytes) -> Record:
        video, query, stream = _layout(line)
        start, end = _seconds(video, "video_start"), _seconds(video, "video_end")
        if end <= start or start < 0:
            raise _BadRecord("bad_record", f"the clip runs from {start} to {end} seconds")
        frames = words_by_frame(_words(stream), start, end, self.fps)
        parts: list[Part] = [Text(role="user", text=query["text"])]
        for number, words in enumerate(frames):
            parts.append(Image(role="assistant", timestamp=start + number / self.fps))
            parts.append(Text(role="assistant", text=" ".join(words), trained=True))
        try:
            data = self.files.read(video["video"])
        except FileNotFoundError:
            raise _BadRecord("missing_video", f"there is no file {video['video']}") from None
        meta = {name: query[name] for name in ("previous", "title", "category") if query.get(name)}
        return Record(
            file=file,
            row=row,
            sample=Sample(source=self.source, sample_id=sample_id(file, row), parts=tuple(parts)),
            media=(RawMedia(kind="video", data=data, name=video["video"]),),
            meta={"video": video["video"], "video_start": start, "video_end": end, "fps": self.fps} | meta,
        )


def words_by_frame(
    words: Sequence[tuple[float, str]], start: float, end: float, fps: float
) -> list[list[str]]:
    """Assigns words to the frames sampled at ``start + n / fps`` before ``end``.

    Args:
        words: ``(absolute start in seconds, word)``.
        start, end: The clip, absolute seconds.
        fps: Frames a second.

    Returns:
        One list a frame: the words that begin from it on and before the next. A word that begins up to one
        frame outside the clip belongs to its nearest frame.

    Raises:
        _BadRecord: ``word_outside_clip`` for one farther out.
    """
    frames: list[list[str]] = [[] for _ in range(max(1, math.ceil((end - start) * fps - _TIME_TOLERANCE)))]
    for time, word in words:
        number = math.floor((time - start) * fps + _TIME_TOLERANCE)
        if not -1 <= number <= len(frames):
            raise _BadRecord(
                "word_outside_clip", f"{word!r} at {time} s; the clip runs from {start} to {end} s"
            )
        frames[min(max(number, 0), len(frames) - 1)].append(word)
    return frames


def line_bounds(files: Files, name: str) -> list[int]:
    """Byte offset of each record's line, and of the end of the last one.

    The offsets in the file's last line are used where they prove right at every span's edge; otherwise the
    file is scanned. A file without such a line is scanned too.

    Raises:
        DataError: Where they contradict the file in bytes as well as in characters.
    """
    with files.open(name) as file:
        size = file.size()
        offsets, tail_begin = _seek_line(file, size)
        if offsets is None:
            return _scan(file, size)
        bounds = [*offsets, tail_begin]
        if offsets[:1] == [0] and all(_is_line_start(file, at) for at in _edges(bounds)):
            return bounds
        scanned = _scan(file, tail_begin)
        if _character_offsets(file, tail_begin) == offsets:
            return scanned
    raise _contradiction(name, f"{len(scanned) - 1} lines where it lists {len(offsets)}, or at other places")


def _edges(bounds: list[int]) -> list[int]:
    return sorted({*bounds[::RECORDS_PER_SPAN], *bounds[-2:]})


def _is_line_start(file: Any, offset: int) -> bool:
    if offset == 0:
        return True
    file.seek(offset - 1)
    return file.read(1) == b"\n"


def _seek_line(file: Any, size: int) -> tuple[list[int] | None, int]:
    """The numbers in the last line and where it begins; None where the last line is an ordinary record."""
    reach = min(size, _TAIL)
    while True:
        file.seek(size - reach)
        tail = file.read(reach).rstrip(b"\n")
        newline = tail.rfind(b"\n")
        if newline >= 0 or reach == size:
            break
        reach = min(size, reach * 8)
    last = tail[newline + 1 :]
    try:
        offsets = json.loads(last)
    except ValueError:
        return None, size
    if not isinstance(offsets, list) or not all(isinstance(number, int) for number in offsets):
        return None, size
    return offsets, size - reach + newline + 1


def _scan(file: Any, stop: int) -> list[int]:
    file.seek(0)
    bounds, data, base = [0], file.read(min(stop, 1 << 24)), 0
    while data:
        at = -1
        while (at := data.find(b"\n", at + 1)) >= 0:
            bounds.append(base + at + 1)
        base += len(data)
        data = file.read(min(stop - base, 1 << 24))
    return bounds if bounds[-1] == stop else [*bounds, stop]


def _character_offsets(file: Any, stop: int) -> list[int]:
    file.seek(0)
    offsets, position = [], 0
    for line in file.read(stop).removesuffix(b"\n").split(b"\n"):
        offsets.append(position)
        position += len(line.decode("utf-8", errors="replace")) + 1
    return offsets


def _contradiction(name: str, found: str) -> DataError:
    return DataError(
        f"The offsets in the last line of {name} contradict the file.",
        f"It has {found}: it was cut, or edited without renewing the last line.",
        "Fetch the file again, or delete its last line to read it without offsets.",
    )


def _layout(line: bytes) -> tuple[dict[str, Any], dict[str, Any], list[Any]]:
    """The video span, the query and the word stream of one line."""
    try:
        record = json.loads(line)
    except ValueError as error:
        raise _BadRecord("bad_json", str(error)) from error
    try:
        user, assistant = record
        video = next(entry for entry in user["content"] if entry["type"] == "video")
        query = next(entry for entry in user["content"] if entry["type"] == "text")
        stream = assistant["content"][0]["text_stream"]
    except (StopIteration, TypeError, KeyError, ValueError, IndexError) as error:
        raise _BadRecord("bad_record", f"not [user, assistant] as documented: {error!r}") from error
    if not isinstance(query.get("text"), str) or not isinstance(video.get("video"), str):
        raise _BadRecord("bad_record", "the query or the video's path is not a string")
    return video, query, stream


def _words(stream: Any) -> list[tuple[float, str]]:
    words = []
    for entry in stream if isinstance(stream, list) else [None]:
        if not (isinstance(entry, list) and len(entry) == 3 and isinstance(entry[2], str)):
            raise _BadRecord("bad_record", f"a word is not [start, end, text]: {entry!r}")
        if entry[2].strip():
            words.append((_number(entry[0], "a word's start"), entry[2].strip()))
    return words


def _seconds(video: dict[str, Any], name: str) -> float:
    return _number(video.get(name), name)


def _number(value: Any, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise _BadRecord("bad_record", f"{name} is not a time in seconds: {value!r}")
    return float(value)
