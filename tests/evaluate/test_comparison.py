"""Two evaluations are compared question by question, where they answered the same ones."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from casa_core.errors import DataError
from pipelines.evaluate.benchmarks.own import own_benchmark
from pipelines.evaluate.comparison import Evaluated, compare, compare_folders
from pipelines.evaluate.kept.files import read_samples
from pipelines.evaluate.metrics.resampling import mcnemar
from pipelines.evaluate.results import read_result
from pipelines.evaluate.tables import TableQuestions, open_tables
from tests.support.evaluate.results import write_evaluation
from tests.support.evaluate.tables import drawn_rows, write_own

FIRST = "rrrrrrwwrr"
SECOND = "rwwrwwwrrw"
"""Right and wrong answers to ten questions: five only the first has right, one only the second."""


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> TableQuestions:
    file = write_own(tmp_path_factory.mktemp("own"), drawn_rows(10))
    return open_tables(own_benchmark(file))


def evaluated(folder: Path, tables: TableQuestions, pattern: str, **more: object) -> Path:
    write_evaluation(
        folder,
        tables,
        lambda at, question: question.truth.answers[0] if pattern[at] == "r" else "none",
        name=folder.name,
        **more,
    )
    return folder


def test_ten_questions_are_tested_as_by_hand(tables: TableQuestions, tmp_path: Path):
    a, b = evaluated(tmp_path / "a", tables, FIRST), evaluated(tmp_path / "b", tables, SECOND)
    [found], others = compare_folders(a, b)
    assert [one.value for one in found.scores] == pytest.approx([80, 40])
    assert found.comparison.difference.value == pytest.approx(40)
    assert (found.comparison.better, found.comparison.worse) == (5, 1)
    assert found.comparison.test == "McNemar, exact"
    # Six fair throws: 2 * (C(6, 0) + C(6, 1)) / 2 ** 6.
    assert found.comparison.p_value == pytest.approx(14 / 64) == mcnemar(5, 1)
    assert found.changed == (7, 1, 2, 4, 5, 9), "the first model's losses come first"
    assert others == []


def test_a_model_beside_itself_differs_in_nothing(tables: TableQuestions, tmp_path: Path):
    a = evaluated(tmp_path / "a", tables, FIRST)
    [found], _ = compare_folders(a, a / "drawn")
    assert (found.comparison.difference.value, found.comparison.p_value) == (0, 1)
    assert found.changed == ()
    assert found.facts == {}


def test_facts_that_differ_are_listed_and_others_are_not(tables: TableQuestions, tmp_path: Path):
    a = evaluated(tmp_path / "a", tables, FIRST)
    b = evaluated(tmp_path / "b", tables, FIRST, temperature=0.5)
    [found], _ = compare_folders(a, b)
    assert found.facts["decoding sampling temperature"] == ("", "0.5")
    assert found.facts["checkpoint fingerprint"] == ("a" * 8, "b" * 8)
    assert not {"data digest", "prompt sha256", "metric version"} & found.facts.keys()


def other_questions(folder: Path, change: str) -> TableQuestions:
    rows = drawn_rows(9 if change == "fewer" else 10)
    if change == "prompt":
        rows[3]["question"] = "which one?"
    if change == "truths":
        rows[3]["answer"] = "brown"
    if change == "unreadable":
        rows[3]["question"] = None
    return open_tables(own_benchmark(write_own(folder / change, rows)))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("fewer", "The first are 10, the second 9."),
        ("prompt", "Row 3 has another prompt"),
        ("truths", "Row 3 has another truths"),
        ("unreadable", "Row 3 has another question id"),
    ],
)
def test_other_questions_are_refused(tables: TableQuestions, tmp_path: Path, change: str, says: str):
    a = evaluated(tmp_path / "a", tables, FIRST)
    b = evaluated(tmp_path / "b", other_questions(tmp_path, change), SECOND)
    with pytest.raises(DataError, match="not the same") as refused:
        compare_folders(a, b)
    assert says in str(refused.value)


def test_scores_by_two_versions_of_a_rule_are_refused(tables: TableQuestions, tmp_path: Path):
    folder = evaluated(tmp_path / "a", tables, FIRST) / "drawn"
    result, samples = read_result(folder), read_samples(folder)
    older = replace(result, score=replace(result.score, version="0"))
    one, two = (Evaluated(folder=folder, result=each, samples=samples) for each in (result, older))
    with pytest.raises(DataError, match="two rules") as refused:
        compare(one, two)
    assert "casa score" in str(refused.value)


def test_scores_by_two_judges_are_refused(tables: TableQuestions, tmp_path: Path):
    folder = evaluated(tmp_path / "a", tables, FIRST) / "drawn"
    result, samples = read_result(folder), read_samples(folder)

    def judged(model: str, url: str) -> Evaluated:
        judge = {"model": model, "url": url, "counts": {"asked": len(url)}}
        return Evaluated(folder=folder, result=replace(result, judge=judge), samples=samples)

    assert compare(judged("one", "http://a"), judged("one", "http://other")).changed == ()
    with pytest.raises(DataError, match=r"judged in two ways(.|\n)*model: one and two"):
        compare(judged("one", "http://a"), judged("two", "http://a"))


def test_folders_without_a_common_benchmark_are_refused(tables: TableQuestions, tmp_path: Path):
    a = evaluated(tmp_path / "a", tables, FIRST)
    b = evaluated(tmp_path / "b", replace(tables, benchmark=replace(tables.benchmark, name="x")), FIRST)
    with pytest.raises(DataError, match="no benchmark in common"):
        compare_folders(a, b)
    with pytest.raises(DataError, match="holds no result"):
        compare_folders(tmp_path / "nowhere", tmp_path / "nowhere")
