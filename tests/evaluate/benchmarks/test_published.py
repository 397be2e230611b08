"""Published scores: transcribed as the sources print them, each with its source."""

from __future__ import annotations

import pytest

from pipelines.evaluate.benchmarks.pictures import PICTURES
from pipelines.evaluate.benchmarks.published import published, published_groups, tables
from pipelines.evaluate.benchmarks.streams.livesports import LIVESPORTS
from pipelines.evaluate.benchmarks.videos import VIDEOS


def value(benchmark, model, source):
    (found,) = [s for s in published(benchmark, source=source) if s.model == model]
    return found.score


def test_the_columns_are_the_papers_benchmarks_in_its_order():
    assert tables().pictures == [benchmark.name for benchmark in PICTURES]
    assert tables().live == [LIVESPORTS.name]
    assert tables().videos == [benchmark.name for benchmark in VIDEOS]


@pytest.mark.parametrize("name", [b.name for b in (*PICTURES, *VIDEOS, LIVESPORTS)])
def test_every_benchmark_has_published_scores_with_their_source(name):
    found = published(name)
    assert found
    for score in found:
        assert score.source
        assert score.where
        assert score.setting
        assert 0 < score.score <= {"mme": 2800, "ocrbench": 1000}.get(name, 100)


def test_sources_that_print_different_values_for_one_name_stand_side_by_side():
    """ChartQA of CASA-Helium1-VL-2B: 77.6 in the README, 73.4 on the project page and in the paper."""
    assert value("chartqa", "CASA-Helium1-VL-2B", "official README") == 77.6
    assert value("chartqa", "CASA-Helium1-VL-2B", "project page") == 73.4
    assert value("chartqa", "CASA-Helium1 →", "paper table 2") == 73.4
    assert value("chartqa", "CASA-Helium1 → at 896", "paper table 12") == 73.4


def test_a_few_numbers_read_again_from_the_sources():
    assert value("mme", "CASA-Qwen2_5-VL-3B-Shared", "official README") == 2075
    assert value("gqa", "Helium1-VL-2B", "official README") == 54.2
    assert value("infovqa", "CASA-Qwen2_5-VL-3B", "paper table 3") == 59.6
    assert value("videomme_subtitles", "CASA-Qwen2_5-VL-3B", "paper table 4") == 62.4
    assert value("mme", "CASA-Qwen2_5-VL-3B, own token masked", "paper table 8") == 1172
    assert value("livesports", "CASA-Qwen2_5-VL-3B, 20k steps", "paper table 9") == 39.0
    assert value("ocrbench", "CASA-Helium1 → at 1344", "paper table 12") == 738


def test_the_same_run_in_two_tables_of_the_paper_has_the_same_numbers():
    for table in ("paper table 3", "paper table 8"):
        assert [value(b.name, "CASA-Qwen2_5-VL-3B", table) for b in PICTURES] == [
            value(b.name, "CASA-Qwen2_5-VL-3B", "project page") for b in PICTURES
        ]
    assert [value(b.name, "Helium1-VL-2B at 896", "paper table 12") for b in PICTURES] == [
        value(b.name, "Helium1-VL-2B", "project page") for b in PICTURES
    ]


def test_a_number_that_is_not_in_the_text_is_left_out():
    assert not [s for s in published("mme", source="paper table 2") if s.model != "CASA-Helium1 →"]
    assert not [s for s in published("nextqa") if s.model == "Qwen2.5-VL-3B"]
    assert published("unknown") == []


@pytest.mark.parametrize("table", ["paper table 5", "paper table 6", "paper table 7"])
def test_averages_over_groups_are_the_means_of_the_three_groups(table):
    """But for two rows of table 6, which are kept as printed: their means are 62.9 and 63.8."""
    otherwise = {"CASA \u2228": 63.2, "Q-Former, 128 tokens": 62.7} if table == "paper table 6" else {}
    scores = published_groups(table)
    for model in dict.fromkeys(score.model for score in scores):
        *groups, average = (score.score for score in scores if score.model == model)
        is_mean = average == pytest.approx(sum(groups) / 3, abs=0.12)
        assert average == otherwise[model] if model in otherwise else is_mean
        assert is_mean is (model not in otherwise)
