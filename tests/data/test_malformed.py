"""Two hundred malformed files and lines pass the real clean stage: each is set aside with its reason."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from pathlib import Path

import pytest
import ray

from casa_core.errors import DataError
from pipelines.dag.context import StageContext
from pipelines.data.clean import run as clean
from pipelines.data.store.quarantine import Rejected, read_quarantine
from pipelines.data.store.readers import CleanReader
from tests.support.data.malformed import MAX_PIXELS, Case, cases, write_corpus

CASES = cases()
OF_PARQUET = Counter({"unreadable_file": 2, "unreadable_rows": 5})
"""What the corpus's broken parquet files add; five of their rows are good."""


@pytest.fixture(scope="module", autouse=True)
def local_ray():
    """A small Ray of this module's own."""
    ray.init(
        address="local",
        num_cpus=2,
        object_store_memory=80 * 2**20,
        include_dashboard=False,
        configure_logging=False,
        log_to_driver=False,
    )
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("malformed")
    write_corpus(folder, CASES)
    return folder


def run(corpus: Path, output: Path, max_failures: float) -> dict:
    what = {
        "source": "own",
        "reader": "image_text",
        "path": str(corpus),
        "max_failures": max_failures,
        "max_pixels": MAX_PIXELS,
    }
    output.mkdir(parents=True, exist_ok=True)
    where = {"data": {"workers": 2}}
    return clean.run_stage(StageContext(name="clean", settings=what, placement=where, output=output))


@pytest.fixture(scope="module")
def cleaned(corpus, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("clean") / "out"
    run(corpus, output, max_failures=0.99)
    return output


@pytest.fixture(scope="module")
def listed(cleaned) -> dict[int, Rejected]:
    """What the quarantine lists of the JSONL file, by line."""
    entries = read_quarantine(cleaned / "quarantine.parquet")
    own = [entry for entry in entries if entry.file == "train-0.jsonl"]
    assert len({entry.row for entry in own}) == len(own)
    return {entry.row: entry for entry in own}


def test_there_are_two_hundred_of_them(cleaned):
    assert len(read_quarantine(cleaned / "quarantine.parquet")) >= 200


@pytest.mark.parametrize(
    ("line", "case"), [pytest.param(line, case, id=case.name) for line, case in enumerate(CASES)]
)
def test_each_is_set_aside_for_the_right_reason(line: int, case: Case, listed: dict[int, Rejected]):
    if case.reason is None:
        assert line not in listed
        return
    entry = listed[line]
    assert (entry.source, entry.reason) == ("own", case.reason)
    assert entry.detail
    if case.line is None:
        assert entry.sample_id.startswith(f"{case.name}@")
        assert entry.sha256 == hashlib.sha256(case.data).hexdigest()


def test_broken_parquet_files_cost_only_what_is_broken(cleaned):
    entries = [
        entry for entry in read_quarantine(cleaned / "quarantine.parquet") if entry.file.endswith(".parquet")
    ]
    assert Counter(entry.reason for entry in entries) == OF_PARQUET
    assert [entry.row for entry in entries if entry.reason == "unreadable_rows"] == [5, 6, 7, 8, 9]


def test_the_others_are_kept_with_their_bytes(cleaned):
    good = [case for case in CASES if case.reason is None]
    rows = list(CleanReader(cleaned, "train"))
    own = [row for row in rows if "train-0" in row["sample_id"]]
    assert [row["media"][0]["bytes"] for row in own] == [case.data for case in good]
    assert len(rows) == len(own) + 5
    card = json.loads((cleaned / "card.json").read_text())["splits"]["train"]
    assert card["records"] == card["rows"] + card["quarantined"] == len(CASES) + 12


def test_a_budget_that_is_exceeded_stops_the_run_and_leaves_the_list(corpus, tmp_path):
    with pytest.raises(DataError, match="too many unusable records") as caught:
        run(corpus, tmp_path, max_failures=0.1)
    assert "truncated_image" in caught.value.why
    assert read_quarantine(tmp_path / "quarantine.parquet")
    assert not (tmp_path / "card.json").exists()
