"""Hashes of the pictures of evaluation sets, as files that decontamination reads.

A list has rows of ``sha256`` (hexadecimal) and ``phash`` (64-bit difference hash); either may be missing. As
parquet it has these columns, as JSON it is an array of objects with these names, or an object of two arrays.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import PurePath
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from casa_core.errors import DataError, MediaError
from casa_core.media.decode import verify_image
from pipelines.dag.context import no_progress
from pipelines.data.clean.perceptual import THUMBNAIL, HashIndex, difference_hash
from pipelines.data.read import Reader, Record, Span, open_reader
from pipelines.data.read.corpora.picture_fields import IMAGE_SUFFIXES
from pipelines.data.read.source.files import Files
from pipelines.storage.atomic import create
from pipelines.storage.errors import attempt
from pipelines.storage.uri import Folder, filesystem_for

HASH_SCHEMA = pa.schema(
    [("name", pa.string()), ("sha256", pa.string()), ("phash", pa.uint64())],
    metadata={"casa.schema": "image_hashes/1"},
)


@dataclass(frozen=True, slots=True)
class KnownPictures:
    """The pictures of evaluation sets.

    Attributes:
        sha256: Hashes of their bytes, hexadecimal.
        near: Their difference hashes, to look near ones up in.
    """

    sha256: frozenset[str]
    near: HashIndex


def write_hash_list(
    images: str,
    output: Folder,
    *,
    reader: str | None = None,
    progress: Callable[..., None] = no_progress,
) -> int:
    """Hashes all still pictures of an evaluation set into a list that decontamination reads.

    Equal bytes are listed once. A picture that cannot be decoded has no ``phash``; its bytes still count.

    Args:
        images: Folder or URI of picture files or, with ``reader``, of a corpus.
        output: The list, parquet with ``HASH_SCHEMA``; replaced atomically.
        reader: Layout of the corpus, as in a recipe; ``None``: picture files, in subfolders too.
        progress: ``progress(done, total, message)``, in files or spans of records.

    Returns:
        How many pictures the list has.

    Raises:
        ConfigError: For an unknown reader, or a URI that cannot be read.
        DataError: Where there are no pictures.
    """
    corpus = open_reader(reader, images, "evaluation", {}) if reader else None
    files = Files(images)
    work: list[Any] = (
        [span for split in ("train", "test") for span in corpus.spans(split)]
        if corpus
        else [name for name in files.names("") if PurePath(name).suffix.lower()[1:] in IMAGE_SUFFIXES]
    )
    rows: dict[str, dict[str, Any]] = {}
    for done, own in enumerate(work, 1):
        for name, data in _pictures(corpus, own) if corpus else [(own, files.read(own))]:
            digest = hashlib.sha256(data).hexdigest()
            if digest not in rows:
                rows[digest] = {"name": name, "sha256": digest, "phash": picture_hash(data)}
        progress(done, len(work), f"{len(rows)} pictures")
    if not rows:
        raise DataError(
            f"There are no pictures at {images}.",
            f"Read as {f'a corpus of {reader}' if reader else 'picture files'}.",
            "Check the path, and the reader where the pictures lie in a corpus.",
        )
    with create(output) as file:
        pq.write_table(pa.Table.from_pylist([*rows.values()], HASH_SCHEMA), file, compression="zstd")
    return len(rows)


def picture_hash(data: bytes) -> int | None:
    """The difference hash of an encoded picture; None for one that cannot be decoded."""
    try:
        return difference_hash(verify_image(data, thumbnail=THUMBNAIL).thumbnail)
    except MediaError:
        return None


@lru_cache(maxsize=2)
def known_pictures(files: tuple[str, ...], distance: int) -> KnownPictures:
    """All lists together; read once per process.

    Args:
        files: Local paths, or URIs that Arrow knows.
        distance: Bits that a near picture's hash may differ in.

    Raises:
        DataError: For a file that is no list of hashes.
    """
    sha256: set[str] = set()
    phash: list[int] = []
    for file in files:
        for row in _read(file):
            if row.get("sha256"):
                sha256.add(row["sha256"].lower())
            if row.get("phash"):  # 0 is the hash of every picture that is uniform from left to right
                phash.append(row["phash"])
    return KnownPictures(frozenset(sha256), HashIndex(np.unique(np.array(phash, np.uint64)), distance))


def _pictures(corpus: Reader, span: Span) -> Iterator[tuple[str, bytes]]:
    """Name and bytes of each still picture of a span."""
    for record in corpus.read(span):
        if isinstance(record, Record):
            for media in record.media:
                if media.kind == "image":
                    yield f"{record.file}#{record.row}: {media.name}", media.data


def _read(file: str) -> list[dict[str, Any]]:
    filesystem, inside = filesystem_for(file)
    try:
        data = attempt(file, lambda: filesystem.open_input_stream(inside).readall())
        rows = _from_json(data) if inside.endswith(".json") else _from_parquet(pa.BufferReader(data))
        for row in rows:
            _check(row)
    except (OSError, pa.ArrowException, ValueError, TypeError, KeyError) as error:
        raise DataError(
            f"{file} is no list of picture hashes.",
            f"Reading it failed with {type(error).__name__}: {error}.",
            "Make it with `casa data hash`: parquet or JSON with sha256 (hexadecimal) and phash (64 bits).",
        ) from error
    return rows


def _from_parquet(source: pa.BufferReader) -> list[dict[str, Any]]:
    parquet = pq.ParquetFile(source)
    columns = [name for name in ("sha256", "phash") if name in parquet.schema_arrow.names]
    if not columns:
        raise KeyError("neither a column sha256 nor phash")
    return parquet.read(columns=columns).to_pylist()


def _from_json(data: bytes) -> list[dict[str, Any]]:
    found = json.loads(data)
    if isinstance(found, Mapping):
        return [{name: value} for name in ("sha256", "phash") for value in found.get(name, [])]
    return [{name: entry.get(name) for name in ("sha256", "phash")} for entry in found]


def _check(row: Mapping[str, Any]) -> None:
    digest, phash = row.get("sha256"), row.get("phash")
    if digest is not None and (len(digest) != 64 or not set(digest.lower()) <= set("0123456789abcdef")):
        raise ValueError(f"{digest!r} is no SHA-256 in hexadecimal")
    if phash is not None and not (isinstance(phash, int) and 0 <= phash < 1 << 64):
        raise ValueError(f"{phash!r} is no number of 64 bits")
