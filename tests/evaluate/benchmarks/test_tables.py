"""Files of a benchmark are found in its repository's layout, here and on a hub, and read in order."""

from __future__ import annotations

import json
from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from casa_core.errors import ConfigError, DataError
from pipelines.evaluate.benchmarks.catalogue import CATALOGUE
from pipelines.evaluate.benchmarks.layout.tables import find_files
from pipelines.evaluate.tables import open_tables
from tests.support.data.hub import running_hub
from tests.support.evaluate.benchmark_tables import SCHEMAS, FakeVideos, rows, table

MME = CATALOGUE["mme"]


def write_mme(root):
    """Three shards, the last one with several row groups and one empty file among them."""
    (root / "data").mkdir(parents=True)
    content = table("mme")
    pq.write_table(content[:10], root / "data" / "test-00000-of-00003.parquet")
    pq.write_table(content[:0], root / "data" / "test-00001-of-00003.parquet")
    pq.write_table(content[10:], root / "data" / "test-00002-of-00003.parquet", row_group_size=7)
    pq.write_table(content[:5], root / "data" / "train-00000-of-00001.parquet")
    return content


def asked(benchmark, root, videos=None):
    """The questions of a folder, read in pieces of three."""
    found = open_tables(benchmark, str(root))
    if videos:
        found = replace(found, videos=videos)
    return [one for start in range(0, len(found), 3) for one in found.read(start, start + 3)]


def test_the_splits_files_are_read_in_order_and_rows_keep_their_numbers(tmp_path):
    content = write_mme(tmp_path)
    files = find_files(MME, tmp_path, "default")
    assert [file.path.rpartition("/")[2][:10] for file in files] == ["test-00000", "test-00001", "test-00002"]
    assert asked(MME, tmp_path) == list(MME.questions(content))


def test_one_file_may_be_given_by_itself(tmp_path):
    content = write_mme(tmp_path)
    file = tmp_path / "data" / "test-00000-of-00003.parquet"
    assert asked(MME, file) == list(MME.questions(content[:10]))


def test_a_hubs_files_are_read_at_the_revision(tmp_path, monkeypatch):
    content = write_mme(tmp_path / "data")
    with running_hub(tmp_path / "data") as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        assert asked(MME, "hf://datasets/org/pictures@main") == list(MME.questions(content))
        with pytest.raises(ConfigError):
            find_files(MME, "hf://datasets/org/nothing@main", "default")


def test_mvbenchs_rows_are_json(tmp_path):
    benchmark, config = CATALOGUE["mvbench"], "object_shuffle"
    (tmp_path / "json").mkdir()
    other = "state_change"
    for name in (config, other):
        (tmp_path / "json" / f"{name}.json").write_text(json.dumps(rows("mvbench")))
    expected = [
        question
        for name in (config, other)
        for question in benchmark.questions(table("mvbench"), config=name, videos=FakeVideos())
    ]
    assert asked(replace(benchmark, configs=(config, other)), tmp_path, FakeVideos()) == expected


def test_a_folder_without_the_splits_files_is_refused_with_where_they_should_be(tmp_path):
    write_mme(tmp_path)
    with pytest.raises(DataError, match=r"no files of docvqa(.|\n)*DocVQA/validation-\*\.parquet"):
        find_files(CATALOGUE["docvqa"], tmp_path, "DocVQA")
    with pytest.raises(DataError, match="no files of mme"):
        find_files(MME, tmp_path / "nowhere", "default")


def test_files_without_rows_are_an_error(tmp_path):
    file = tmp_path / "empty.parquet"
    pq.write_table(SCHEMAS["mme"].empty_table(), file)
    with pytest.raises(DataError, match="the files of mme have no rows"):
        open_tables(MME, str(file))


@pytest.mark.parametrize("content", [b"", b"PAR1 and nothing else PAR1"])
def test_a_damaged_file_is_named(tmp_path, content):
    file = tmp_path / "test.parquet"
    file.write_bytes(content)
    with pytest.raises(DataError, match=r"test\.parquet cannot be read"):
        open_tables(MME, str(file))


@pytest.mark.parametrize("content", ["{}", "[1]", "[", ""])
def test_json_that_is_no_list_of_rows_is_named(tmp_path, content):
    file = tmp_path / "rows.json"
    file.write_text(content)
    with pytest.raises(DataError, match=r"rows\.json cannot be read"):
        open_tables(CATALOGUE["mvbench"], str(file))


def test_a_file_in_another_layout_is_refused_before_its_rows_are_read(tmp_path):
    file = tmp_path / "test.parquet"
    pq.write_table(pa.table({"text": ["a"]}), file)
    with pytest.raises(DataError, match="not in the layout of mme"):
        open_tables(MME, str(file))
