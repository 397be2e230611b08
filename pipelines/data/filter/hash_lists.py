"""Hashes of the pictures of evaluation sets, as files that decontamination reads.

A list has rows of ``sha256`` (hexadecimal) and ``phash`` (64-bit difference hash); either may be missing. As
parquet it has these columns, as JSON it is an array of objects with these names, or an object of two arrays.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from casa_core.errors import DataError, MediaError
from casa_core.media.decode import verify_image
from pipelines.data.clean.perceptual import THUMBNAIL, HashIndex, difference_hash
from pipelines.data.read import Reader, Record
from pipelines.storage.folders import Folder, create, filesystem_for

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


def hash_images(reader: Reader, splits: Sequence[str] = ("train", "test")) -> pa.Table:
    """Hashes of all still pictures of a corpus: ``HASH_SCHEMA``, each picture's bytes once, in reading order.

    Pictures that cannot be decoded have no ``phash``; their bytes still count.
    """
    rows: dict[str, dict[str, Any]] = {}
    for record in _records(reader, splits):
        for raw in record.media:
            if raw.kind != "image":
                continue
            digest = hashlib.sha256(raw.data).hexdigest()
            if digest not in rows:
                name = f"{record.file}#{record.row}: {raw.name}"
                rows[digest] = {"name": name, "sha256": digest, "phash": picture_hash(raw.data)}
    return pa.Table.from_pylist(list(rows.values()), schema=HASH_SCHEMA)


def picture_hash(data: bytes) -> int | None:
    """The difference hash of an encoded picture; None for one that cannot be decoded."""
    try:
        return difference_hash(verify_image(data, thumbnail=THUMBNAIL).thumbnail)
    except MediaError:
        return None


def write_hashes(path: Folder, table: pa.Table) -> None:
    """Writes a list as parquet, atomically."""
    with create(path) as output:
        pq.write_table(table.cast(HASH_SCHEMA), output, compression="zstd")


@lru_cache(maxsize=2)
def known_pictures(files: tuple[str, ...], distance: int) -> KnownPictures:
    """All lists together; read once in a process.

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
            if row.get("phash"):  # 0 is the hash of every picture without change from left to right
                phash.append(row["phash"])
    return KnownPictures(frozenset(sha256), HashIndex(np.unique(np.array(phash, np.uint64)), distance))


def _records(reader: Reader, splits: Iterable[str]) -> Iterable[Record]:
    for split in splits:
        for span in reader.spans(split):
            yield from (record for record in reader.read(span) if isinstance(record, Record))


def _read(file: str) -> list[dict[str, Any]]:
    filesystem, inside = filesystem_for(file)
    try:
        with filesystem.open_input_file(inside) as source:
            rows = _from_json(source.read()) if file.endswith(".json") else _from_parquet(source)
        for row in rows:
            _check(row)
    except (OSError, pa.ArrowException, ValueError, TypeError, KeyError) as error:
        raise DataError(
            f"{file} is no list of picture hashes.",
            f"{type(error).__name__}: {error}",
            "Make it with hash_images, as parquet or JSON with sha256 (hexadecimal) and phash (64 bits).",
        ) from error
    return rows


def _from_parquet(source: pa.NativeFile) -> list[dict[str, Any]]:
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
