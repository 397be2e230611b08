"""An evaluation on three benchmarks, pictures and videos, with everything that can go wrong in it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.evaluate.benchmarks.catalogue import CATALOGUE
from pipelines.evaluate.benchmarks.layout.benchmark import Question
from pipelines.evaluate.benchmarks.own import own_benchmark
from pipelines.evaluate.pages.evaluation import write_page
from pipelines.evaluate.results import BenchmarkResult
from pipelines.evaluate.tables import TableQuestions, open_tables
from tests.support.data.media import counting_video
from tests.support.evaluate.benchmark_tables import SCHEMAS, rows
from tests.support.evaluate.results import write_evaluation
from tests.support.evaluate.tables import drawn_rows, write_own
from tests.support.serve.browser import chromium

ATTACK = "</script><script>alert('&\"')</script><b>\u202e"


@dataclass(frozen=True, slots=True)
class Written:
    """An evaluation's folder, its page, its results by benchmark as on the page, and the open tables."""

    folder: Path
    page: Path
    results: dict[str, BenchmarkResult]
    tables: tuple[TableQuestions, ...]


def drawn_answer(at: int, question: Question) -> str | Exception:
    """Every third wrong, two failed, one empty, one cut, one hostile."""
    if at in (5, 12):
        return ValueError(f"The picture breaks off. {ATTACK}")
    special = {7: "", 8: "red and so on and on…", 9: ATTACK}
    return special.get(at, "blue" if at % 3 == 1 else question.truth.answers[0])


def write_tables(folder: Path) -> tuple[TableQuestions, ...]:
    """ChartQA in name, 130 questions of one's own, and five about a video."""
    content = drawn_rows(130)
    content[9]["question"] = ATTACK
    content[11]["question"] = None
    content[12]["image"]["bytes"] = content[12]["image"]["bytes"][:50]
    own = open_tables(own_benchmark(write_own(folder / "own", content)))
    chart = replace(own.benchmark, name="chartqa", title="ChartQA", metric=CATALOGUE["chartqa"].metric)
    videos = folder / "nextqa"
    (videos / "MC").mkdir(parents=True)
    (videos / "NExTVideo").mkdir()
    counting_video(videos / "NExTVideo" / "4010069381.mp4")
    table = pa.Table.from_pylist(rows("nextqa"), SCHEMAS["nextqa"])
    pq.write_table(table, videos / "MC" / "test-00000-of-00001.parquet")
    return replace(own, benchmark=chart, most=40), own, open_tables(CATALOGUE["nextqa"], str(videos))


@pytest.fixture(scope="session")
def evaluation(tmp_path_factory: pytest.TempPathFactory) -> Written:
    folder = tmp_path_factory.mktemp("evaluation")
    chart, own, video = tables = write_tables(folder / "data")
    output = folder / "m"
    results = [
        write_evaluation(output, chart, lambda at, question: "red"),
        write_evaluation(output, video, lambda at, question: "A"),
        write_evaluation(output, own, drawn_answer),
    ]
    page = write_page(output, tables, pictures=60)
    return Written(output, page, {one.benchmark: one for one in results}, tables)


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with chromium(tmp_path_factory.mktemp("chromium")) as driver:
        yield driver
