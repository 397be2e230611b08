"""Benchmarks as folders in the layouts that they have on the hub, with videos that can be decoded."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from casa_core.types import Image
from pipelines.evaluate.benchmarks.catalogue import CATALOGUE
from pipelines.evaluate.benchmarks.layout.benchmark import Benchmark
from pipelines.evaluate.tables import TableQuestions, open_tables
from tests.support.data.media import counting_video
from tests.support.evaluate.benchmark_tables import GQA_IMAGES, FakeVideos, rows, table
from tests.support.evaluate.stream_tables import OVOBENCH

SECONDS = 32
"""Length of the videos: the rows ask at times up to half a minute."""


def write_layout(name: str, root: Path, copies: int = 1) -> TableQuestions:
    """A benchmark's files below ``root``, its rows ``copies`` times over, opened as a user's are."""
    benchmark = CATALOGUE[name]
    if name == "mvbench":
        benchmark = replace(benchmark, configs=("object_shuffle", "state_change"))  # of twenty
    for config in benchmark.configs:
        place = root / benchmark.patterns(config)[0].replace("*", "-")
        place.parent.mkdir(parents=True, exist_ok=True)
        _write_table(place, name, copies)
    if benchmark.lookup:
        second = root / benchmark.patterns(benchmark.lookup.config)[0].replace("*", "0")
        second.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(GQA_IMAGES, second)
    found = open_tables(benchmark, str(root))
    if benchmark.modality != "picture":
        _write_videos(benchmark, found, root)
    return found


def _write_table(file: Path, name: str, copies: int) -> None:
    content = rows(name) * copies
    if file.suffix == ".parquet":
        pq.write_table(pa.concat_tables([table(name)] * copies), file)
    elif file.suffix == ".csv":
        with file.open("w", newline="", encoding="utf-8-sig") as opened:
            writer = csv.DictWriter(opened, content[0])
            writer.writeheader()
            writer.writerows(content)
    else:
        file.write_text(json.dumps(OVOBENCH * copies if name == "ovobench" else content))


def _write_videos(benchmark: Benchmark, found: TableQuestions, root: Path) -> None:
    """One video under each name that a row has."""
    names = _Names()
    list(replace(found, videos=names).read(0, len(found)))
    data = counting_video(root / "video.mp4", frames=SECONDS, fps=1)
    assert names.asked, benchmark.name
    for name in names.asked:
        path = root / (name if Path(name).suffix else f"{name}.mp4")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


class _Names(FakeVideos):
    """Notes which videos are asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: set[str] = set()

    def frames(self, name: str, start: float = 0.0, until: float | None = None) -> tuple[Image, ...]:
        self.asked.add(name)
        return super().frames(name, start, until)
