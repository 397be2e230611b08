"""Shards on Ray Data: one fused task each, equal bytes however they are carried, errors as raised."""

from __future__ import annotations

import hashlib
import json
import logging
import re
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import ray
from PIL import Image as PILImage

from casa_core.errors import ClusterError, DataError
from pipelines.dag.context import StageContext
from pipelines.data.clean import run as clean
from pipelines.data.clean.records import DEFAULT_LIMITS, clean_record
from pipelines.data.clean.shards import CleanShards, ShardTask
from pipelines.data.pack import run as pack
from pipelines.data.read import Record
from pipelines.data.read.corpora.finevision import FineVisionReader
from pipelines.data.read.source.files import Files
from pipelines.data.store.on_ray import on_ray
from pipelines.data.store.quarantine import Rejected, write_quarantine
from pipelines.data.store.ray_data import quiet_context, run_on_ray, shard_dataset
from pipelines.data.store.rows import CLEAN_SCHEMA, CleanSample
from pipelines.data.store.shard_pipeline import (
    REPORTS,
    Convert,
    ShardPipeline,
    Tasks,
    Write,
    framed_records,
    run_here,
    write_report,
    write_shards,
)
from pipelines.data.store.shard_writing import INDEX, write_shard
from pipelines.storage.atomic import DIGESTS
from tests.support.data.clean import chats, write_clean
from tests.support.data.corpus import PICTURE, finevision_row, write_finevision
from tests.support.data.media import encode
from tests.support.data.prepared import PACK
from tests.support.data.store import media_bytes


@pytest.fixture
def handler_of_a_user() -> Iterator[logging.Handler]:
    """A user's own handler of Ray Data's lines."""
    handler = logging.StreamHandler()
    logging.getLogger("ray.data").addHandler(handler)
    yield handler
    logging.getLogger("ray.data").removeHandler(handler)


@pytest.fixture(scope="module", autouse=True)
def local_ray():
    """A small Ray of this module's own."""
    ray.init(
        address="local",
        num_cpus=5,
        object_store_memory=80 * 2**20,
        include_dashboard=False,
        configure_logging=False,
        log_to_driver=False,
    )
    yield
    ray.shutdown()


def executed(dataset: ray.data.Dataset) -> list[tuple[str, int]]:
    """The operators that ran, and how many tasks each had."""
    found = re.findall(r"Operator \d+ (.+): (\d+) tasks executed", dataset.stats())
    return [(name, int(tasks)) for name, tasks in found]


def contents(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.parent.name != DIGESTS
    }


# Cleaning


@pytest.fixture(scope="module")
def reader(tmp_path_factory) -> FineVisionReader:
    """90 records, many of them broken; two with 21 MB of pictures; some shards without a good one."""
    folder = tmp_path_factory.mktemp("corpus")
    grain = np.random.default_rng(0).integers(0, 256, (700, 900, 3), np.uint8)
    large = [encode(PILImage.fromarray(np.roll(grain, n)), "PNG", compress_level=0) for n in range(11)]
    for number in range(3):
        rows = [
            finevision_row(images=[b"junk"] if at % 7 == number or number == 2 else [PICTURE] * (at % 3 + 1))
            for at in range(29)
        ]
        rows.append(finevision_row(images=[b""] if number == 2 else large))
        write_finevision(folder / f"train-{number}.parquet", rows, row_group_size=10)
    return FineVisionReader(files=Files(str(folder)), source="s")


@pytest.fixture
def tasks(reader, monkeypatch) -> dict[str, ShardTask]:
    monkeypatch.setattr(clean, "RECORDS_PER_SHARD", 10)
    return {task.name: task for task in clean.plan(reader)}


def stored_once(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows of a shard, bytes of a picture in the first row that shows it."""
    first: dict[bytes, tuple[int, int]] = {}
    for number, row in enumerate(rows):
        for at, entry in enumerate(row["media"]):
            holder = first.setdefault(entry["bytes"], (number, at))
            if holder != (number, at):
                entry |= {"bytes": None, "at_row": holder[0], "at_media": holder[1]}
    return rows


def test_shards_have_the_bytes_that_a_plain_loop_writes_with_any_number_of_workers(reader, tasks, tmp_path):
    for name, task in tasks.items():
        cleaned = [
            clean_record(record) if isinstance(record, Record) else record
            for span in task.spans
            for record in reader.read(span)
        ]
        rows = stored_once([own.to_row() for own in cleaned if isinstance(own, CleanSample)])
        write_shard(tmp_path / f"{name}.arrow", CLEAN_SCHEMA, rows, size_of=media_bytes)
        rejected = [own for own in cleaned if isinstance(own, Rejected)]
        write_quarantine(tmp_path / f"{name}.parquet", rejected)
    plain = contents(tmp_path)
    for workers in (0, 1, 2, 5):
        output = tmp_path / str(workers)
        output.mkdir()
        run = on_ray(workers) if workers else run_here
        pipeline = CleanShards(reader, DEFAULT_LIMITS, output)
        reports = dict(write_shards(run, pipeline, tasks, output))
        assert reports.keys() == tasks.keys()
        assert sum(report["rows"] for report in reports.values()) == 51
        found = {Path(name).name: digest for name, digest in contents(output).items()}
        assert {name: found[name] for name in plain} == plain
        assert found.keys() - plain.keys() == {f"{name}.json" for name in tasks}
    assert len(tasks) == 9


def test_cleaning_is_one_fused_operator_with_a_task_per_shard(reader, tasks, tmp_path):
    (tmp_path / REPORTS).mkdir()
    dataset = shard_dataset(CleanShards(reader, DEFAULT_LIMITS, tmp_path), tasks, list(tasks), workers=2)
    results = dataset.take_all()
    assert sorted(row["task"] for row in results) == sorted(tasks)
    assert executed(dataset) == [("ReadCleanShards->MapBatches(Convert)->MapBatches(Write)", len(tasks))]


# Packing


def test_encoding_and_writing_packs_are_one_fused_operator_each(tmp_path, monkeypatch):
    """And so are the scans of filters."""
    monkeypatch.setattr(pack, "ROWS_PER_TASK", 16)
    monkeypatch.setattr(pack, "SEQUENCES_PER_SHARD", 8)
    found: list[tuple[str, int]] = []

    def run(
        pipeline: ShardPipeline[Any], tasks: Tasks[Any], names: Sequence[str]
    ) -> Generator[tuple[str, bytes]]:
        dataset = shard_dataset(pipeline, tasks, names, workers=2)
        yield from [(row["task"], row["result"]) for row in dataset.take_all()]
        found.extend(executed(dataset))

    inputs = {"chats": write_clean(tmp_path / "clean", chats(60))}
    what = PACK | {"sources": ["chats"], "filters": {"text_length": {"min_characters": 2}}, "mixture": {}}
    for name, own in (("fused", run), ("here", run_here)):
        (tmp_path / name).mkdir()
        output = tmp_path / name
        pack.pack_sources(
            StageContext(name="pack", settings=what, placement={}, inputs=inputs, output=output), own
        )
    shards = len(json.loads((tmp_path / "fused" / INDEX).read_text())["shards"])
    assert shards > 1
    assert found == [
        ("Read_Mapped->MapBatches(Convert)->MapBatches(Write)", 1),
        ("ReadEncodeShards->MapBatches(Convert)->MapBatches(Write)", 4),
        ("ReadPackShards->MapBatches(Convert)->MapBatches(Write)", shards),
    ]
    assert contents(tmp_path / "fused") == contents(tmp_path / "here")


# What can go wrong, with a pipeline of numbers


class Numbers(ShardPipeline[list[int]]):
    """Writes each task's numbers as text."""

    activity, remedy = "counted", "Count less."
    records = rows = pa.schema([("number", pa.int64())])

    def __init__(self, output: Path, fail: str = "", error: BaseException | None = None) -> None:
        self.output, self.fail, self.error = output, fail, error

    def read(self, task: list[int]) -> Iterator[pa.Table]:
        for number in task:
            self.raise_in("read", number)
            yield pa.table({"number": [number]}, schema=self.records)

    def convert(self, records: pa.Table) -> Iterator[pa.Table]:
        for number in records.column("number").to_pylist():
            self.raise_in("convert", number)
        yield records

    def open(self, name: str) -> NumberSink:
        return NumberSink(self, name)

    def raise_in(self, step: str, number: int) -> None:
        if self.error is not None and step == self.fail and number == 13:
            raise self.error


class NumberSink:
    def __init__(self, pipeline: Numbers, name: str) -> None:
        self.pipeline, self.name, self.found = pipeline, name, []
        self.file = pipeline.output / f".{name}.half"
        self.file.write_text("")

    def add(self, rows: pa.Table) -> None:
        for number in rows.column("number").to_pylist():
            self.pipeline.raise_in("write", number)
            self.found.append(number)

    def finish(self) -> bytes:
        self.file.replace(self.pipeline.output / self.name)
        return write_report(self.pipeline.output, self.name, {"numbers": self.found})

    def abort(self) -> None:
        self.file.unlink()


def numbers(count: int) -> dict[str, list[int]]:
    return {f"n{number}": list(range(number)) for number in range(count)}


def test_an_empty_shard_is_written_too_and_finished_ones_are_not_made_again(tmp_path):
    work = numbers(4)
    (tmp_path / REPORTS).mkdir()
    write_report(tmp_path, "n2", {"numbers": ["as it was reported"]})
    reports = dict(write_shards(on_ray(2), Numbers(tmp_path), work, tmp_path))
    assert reports.pop("n2") == {"numbers": ["as it was reported"]}
    assert reports == {name: {"numbers": own} for name, own in work.items() if name != "n2"}
    assert sorted(path.name for path in tmp_path.iterdir()) == [REPORTS, "n0", "n1", "n3"]


@pytest.mark.parametrize("torn", [b"", bytes(4096), b'{"numbers": ['], ids=["empty", "zeros", "cut"])
def test_a_shard_whose_report_a_loss_of_power_has_torn_is_made_again(tmp_path, torn):
    work = numbers(4)
    expected = dict(write_shards(run_here, Numbers(tmp_path), work, tmp_path))
    (tmp_path / REPORTS / "n2.json").write_bytes(torn)
    (tmp_path / "n2").unlink()
    assert dict(write_shards(run_here, Numbers(tmp_path), work, tmp_path)) == expected
    assert (tmp_path / "n2").exists()


@pytest.mark.parametrize("run", [run_here, on_ray(2)], ids=["here", "ray"])
@pytest.mark.parametrize("step", ["read", "convert", "write"])
def test_an_error_of_any_step_arrives_as_it_was_raised_and_leaves_no_half_shard(step, run, tmp_path):
    error = DataError("This is 13.", "It was among the numbers.", "Leave it out.")
    with pytest.raises(DataError) as caught:
        list(write_shards(run, Numbers(tmp_path, step, error), numbers(15), tmp_path))
    assert caught.value.args == error.args
    assert not (tmp_path / "n14").exists()
    if step == "write":
        assert not (tmp_path / ".n14.half").exists()


@pytest.mark.parametrize("run", [run_here, on_ray(2)], ids=["here", "ray"])
@pytest.mark.parametrize("step", ["read", "convert", "write"])
def test_too_little_memory_is_the_clusters_fault_in_any_step(step, run, tmp_path):
    error = pa.ArrowMemoryError("realloc of size 3072 failed")
    with pytest.raises(ClusterError, match="ran out of memory while it counted") as caught:
        list(write_shards(run, Numbers(tmp_path, step, error), numbers(15), tmp_path))
    assert "realloc of size 3072" in caught.value.why
    assert "Count less. Finished shards are kept." in caught.value.remedy


def test_results_come_as_shards_are_done_and_whoever_has_seen_enough_ends_the_run(tmp_path):
    class Slow(Numbers):
        def read(self, task: list[int]) -> Iterator[pa.Table]:
            time.sleep(0.5)
            yield from super().read(task)

    (tmp_path / REPORTS).mkdir()
    with closing(run_on_ray(Slow(tmp_path), numbers(60), [*numbers(60)], 2)) as results:
        name, result = next(results)
        assert json.loads(result) == {"numbers": numbers(60)[name]}
        assert len(list(tmp_path.glob("n*"))) < 30
    before = -1
    while before != (before := len(list(tmp_path.glob("n*")))):  # what ran is cancelled, or ends
        time.sleep(1.5)
    assert before < 30


def test_rows_that_come_without_their_shards_frame_are_refused():
    """As they would if Ray Data divided a shard among tasks."""
    pipeline = Numbers(Path())
    opening, *body, closing_row = (
        rows for table in framed_records(pipeline, "n3", [0, 1, 2]) for rows in Convert(pipeline)(table)
    )
    for stray in (body[0], closing_row):
        with pytest.raises(AssertionError, match="come to one worker"):
            Write(pipeline)(stray)
    joined = pa.concat_tables([body[0], opening, body[1]])
    with pytest.raises(AssertionError, match="frame encloses"):
        Write(pipeline)(joined)


def test_only_ray_datas_own_lines_are_left_out(handler_of_a_user: logging.Handler):
    quiet_context()
    levels = {handler.name: handler.level for handler in logging.getLogger("ray.data").handlers}
    assert levels["console"] == logging.ERROR
    assert handler_of_a_user.level == logging.NOTSET
