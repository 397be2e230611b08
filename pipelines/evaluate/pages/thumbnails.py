"""Small pictures of questions: chosen, read from the benchmark's tables, kept in the result's folder."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from casa_core.errors import DataError, MediaError
from casa_core.media.decode import decode_images
from casa_core.types import Image, Sample
from pipelines.evaluate.benchmarks.catalogue import benchmark_named
from pipelines.evaluate.benchmarks.own import own_benchmark
from pipelines.evaluate.results import BenchmarkResult
from pipelines.evaluate.tables import TableQuestions, open_tables
from pipelines.evaluate.worker import Unreadable
from pipelines.html.pictures import data_uri
from pipelines.storage.atomic import create
from pipelines.storage.uri import Folder

FILE = "thumbnails.parquet"
SHOWN = 300
"""Questions of a benchmark that are shown with their pictures."""
SIDE, FRAMES = 160, 4
"""Longest side of a picture in pixels; of a question with more pictures, so many are shown, evenly spread."""

Thumbnails = dict[int, tuple[str, ...]]
"""Index of a question → its pictures as data URIs."""
SCHEMA = pa.schema([("index", pa.int64()), ("pictures", pa.list_(pa.string()))])


def choose(samples: Sequence[Mapping[str, Any]], count: int = SHOWN) -> list[int]:
    """Indices of the questions to be shown with pictures: two thirds of them the worst, the others evenly
    spread over the rest. Rows that are no question have no picture."""
    ranked = sorted((row["score"], row["index"]) for row in samples if row["score"] is not None)
    worst = {index for _, index in ranked[: -(-2 * count // 3)]}
    rest = sorted(index for _, index in ranked if index not in worst)
    return sorted(worst | set(spread(rest, count - len(worst))))


def spread(items: Sequence[Any], count: int) -> list[Any]:
    """At most ``count`` of some items, evenly spaced."""
    if len(items) <= count:
        return list(items)
    return [items[at * len(items) // count] for at in range(count)]


def tables_of(result: BenchmarkResult) -> TableQuestions:
    """The tables that a result's questions came from, opened again.

    Raises:
        CasaError: Where they are no longer there, or are others.
    """
    wording = result.prompt["wording"]
    own = wording.endswith((".yaml", ".yml"))
    benchmark = own_benchmark(wording) if own else benchmark_named(result.benchmark)
    tables = open_tables(benchmark, result.data["root"])
    if tables.digest != result.data["digest"]:
        raise DataError(
            f"The data of {result.benchmark} have changed.",
            f"The files in {tables.root} are not those that the questions came from.",
            "Evaluate again, or put the former files back.",
        )
    return tables


def read(tables: TableQuestions, wanted: Sequence[int]) -> Thumbnails:
    """The pictures of some questions; a question whose pictures cannot be decoded has none."""
    found: Thumbnails = {}
    for index in sorted(wanted):
        for question in tables.read(index, index + 1):
            if not isinstance(question, Unreadable):
                found[index] = tuple(_small(question.sample))
    return found


def _small(sample: Sample) -> Iterator[str]:
    parts = spread([part for part in sample.parts if isinstance(part, Image)], FRAMES)
    try:
        for pixels in decode_images(replace(sample, parts=tuple(parts))):
            yield data_uri(pixels, side=SIDE, kind="jpeg")
    except MediaError:
        return


def kept(folder: Folder, digest: str) -> Thumbnails:
    """Those that a result's folder holds; none if they are of other data.

    Args:
        digest: The tables', as the result gives it.
    """
    try:
        data = (folder / FILE).read_bytes()
    except FileNotFoundError:
        return {}
    table = pq.read_table(pa.BufferReader(data))
    if (table.schema.metadata or {}).get(b"digest") != digest.encode():
        return {}
    return {row["index"]: tuple(row["pictures"]) for row in table.to_pylist()}


def keep(folder: Folder, digest: str, thumbnails: Thumbnails) -> None:
    """Write them into a result's folder."""
    rows = [{"index": index, "pictures": list(thumbnails[index])} for index in sorted(thumbnails)]
    table = pa.Table.from_pylist(rows, SCHEMA.with_metadata({"digest": digest}))
    with create(folder / FILE) as file:
        pq.write_table(table, file)
