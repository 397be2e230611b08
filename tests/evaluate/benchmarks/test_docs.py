"""docs/evaluation.md says of benchmarks and metrics what the code says."""

from __future__ import annotations

import re

from pipelines.evaluate.benchmarks.catalogue import CATALOGUE
from pipelines.evaluate.benchmarks.own import own_benchmark
from pipelines.evaluate.metrics.by_name import METRICS
from tests.support.paths import ROOT

TEXT = (ROOT / "docs" / "evaluation.md").read_text(encoding="utf-8")


def test_the_table_of_benchmarks_is_the_catalogue():
    benchmarks = TEXT[: TEXT.index("## Rules")].splitlines()
    table = [line.split(" | ") for line in benchmarks if line.startswith("| `")]
    assert [cells[0].strip("| `") for cells in table] == list(CATALOGUE)
    for cells, benchmark in zip(table, CATALOGUE.values(), strict=True):
        assert cells[1] == benchmark.title
        assert f"`{benchmark.repository}`" in cells[2] or "the same" in cells[2]
        assert cells[3] == benchmark.split
        assert cells[4].startswith(f"`{benchmark.metric.name}`")
        assert all(f"`{metric.name}`" in cells[5] for metric in benchmark.beside)


def test_the_table_of_rules_names_every_metric():
    rules = TEXT[TEXT.index("## Rules") :].split("\n## ")[0]
    named = {
        name
        for line in rules.splitlines()
        if line.startswith("| `")
        for name in re.findall(r"`(\w+)`", line.split(" | ")[0])
    }
    assert named == METRICS.keys()


def test_the_example_of_ones_own_benchmark_is_one(tmp_path):
    example = re.search(r"```yaml\n(.*?)```", TEXT, re.DOTALL)
    assert example
    (tmp_path / "birds.yaml").write_text(example[1])
    own = own_benchmark(tmp_path / "birds.yaml")
    assert (own.name, own.metric, own.files) == ("birds", METRICS["choice"], ("*.parquet",))
    assert {column.name for column in own.columns} == {"question", "species", "right", "image", "habitat"}
