"""Reader of users' own pictures and text: JSONL, JSON, parquet or WebDataset tar files, by suffix.

A record (a line of ``.jsonl`` or ``.jsonl.gz``, a row of ``.parquet``, an item of a ``.json`` that is one
array, a sample of a tar) has

* pictures in ``image`` or ``images``, one or a list. Each is the path of a file (:func:`inner_paths`); or
  ``{bytes, path}`` with either; or bytes (parquet); or a ``data:`` URI. Web addresses are refused. Where
  there is neither field, and no tar, ``file_name`` is the path, as in an imagefolder's ``metadata.jsonl``.
* text in one of ``texts`` (``[{user, assistant}]``), ``conversations`` (any encoding of LLaVA's corpora),
  ``messages`` (as chat APIs take them, pictures among the parts or in fields of their own), or ``caption`` or
  ``text``, a caption. :mod:`pipelines.data.read.corpora.conversation` says where pictures stand.
* optionally an ``id``, and an object ``meta`` that is kept beside the sample.

A record without a picture is set aside, unless the source says ``pictures: optional``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import PurePosixPath
from typing import Any

from casa_core.errors import MediaError
from casa_core.media.data_uri import from_data_uri, is_data_uri
from casa_core.types import Part
from pipelines.data.read.corpora.base import CorpusReader
from pipelines.data.read.corpora.conversation import (
    conversation_from,
    pictures,
    placed,
    trainable,
    turns_from_pairs,
)
from pipelines.data.read.corpora.llava_midtraining import CAPTION_PROMPT, captioned
from pipelines.data.read.corpora.picture_fields import (
    FILE_NAME,
    IMAGE_SUFFIXES,
    PICTURES,
    TEXTS,
    listed,
    misnamed,
)
from pipelines.data.read.corpora.tar_samples import MEMBERS, in_members, tar_record
from pipelines.data.read.formats.json_array import array_items, array_spans, begins_array
from pipelines.data.read.formats.lines import SUFFIXES as LINES
from pipelines.data.read.formats.lines import json_lines, line_spans
from pipelines.data.read.formats.parquet import (
    column_names,
    lists_addresses,
    parquet_rows,
    parquet_spans,
    still_picture,
)
from pipelines.data.read.formats.tar_shards import tar_groups, tar_spans
from pipelines.data.read.source.base import (
    BadRecord,
    Place,
    RawMedia,
    Record,
    Span,
    collect,
)
from pipelines.data.read.source.record_paths import read_named
from pipelines.data.store.quarantine import Rejected

PARQUET, ARRAY, SHARDS = (".parquet",), (".json",), (".tar",)
_FIELDS = ("id", *PICTURES, FILE_NAME, *TEXTS, "meta")
_IMAGE_BYTES = 256 << 10
"""A guess at a picture's size, for plans: asking for each would cost a request."""


@dataclass(frozen=True, kw_only=True)
class ImageTextReader(CorpusReader):
    """Reads users' own pictures and text.

    A sample's id is the record's own (or the tar's key), followed by file and row; its meta is the record's,
    and ``id`` where known.

    Attributes:
        caption_prompt: The user's turn before a caption; empty for none.
        pictures: ``required``: a record without a picture is set aside as ``missing_image``. ``optional``: it
            is text alone, unless it names a picture in a field that is not read.
    """

    suffixes = (*LINES, *PARQUET, *ARRAY, *SHARDS)
    media = tuple(f".{suffix}" for suffix in sorted(IMAGE_SUFFIXES))

    caption_prompt: str = CAPTION_PROMPT
    pictures: str = "required"

    def is_read(self, name: str) -> bool:
        """Whether a file holds records, and not what other files of the corpus say more about.

        A JSON file does that begins as an array of objects, and is not about the picture of its name. A
        parquet file does, unless it lists web addresses beside a tar of its name: img2dataset's table of it.
        A tar without texts holds pictures for the records of other files, where there are any.
        """
        plain, stem = name.lower(), str(PurePosixPath(name).with_suffix(""))
        if plain.endswith(PARQUET):
            beside = f"{stem}.tar" in self.files.contents
            return not (beside and lists_addresses(self.files, name))
        if plain.endswith(SHARDS):
            return not self._annotated or any(
                inner.lower().endswith((".json", ".txt")) for inner in self.files.index(name)
            )
        if plain.endswith(ARRAY):
            described = any(f"{stem}{suffix}" in self.files.contents for suffix in self.media)
            return not described and begins_array(self.files, name)
        return True

    @cached_property
    def _annotated(self) -> bool:
        kinds = (*LINES, *PARQUET, *ARRAY)
        return any(name.lower().endswith(kinds) and self.is_read(name) for name in self.files.contents)

    def spans(self, split: str) -> list[Span]:
        """The records of all kinds of file, by name of file.

        Raises:
            DataError: For a JSONL file that ends in line offsets which contradict it.
        """
        names = self.names(split)
        of_kind = lambda kind: [name for name in names if name.lower().endswith(kind)]  # noqa: E731
        spans = [
            *line_spans(self.files, of_kind(LINES), _IMAGE_BYTES),
            *parquet_spans(self.files, of_kind(PARQUET)),
            *array_spans(self.files, of_kind(ARRAY), _IMAGE_BYTES),
            *tar_spans(self.files, of_kind(SHARDS)),
        ]
        return sorted(spans, key=lambda span: (span.file, span.start))

    def read(self, span: Span) -> Iterator[Record | Rejected]:
        """The records of the span."""
        own_id = lambda row: row.get("id")  # noqa: E731
        return collect(self.source, span, self._rows(span), self._parse, own_id=own_id, keep_suffix=True)

    def _rows(self, span: Span) -> Iterator[dict[str, Any] | BadRecord]:
        name = span.file.lower()
        if name.endswith(PARQUET):
            columns = column_names(self.files, span.file)
            if columns and not set(columns) & set(TEXTS):
                others = f"the file has no column {', '.join(TEXTS)}; it has {', '.join(columns)}"
                yield from [BadRecord("missing_text", others)] * span.records
                return
            found = parquet_rows(self.files, span, needed=(), wanted=_wanted(columns))
        elif name.endswith(LINES):
            found = json_lines(self.files, span)
        elif name.endswith(ARRAY):
            found = array_items(self.files, span)
        else:
            groups = tar_groups(self.files, span)
            found = (group if isinstance(group, BadRecord) else tar_record(group) for group in groups)
        for row in found:
            if isinstance(row, dict | BadRecord):
                yield row
            else:
                yield BadRecord("bad_record", f"the record is no object: {type(row).__name__}")

    def _parse(self, place: Place, row: dict[str, Any]) -> Record:
        try:
            parts, media = self._content(place, row)
        except BadRecord as error:
            if MEMBERS in row and error.reason in ("missing_text", "missing_image"):
                members = ", ".join(row[MEMBERS])
                detail = f"{error.detail}; the sample's neighbouring members are {members}"
                raise BadRecord(error.reason, detail) from error
            raise
        meta, own = row.get("meta"), row.get("id")
        known = {"id": own} if isinstance(own, str | int) else {}
        return place.record(parts, media, {**(meta if isinstance(meta, dict) else {}), **known})

    def _content(self, place: Place, row: Mapping[str, Any]) -> tuple[tuple[Part, ...], tuple[RawMedia, ...]]:
        given = listed({**row, FILE_NAME: None} if MEMBERS in row else row)
        talk = None
        if row.get("messages") is not None:
            talk = conversation_from(row["messages"])
        elif row.get("conversations") is not None:
            talk = conversation_from(row["conversations"])
        values = given if talk is None or not talk.shown else _shown(talk.shown, given, MEMBERS in row)
        values = in_members(values, row[MEMBERS]) if MEMBERS in row else values
        folder = str(PurePosixPath(place.file).parent)
        media = tuple(self._picture(value, number, folder) for number, value in enumerate(values))
        parts = self._parts(row, talk, len(media))
        if not media and (self.pictures == "required" or misnamed(row)):
            raise BadRecord("missing_image", _no_picture(row))
        return parts, media

    def _parts(self, row: Mapping[str, Any], talk: Any, count: int) -> tuple[Part, ...]:
        if talk is not None:
            return trainable(talk.turns) if talk.shown else placed(talk.turns, pictures(count))
        if row.get("texts") is not None:
            return placed(turns_from_pairs(row["texts"]), pictures(count))
        caption = row["caption"] if row.get("caption") is not None else row.get("text")
        if caption is None:
            others = ", ".join(name for name in row if name != MEMBERS and row[name] is not None)
            fields = ", ".join(TEXTS)
            raise BadRecord("missing_text", f"the record has none of {fields}; it has {others or 'nothing'}")
        return captioned(self.caption_prompt, caption, count)

    def _picture(self, value: Any, number: int, folder: str) -> RawMedia:
        if isinstance(value, dict) and value.get("bytes") is None:
            value = value.get("path")
        if isinstance(value, list):
            raise BadRecord("bad_record", f"image {number} is a list; expected a path, bytes or a data URI")
        if not isinstance(value, str):
            picture = still_picture(value, number)
            if picture is None:
                raise BadRecord("missing_image", f"image {number} is empty")
            return picture
        if is_data_uri(value):
            return RawMedia(kind="image", data=_from_data_uri(value, number), name=f"image {number}")
        return RawMedia(kind="image", data=read_named(self.files, value, folder, "missing_image"), name=value)


def _wanted(columns: Sequence[str]) -> list[str]:
    """The columns to read: of those that are not known only what may hold a picture under a wrong name."""
    known = [name for name in _FIELDS if name in columns]
    if any(name in (*PICTURES, FILE_NAME) for name in known):
        return known
    return [*known, *misnamed(dict.fromkeys(columns, None), by_name=True)]


def _shown(shown: list[Any], given: list[Any], is_tar: bool) -> list[Any]:
    """The pictures of a content's parts: named there, or else those of the record's own fields in order."""
    named = [value for value in shown if value is not None]
    if named and (given or len(named) < len(shown)):
        raise BadRecord(
            "bad_record", "pictures in some parts of the messages and elsewhere, or not in all parts"
        )
    if named or (is_tar and not given):
        return named
    if len(given) != len(shown):
        detail = f"the messages have {len(shown)} pictures, the record's own fields {len(given)}"
        raise BadRecord("missing_image", detail)
    return given


def _no_picture(row: Mapping[str, Any]) -> str:
    others = misnamed(row) or misnamed(row, by_name=True)
    if others:
        return f"pictures are read from {' or '.join(PICTURES)}, not from {', '.join(others)}"
    return "the record has no picture; texts alone are read from a source with `pictures: optional`"


def _from_data_uri(uri: str, number: int) -> bytes:
    try:
        return from_data_uri(uri)
    except MediaError as error:
        raise BadRecord("bad_record", f"image {number}: {error.what} {error.why}") from error
