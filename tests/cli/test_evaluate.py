"""``casa evaluate`` as a user sees it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from pipelines.cli.app import app
from tests.support.evaluate.tables import drawn_rows, write_own


def casa(*arguments: Any, code: int = 0) -> str:
    result = CliRunner().invoke(app, ["evaluate", *map(str, arguments)], env={"COLUMNS": "120"})
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    return result.output


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_own(tmp_path_factory.mktemp("own"), drawn_rows(20))


def test_a_benchmark_of_ones_own_is_scored_and_every_answer_kept(
    tiny_checkpoint: Path, own: Path, tmp_path: Path
):
    options = (
        tiny_checkpoint,
        "--benchmarks",
        own,
        "--store",
        tmp_path,
        "--max-new-tokens",
        4,
        "--name",
        "m",
    )
    printed = casa(*options)
    assert "Drawn" in printed
    page = (tmp_path / "evaluations" / "m" / "index.html").read_text()
    assert page.count("data:image/jpeg") == 20
    samples = pq.read_table(tmp_path / "evaluations" / "m" / "drawn" / "samples.parquet").to_pylist()
    assert [row["truths"] for row in samples] == [[("red", "green", "blue")[at % 3]] for at in range(20)]
    [result] = json.loads(casa(*options, "--json").partition("[\n")[2].join(["[\n", ""]))
    assert result["score"]["value"] == 100 * np.mean([row["score"] for row in samples])
    assert set(result["score"]["parts"]) == {"one", "two"}
    assert result["throughput"]["asked"] == sum(not row["answer"].strip() for row in samples), (
        "others are known"
    )
    assert result["decoding"]["sampling"]["max_new_tokens"] == 4


def test_rows_without_an_answer_are_counted_and_named(tiny_checkpoint: Path, tmp_path: Path):
    rows = drawn_rows(9)
    rows[2]["image"]["bytes"] = rows[2]["image"]["bytes"][:50]
    rows[5]["question"] = None
    file = write_own(tmp_path / "own", rows)
    printed = casa(tiny_checkpoint, "--benchmarks", file, "--store", tmp_path, "--name", "m")
    assert "1 without an answer: Row 5 of drawn cannot be used." in printed
    samples = pq.read_table(tmp_path / "evaluations" / "m" / "drawn" / "samples.parquet").to_pylist()
    assert [row["index"] for row in samples if row["error"]] == [2, 5]
    assert (samples[2]["score"], samples[5]["score"]) == (0.0, None)


def test_without_a_checkpoint_the_benchmarks_are_listed():
    assert "chartqa" in casa()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--benchmarks", "chartq"], "Did you mean 'chartqa'?"),
        (["--benchmarks", "mme,mme"], "named twice"),
        (["--benchmarks", "mme", "--data", "gqa=x"], "not evaluated"),
        (["--benchmarks", "mme", "--data", "mme=/nowhere"], "no files of mme in /nowhere"),
        (["--benchmarks", "none.yaml"], "none.yaml"),
    ],
)
def test_a_mistake_is_named_before_any_work(tiny_checkpoint: Path, arguments: list[str], says: str):
    assert says in casa(tiny_checkpoint, *arguments, code=2)


def test_tables_of_another_layout_are_refused_before_any_work(
    tiny_checkpoint: Path, own: Path, tmp_path: Path
):
    empty = pq.read_table(own.with_suffix(".parquet")).slice(0, 0)
    pq.write_table(empty, tmp_path / "drawn.parquet")
    other = tmp_path / "test-0.parquet"
    pq.write_table(pa.table({"question": ["a"], "image": [1]}), other)
    for arguments, says in (
        (["--benchmarks", own, "--data", f"drawn={tmp_path / 'drawn.parquet'}"], "have no rows"),
        (["--benchmarks", "mme", "--data", f"mme={other}"], "there is no column"),
        (["--benchmarks", "mme", "--data", f"mme={tmp_path}"], "no files of mme"),
    ):
        assert says in casa(tiny_checkpoint, *arguments, code=2)
