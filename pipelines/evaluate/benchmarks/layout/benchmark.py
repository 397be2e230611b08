"""A benchmark of the paper: where its data are, how a row becomes a question, and how answers are scored."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

import pyarrow as pa

from casa_core.errors import CasaError, DataError, MediaError
from casa_core.types import Image, Sample
from pipelines.evaluate.benchmarks.layout.columns import Column, Kind, Record, check_columns
from pipelines.evaluate.metrics.base import Metric, Truth

MAX_NEW_TOKENS = 128
"""Longest answer, as in the official repository."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """One question: what a model is shown and asked, and what is known about the right answer.

    Attributes:
        id: Unique within the benchmark; the same whatever the order of the rows.
        sample: The user's turn: its pictures or frames, then the prompt.
        truth: What the metric scores the answer by.
    """

    id: str
    sample: Sample
    truth: Truth


class VideoSource(Protocol):
    """The files of a video benchmark, which lie beside its table."""

    def frames(self, name: str, start: float = 0.0, until: float | None = None) -> tuple[Image, ...]:
        """The frames of a video as image parts of the user's turn, with their times.

        Args:
            start, until: Seconds in the video, of which no frame lies outside; by default all of it.

        Raises:
            DataError: Where there is no such video.
            MediaError: Where it cannot be decoded.
        """
        ...

    def live(self, name: str, start: float, until: float) -> tuple[Image, ...]:
        """The frames of a clip as those of a live stream: image parts of the assistant's turn."""
        ...

    def pictures(self, folder: str, fps: float) -> tuple[Image, ...]:
        """The frames of a video that was stored as a folder of pictures, ``fps`` of them a second."""
        ...

    def text(self, name: str) -> str | None:
        """A text file; None where there is none."""
        ...


Unroll = Callable[[Any], list[dict[str, Any]]]
"""What a JSON file holds → rows, all with the same columns."""
Reader = Callable[[Record], Question]
VideoReader = Callable[[Record, VideoSource], Question]


@dataclass(frozen=True, slots=True, kw_only=True)
class Lookup:
    """A second table that holds the pictures: rows are joined where ``key`` equals ``id`` there.

    Attributes:
        config: Configuration of the second table.
        key: Column of the first table that names the picture.
        id: Column of the second table.
        picture: Column of pictures of the second table, and its name in the joined row.
    """

    config: str
    key: str
    id: str = "id"
    picture: str = "image"

    @property
    def columns(self) -> tuple[Column, ...]:
        """Columns that the second table must have."""
        return Column(self.id, Kind.KEY), Column(self.picture, Kind.PICTURE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Benchmark:
    """A benchmark.

    Attributes:
        name: Short stable slug, as given on the command line.
        title: As the paper's tables call it.
        repository: The data set on the hub, ``org/name``; or the path or URI of a file of one's own.
        configs: Its configurations: one, or one per task. ``default`` lies in the folder ``data``.
        split: The split that is scored.
        columns: Columns that the table must have.
        metric: How an answer is scored; the headline is its total.
        beside: Further metrics to be given beside it.
        read: Row → question, for a benchmark on pictures.
        read_video: Row and files → question, for one on videos.
        lookup: Where the pictures lie in a table of their own.
        max_new_tokens: Longest answer.
        prompt_source: Where the wording of the prompt comes from.
        files: Glob patterns of its files where they do not lie as `patterns` supposes; ``{config}`` stands
            for the configuration. A ``.json`` file is a list of rows; all columns of a ``.csv`` are texts.
        unroll: Makes rows of a JSON file that is no list of them.
        live: Answered as a live stream is captioned, whatever the mode.
    """

    name: str
    title: str
    repository: str
    configs: tuple[str, ...] = ("default",)
    split: str
    columns: tuple[Column, ...]
    metric: Metric
    beside: tuple[Metric, ...] = ()
    read: Reader | None = None
    read_video: VideoReader | None = None
    lookup: Lookup | None = None
    max_new_tokens: int = MAX_NEW_TOKENS
    prompt_source: str = "CASA's scripts/eval.py"
    files: tuple[str, ...] = ()
    unroll: Unroll | None = None
    live: bool = False

    @property
    def modality(self) -> Literal["picture", "video"]:
        """What a question is about."""
        return "picture" if self.read else "video"

    def patterns(self, config: str) -> tuple[str, ...]:
        """The files of a configuration's split in the repository, as glob patterns."""
        folder = "data" if config == "default" else config
        files = self.files or (f"{folder}/{self.split}-*.parquet",)
        return tuple(file.replace("{config}", config) for file in files)

    def check(self, schema: pa.Schema) -> None:
        """Check the columns of a table.

        Raises:
            DataError: As `check_columns`.
        """
        check_columns(self.name, schema, self.columns)

    def questions(
        self,
        table: pa.Table,
        *,
        config: str = "default",
        first_row: int = 0,
        videos: VideoSource | None = None,
        pictures: Mapping[str, Any] | None = None,
        on_error: Callable[[int, CasaError], None] | None = None,
    ) -> Iterator[Question]:
        """The questions of a table, row by row; the columns are checked before the first.

        Args:
            table: Rows of one configuration.
            config: Its name.
            first_row: Number of its first row in the configuration.
            videos: The files of a video benchmark.
            pictures: From `picture_lookup`, for a benchmark with a ``lookup``.
            on_error: Called with the number of a row that cannot be used and why, and the row is left out;
                without it the first such row is an error.

        Raises:
            DataError: For a table in another layout, an empty one, or a row that cannot be used.
            MediaError: For a video that cannot be decoded.
        """
        self.check(table.schema)
        if not len(table):
            raise DataError(
                f"There is nothing to evaluate on: the table of {self.name} has no rows.",
                f"Its columns are {', '.join(table.schema.names)}.",
                f"Take the split {self.split!r}, which has some.",
            )
        for batch in table.to_batches(max_chunksize=16):  # a row may hold a large picture
            for values in batch.to_pylist():
                try:
                    question = self.question(
                        values, row=first_row, config=config, videos=videos, pictures=pictures
                    )
                except (DataError, MediaError) as error:
                    if on_error is None:
                        raise
                    on_error(first_row, error)
                else:
                    yield question
                first_row += 1

    def question(
        self,
        values: Mapping[str, Any],
        *,
        row: int,
        config: str = "default",
        videos: VideoSource | None = None,
        pictures: Mapping[str, Any] | None = None,
    ) -> Question:
        """The question of one row, see `questions`.

        Raises:
            DataError: For a row that cannot be used.
            MediaError: For a video that cannot be decoded.
        """
        named = config if len(self.configs) > 1 else ""
        record = Record(benchmark=self.name, config=named, row=row, values=values)
        if self.lookup:
            key = record.key(self.lookup.key)
            if pictures is None or key not in pictures:
                raise record.refused(
                    self.lookup.key, f"names the picture {key!r}, which {self.lookup.config} lacks"
                )
            record = replace(record, values={**values, self.lookup.picture: pictures[key]})
        if self.read:
            return self.read(record)
        assert self.read_video is not None, "a benchmark reads pictures or videos"
        assert videos is not None, f"{self.name} needs its videos"
        return self.read_video(record, videos)

    def picture_lookup(self, table: pa.Table) -> dict[str, Any]:
        """Id → picture, from the table of a benchmark's ``lookup``.

        Raises:
            DataError: For a table in another layout, or an id that stands there twice.
        """
        assert self.lookup is not None, f"{self.name} has one table only"
        name = f"{self.name} ({self.lookup.config})"
        check_columns(name, table.schema, self.lookup.columns)
        found: dict[str, Any] = {}
        for row, values in enumerate(table.to_pylist()):
            record = Record(benchmark=self.name, config=self.lookup.config, row=row, values=values)
            key = record.key(self.lookup.id)
            if key in found:
                raise record.refused(self.lookup.id, f"holds {key!r}, as an earlier row does")
            found[key] = {"bytes": record.picture(self.lookup.picture), "path": None}
        return found
