"""LLaVA-Video-178K: JSON arrays of conversations about videos, one folder per config.

``{id, conversations: [{from, value}], data_source, video: relative path}``, the first question holding a raw
``<image>`` for the video; ``<video>`` is read as well. A word of the file's name says what is asked: ``cap``
for a caption, ``oe`` or ``qa`` open-ended questions, ``mc`` multiple choice. A file whose name says nothing
is read where it begins as such an array does, unless the recipe chooses ``kinds``. Paths are relative to the
JSON file's folder or to the root, unpacked or inside the archives that the corpus ships them in (gunzip
.tar.gz ones to .tar first).

The whole video is one window: all its frames come before the first question. Two frames per second, 20 frames
of a video below 10 s; one longer than ``max_seconds`` is rejected as ``over_duration``, because the corpus
promises none and a part of a video may not answer its question.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from casa_core.types import Image
from pipelines.data.read.corpora.base import SubsetReader
from pipelines.data.read.corpora.conversation import placed, turns_from
from pipelines.data.read.corpora.video import clip_times
from pipelines.data.read.corpora.videos import VIDEO_BYTES, VIDEO_SUFFIXES, Videos
from pipelines.data.read.formats.json_array import array_items, array_spans, begins_array
from pipelines.data.read.source.base import (
    BadRecord,
    Place,
    RawMedia,
    Record,
    Span,
    collect,
)
from pipelines.data.read.source.subsets import subset_of
from pipelines.data.store.quarantine import Rejected

KINDS = {
    "caption": ("cap", "caption", "captions"),
    "multiple_choice": ("mc", "mcq"),
    "open_ended": ("oe", "qa"),
}
"""What is asked → words of the file's name; the first kind that has one (``…_mc_v0_1_qa_processed.json``)."""
MAX_SECONDS = 180.0
_ROUNDING = 1.0
"""Seconds by which a container may overstate a video of the maximal length."""


@dataclass(frozen=True, kw_only=True)
class LlavaVideoReader(SubsetReader):
    """Reads LLaVA-Video-178K's layout; spans of up to 64 items of an array.

    A sample's id is the record's own, followed by file and row; its meta holds ``subset``, ``kind``,
    ``video``, ``duration`` and ``fps``, and ``id`` and ``data_source`` where known.

    Attributes:
        kinds: Which of ``KINDS`` to read.
        fps: Frames per second.
        max_seconds: The longest video.
    """

    suffixes = (".json",)
    media = VIDEO_SUFFIXES

    kinds: tuple[str, ...] = tuple(KINDS)
    fps: float = 2.0
    max_seconds: float = MAX_SECONDS

    def is_read(self, name: str) -> bool:
        """Whether a file holds annotations: by its name, or where it begins so."""
        return kind_of(name) is not None or begins_array(self.files, name)

    def chosen(self, names: Sequence[str]) -> list[str]:
        """The files of the kinds and in the subsets asked for."""
        everything = set(self.kinds) == set(KINDS)
        asked = [name for name in names if (kind := kind_of(name)) in self.kinds or (everything and not kind)]
        return super().chosen(asked)

    def spans(self, split: str) -> list[Span]:
        """The items of all annotation files of the kinds asked for; neighbours about one video together."""
        return array_spans(self.files, self.names(split), VIDEO_BYTES, key="video")

    def read(self, span: Span) -> Iterator[Record | Rejected]:
        """The items of the span; the header of each one's video is opened for its duration."""
        videos = Videos(self.files)
        items = array_items(self.files, span)
        parse = lambda place, item: self._parse(place, item, videos)  # noqa: E731
        return collect(self.source, span, items, parse, own_id=_own_id)

    def _parse(self, place: Place, item: Any, videos: Videos) -> Record:
        if not isinstance(item, dict):
            raise BadRecord("bad_record", f"the item is no object: {type(item).__name__}")
        turns = turns_from(item.get("conversations"))
        folder = str(PurePosixPath(place.file).parent)
        data = videos.read(item.get("video"), folder)
        duration = videos.duration()
        if duration > self.max_seconds + _ROUNDING:
            raise BadRecord("over_duration", f"{duration:.1f} s; at most {self.max_seconds:g} s are used")
        times = clip_times(0.0, min(duration, self.max_seconds), self.fps)
        frames = [Image(timestamp=time) for time in times]
        known = {name: item[name] for name in ("id", "data_source") if item.get(name) is not None}
        meta = {"subset": subset_of(place.file), "kind": kind_of(place.file), "video": item["video"]}
        return place.record(
            placed(turns, [frames], "video"),
            (RawMedia(kind="video", data=data, name=item["video"]),),
            {**meta, "duration": duration, "fps": self.fps, **known},
        )


def kind_of(file: str) -> str | None:
    """Which of ``KINDS`` an annotation file holds, by its name; None for any other file."""
    words = set(re.findall("[a-z]+", PurePosixPath(file).stem.lower()))
    return next((kind for kind, marks in KINDS.items() if words & set(marks)), None)


def _own_id(item: Any) -> Any:
    return item.get("id") if isinstance(item, dict) else None
