"""Reader of users' own pictures and text: JSONL, JSON, parquet or WebDataset tar files, by suffix.

A record (a line of ``.jsonl`` or ``.jsonl.gz``, a row of ``.parquet``, an item of a ``.json`` that is one
array, the ``.json`` of a tar's sample) has

* pictures in ``image`` or ``images`` (a list), or none. Each is the path of a file, relative to the root or
  to the folder of the file that names it; or ``{bytes, path}`` with either; or bytes (parquet); or a
  ``data:`` URI. Web addresses are refused.
* text in one of ``texts`` (``[{user, assistant}]``), ``conversations`` (any encoding of LLaVA's corpora),
  ``messages`` (as chat APIs take them: ``{role, content}``, content a text or a list of ``{type: text,
  text}``, ``{type: image, image}`` and ``{type: image_url, image_url: {url}}``), or ``caption`` or ``text``,
  a caption. ``<image>`` in a question marks where a picture belongs; unmarked pictures come first.
* optionally an ``id``, and an object ``meta`` that is kept beside the sample.

In a tar, neighbouring members with one key (``0001.jpg``, ``0001.json``) are a sample: pictures by their
suffix, the record in ``.json``, or a caption in ``.txt``.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import PurePosixPath
from typing import Any

from pipelines.data.read.corpora.base import CorpusReader
from pipelines.data.read.corpora.conversation import (
    IMAGE_MARKER,
    arrange,
    pictures,
    turns_from,
    turns_from_pairs,
)
from pipelines.data.read.corpora.llava_midtraining import CAPTION_PROMPT, captioned
from pipelines.data.read.formats.json_array import array_items, array_spans, begins_array
from pipelines.data.read.formats.lines import SUFFIXES as LINES
from pipelines.data.read.formats.lines import json_lines, json_value, line_spans
from pipelines.data.read.formats.parquet import lists_addresses, parquet_rows, parquet_spans, still_picture
from pipelines.data.read.formats.tar_shards import Group, tar_groups, tar_spans
from pipelines.data.read.source.base import (
    BadRecord,
    Place,
    RawMedia,
    Record,
    Span,
    collect,
    inner_path,
)
from pipelines.data.store.quarantine import Rejected

PARQUET, ARRAY, SHARDS = (".parquet",), (".json",), (".tar",)
IMAGE_SUFFIXES = frozenset(
    ("png", "jpg", "jpeg", "webp", "gif", "bmp", "tif", "tiff", "ppm", "avif", "ico", "tga", "jp2")
)
"""Of the formats that ``casa_core.media.decode`` decodes."""
_FIELDS = ("id", "image", "images", "texts", "conversations", "messages", "caption", "text", "meta")
_IMAGE_BYTES = 256 << 10
"""A guess at a picture's size, for plans: asking for each would cost a request."""


@dataclass(frozen=True, kw_only=True)
class ImageTextReader(CorpusReader):
    """Reads users' own pictures and text.

    A sample's id is the record's own (or the tar's key), followed by file and row; its meta is the record's,
    and ``id`` where known.

    Attributes:
        caption_prompt: The user's turn before a caption; empty for none.
    """

    suffixes = (*LINES, *PARQUET, *ARRAY, *SHARDS)
    media = tuple(f".{suffix}" for suffix in sorted(IMAGE_SUFFIXES))

    caption_prompt: str = CAPTION_PROMPT

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
        return collect(
            self.source, span, self._rows(span), self._parse, own_id=lambda row: row["id"], keep_suffix=True
        )

    def _rows(self, span: Span) -> Iterator[dict[str, Any] | BadRecord]:
        """Records with all ``_FIELDS``, None where they are absent."""
        name = span.file.lower()
        if name.endswith(PARQUET):
            found = parquet_rows(self.files, span, needed=(), wanted=_FIELDS)
        elif name.endswith(LINES):
            found = json_lines(self.files, span)
        elif name.endswith(ARRAY):
            found = array_items(self.files, span)
        else:
            groups = tar_groups(self.files, span)
            found = (group if isinstance(group, BadRecord) else _unpacked(group) for group in groups)
        for row in found:
            if isinstance(row, Mapping):
                yield {name: row.get(name) for name in _FIELDS}
            elif isinstance(row, BadRecord):
                yield row
            else:
                yield BadRecord("bad_record", f"the record is no object: {type(row).__name__}")

    def _parse(self, place: Place, row: dict[str, Any]) -> Record:
        listed = row["images"] if row["images"] is not None else [row["image"]]
        if not isinstance(listed, list):
            raise BadRecord("bad_record", f"images is no list: {type(listed).__name__}")
        if row["messages"] is not None:
            turns, named = _chat(row["messages"])
            given = [value for value in listed if value is not None]
            if named and given:
                raise BadRecord("bad_record", "pictures in the messages and in a field of their own")
            listed = named or given
        elif row["conversations"] is not None:
            turns = turns_from(row["conversations"])
        elif row["texts"] is not None:
            turns = turns_from_pairs(row["texts"])
        else:
            turns = None
        folder = str(PurePosixPath(place.file).parent)
        media = tuple(self._picture(value, n, folder) for n, value in enumerate(listed) if value is not None)
        if turns is None:
            caption = row["caption"] if row["caption"] is not None else row["text"]
            parts = captioned(self.caption_prompt, caption, len(media))
        else:
            parts = arrange(turns, pictures(len(media)))
        known = {"id": row["id"]} if isinstance(row["id"], str | int) else {}
        return place.record(parts, media, {**(row["meta"] if isinstance(row["meta"], dict) else {}), **known})

    def _picture(self, value: Any, number: int, folder: str) -> RawMedia:
        if isinstance(value, dict) and value.get("bytes") is None:
            value = value.get("path")
        if not isinstance(value, str):
            picture = still_picture(value, number)
            if picture is None:
                raise BadRecord("missing_image", f"image {number} is empty")
            return picture
        if value.startswith("data:"):
            return RawMedia(kind="image", data=_from_data_uri(value, number), name=f"image {number}")
        why = ""
        for name in (inner_path(value, folder), inner_path(value)):
            try:
                return RawMedia(kind="image", data=self.files.read(name), name=value)
            except OSError as error:  # a network's failures are TransferErrors, and stop the run
                why = type(error).__name__  # its message would say where the corpus lies
        raise BadRecord("missing_image", f"there is no file {value}: {why}")


def _chat(messages: Any) -> tuple[Any, list[Any]]:
    """Turns of ``messages``, each picture in their content a marker; and those pictures."""
    named: list[Any] = []
    if not isinstance(messages, list):
        raise BadRecord("bad_record", f"messages is no list: {type(messages).__name__}")
    flat = [
        {**message, "content": _content(message["content"], named)}
        if isinstance(message, Mapping) and isinstance(message.get("content"), list)
        else message
        for message in messages
    ]
    return turns_from(flat), named


def _content(entries: list[Any], named: list[Any]) -> str:
    texts: list[str] = []
    for entry in entries:
        kind = entry.get("type") if isinstance(entry, Mapping) else None
        if kind == "text" and isinstance(entry.get("text"), str):
            texts.append(entry["text"])
        elif kind in ("image", "image_url"):
            found = entry.get(kind)
            found = found.get("url") if kind == "image_url" and isinstance(found, Mapping) else found
            named += [found] if found is not None else []  # without one it stands for the next of `images`
            texts.append(IMAGE_MARKER)
        else:
            raise BadRecord("bad_record", f"content of type {kind!r}; expected text, image or image_url")
    return "\n".join(texts)


def _unpacked(group: Group) -> dict[str, Any] | BadRecord:
    """A tar's sample as a record."""
    found = [
        {"bytes": data, "path": f"{group.key}.{suffix}"}
        for suffix, data in group.members.items()
        if suffix.rpartition(".")[2] in IMAGE_SUFFIXES
    ]
    row: Any = {}
    if "json" in group.members:
        row = json_value(group.members["json"])
        if isinstance(row, BadRecord):
            return row
        if not isinstance(row, Mapping):
            return BadRecord("bad_record", f"{group.key}.json is no object")
    elif "txt" in group.members:
        try:
            row = {"caption": group.members["txt"].decode("utf-8")}
        except UnicodeDecodeError as error:
            return BadRecord("bad_encoding", str(error))
    own = {"id": row.get("id", group.key)}
    return {**row, **own, "image": None, "images": found} if found else {**row, **own}


def _from_data_uri(uri: str, number: int) -> bytes:
    head, _, body = uri.partition(",")
    if not head.endswith(";base64"):
        raise BadRecord("bad_record", f"image {number} is a data URI without base64: {head[:40]!r}")
    try:
        return base64.b64decode(body, validate=True)
    except (binascii.Error, ValueError) as error:
        raise BadRecord("bad_record", f"image {number} is no base64: {error}") from error
