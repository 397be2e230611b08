"""The page of an evaluation holds the results' own numbers, whatever texts they come with."""

from __future__ import annotations

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from pipelines.evaluate.comparison import compare_folders
from pipelines.evaluate.facts import facts_of
from pipelines.evaluate.kept.files import read_samples
from pipelines.evaluate.pages import thumbnails
from pipelines.evaluate.pages.evaluation import write_page
from pipelines.evaluate.results import result_folders
from pipelines.html.tags import VOID
from pipelines.storage.uri import open_folder
from tests.evaluate.pages.conftest import ATTACK, Written, drawn_answer
from tests.support.evaluate.results import write_evaluation


class Outline(HTMLParser):
    """Cells of the tables in order, texts, and data of the scripts; checks that elements nest."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.addresses: list[str] = []
        self.cells: list[str] = []
        self.data: list[Any] = []
        self.words = ""
        self._json = False
        self.feed(page)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        if tag not in VOID:
            self.open.append(tag)
        if tag == "td":
            self.cells.append("")
        self._json = found.get("type") == "application/json"
        self.ids += [value for name, value in attrs if name == "id" and value]
        self.addresses += [v for name, v in attrs if name in ("src", "href") and v and v[0] != "#"]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._json:
            self.data.append(json.loads(data))
            self._json = False
        elif self.open and self.open[-1] not in ("script", "style"):
            self.words += data
            if "td" in self.open:
                self.cells[-1] += data


@pytest.fixture(scope="module")
def outline(evaluation: Written) -> Outline:
    return Outline(evaluation.page.read_text())


def test_it_is_one_file_without_addresses_and_ids_are_unique(outline: Outline):
    assert outline.addresses == []
    assert len(set(outline.ids)) == len(outline.ids)


def test_scores_and_counts_are_those_of_the_results(evaluation: Written, outline: Outline):
    for name, result in evaluation.results.items():
        at = outline.cells.index(result.title)
        score = result.score
        assert outline.cells[at + 1 : at + 8] == [
            f"{score.value:.1f}",
            f"{score.low:.1f} to {score.high:.1f}",
            score.unit,
            str(result.questions),
            str(sum(result.failed.values())),
            str(result.empty),
            str(result.cut),
        ], name
        for category, value in score.parts.items():
            found = [outline.cells[n + 1] for n, cell in enumerate(outline.cells) if cell == category]
            assert f"{value:.1f}" in found, (name, category)
    drawn = evaluation.results["drawn"]
    assert (sum(drawn.failed.values()), drawn.empty, drawn.cut, drawn.questions) == (3, 1, 1, 129)


def test_published_scores_stand_with_their_sources(evaluation: Written, outline: Outline):
    published = evaluation.results["chartqa"].published
    assert published
    assert f"All {len(published)} published scores with their sources" in outline.words
    for one in published:
        found = [n for n, cell in enumerate(outline.cells) if cell == one["model"]]
        assert (f"{one['score']:g}", one["source"]) in [
            (outline.cells[n + 1], outline.cells[n + 3]) for n in found
        ]
    chosen = outline.data[0]
    assert chosen["CASA-Helium1-VL-2B (official README)"]["benchmark-chartqa"] == "77.6"


def test_everything_that_a_score_depends_on_is_there(evaluation: Written, outline: Outline):
    for result in evaluation.results.values():
        facts = facts_of(result)
        assert {"data root", "data digest", "prompt sha256", "prompt first", "metric version"} <= facts.keys()
        assert {"checkpoint fingerprint", "decoding mode", "decoding sampling max new tokens"} <= facts.keys()
        for name, value in facts.items():
            assert value in [outline.cells[n + 1] for n, cell in enumerate(outline.cells) if cell == name], (
                name
            )


def test_every_row_is_there_with_its_answer_and_score_the_worst_first(evaluation: Written, outline: Outline):
    for result, content in zip(evaluation.results.values(), outline.data[1:], strict=True):
        samples = read_samples(evaluation.folder / result.benchmark)
        shown = {row["at"]: row for row in content["rows"]}
        assert shown.keys() == {row["index"] for row in samples}
        for sample in samples:
            row = shown[sample["index"]]
            score = sample["score"]
            assert row["value"] == ("none" if score is None else f"{score:.3g}")
            assert row["answers"][0]["kind"] == row["kinds"][0]
        order = [-1 if "failed" in row["kinds"] else float(row["value"]) for row in content["rows"]]
        assert order == sorted(order)


def test_hostile_texts_stay_texts(evaluation: Written, outline: Outline):
    page = evaluation.page.read_text()
    assert page.count("<script>") == 2
    assert "<b>\\u202e" not in page
    spelled = ATTACK.replace("\u202e", "\\u202e")
    [drawn] = [one for one in outline.data[1:] if len(one["rows"]) == 130]
    row = next(row for row in drawn["rows"] if row["at"] == 9)
    assert (row["prompt"], row["answers"][0]["text"]) == (spelled, spelled)
    assert f"The picture breaks off. {spelled}" in outline.words


def test_letters_stand_with_their_options_and_videos_with_four_frames(evaluation: Written, outline: Outline):
    [video] = [one for one in outline.data[1:] if len(one["rows"]) == 5]
    assert [row["truths"] for row in sorted(video["rows"], key=lambda row: row["at"])][1] == [
        "B. tap their feet"
    ]
    assert [len(row["pictures"]) for row in video["rows"]] == [4] * 5
    assert len(video["pictures"]) == 4, "five questions about one video share its pictures"


def test_two_thirds_of_the_pictures_are_of_the_worst_and_the_rest_of_all():
    samples = [{"index": at, "score": float(at >= 50)} for at in range(200)] + [{"index": 200, "score": None}]
    chosen = thumbnails.choose(samples, 30)
    assert chosen[:20] == list(range(20))
    assert len(chosen) == 30
    assert chosen[20:] == [20 + at * 18 for at in range(10)]
    assert thumbnails.choose(samples, 500) == list(range(200))


def test_pictures_are_kept_beside_the_result_and_not_read_again(evaluation: Written, tmp_path: Path):
    page = evaluation.page.read_bytes()
    assert (evaluation.folder / "drawn" / thumbnails.FILE).is_file()
    copy = shutil.copytree(evaluation.folder, tmp_path / "m")
    assert write_page(copy, (), pictures=60).read_bytes() == page


def test_an_evaluation_in_a_bucket_has_the_same_page(evaluation: Written):
    folder = open_folder("memory://evaluations/m")
    drawn = evaluation.tables[1]
    for place in (folder, open_folder("memory://evaluations/other")):
        write_evaluation(place, drawn, drawn_answer)
    page = write_page(folder, (drawn,), pictures=60)
    assert page.read_bytes() == write_page(folder, pictures=60).read_bytes()
    assert [one.name for one in result_folders(folder)] == ["drawn"]
    [compared], _ = compare_folders(folder, folder.parent / "other")
    assert compared.changed == ()


def test_a_page_without_its_pictures_says_why(evaluation: Written, tmp_path: Path):
    copy = shutil.copytree(evaluation.folder, tmp_path / "m")
    for name in ("chartqa", "drawn", "nextqa"):
        (copy / name / thumbnails.FILE).unlink()
    found = json.loads((copy / "nextqa" / "result.json").read_text())
    found["data"]["root"] = str(tmp_path / "gone")
    (copy / "nextqa" / "result.json").write_text(json.dumps(found))
    found = json.loads((copy / "drawn" / "result.json").read_text())
    found["data"]["digest"] = "other"
    (copy / "drawn" / "result.json").write_text(json.dumps(found))
    words = Outline(write_page(copy).read_text()).words
    assert "There are no files of nextqa in" in words
    assert "The data of drawn have changed." in words
    assert re.search(r"40 of 40 rows have their pictures here", words) is None, "row 11 and 12 have none"
    assert "38 of 40 rows have their pictures here" in words


def test_a_benchmark_in_two_settings_has_two_sections(evaluation: Written, tmp_path: Path):
    copy = shutil.copytree(evaluation.folder, tmp_path / "m")
    shutil.copytree(copy / "chartqa", copy / "chartqa@448")
    found = json.loads((copy / "chartqa@448" / "result.json").read_text())
    found["checkpoint"]["fingerprint"] = "of smaller pictures"
    found["decoding"]["max_side"] = 448
    (copy / "chartqa@448" / "result.json").write_text(json.dumps(found))
    page = Outline(write_page(copy, (), pictures=60).read_text())
    assert page.ids.index("benchmark-chartqa") < page.ids.index("benchmark-chartqa-448")
    assert page.ids.index("benchmark-chartqa-448") < page.ids.index("benchmark-drawn")
    assert "not of one model" not in page.words
    [compared], _ = compare_folders(copy / "chartqa", copy / "chartqa@448")
    assert compared.facts["decoding max side"] == ("", "448")


def test_results_of_two_models_in_one_folder_are_no_secret(evaluation: Written, tmp_path: Path):
    assert "not of one model" not in evaluation.page.read_text()
    copy = shutil.copytree(evaluation.folder, tmp_path / "m")
    found = json.loads((copy / "drawn" / "result.json").read_text())
    found["checkpoint"]["fingerprint"] = "another"
    (copy / "drawn" / "result.json").write_text(json.dumps(found))
    assert "not of one model" in write_page(copy).read_text()
