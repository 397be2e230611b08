"""The report is one well-formed, self-contained, escaped HTML file over whatever artifacts a run has."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.data.store.quarantine import Rejected, write_quarantine
from pipelines.html.charts import Bar, grouped_bars, moving_mean
from pipelines.html.graph import columns, direct_edges
from pipelines.html.scale import linear, log_ticks, logarithmic, ticks
from pipelines.html.tags import Html, escape, join, tag
from pipelines.report.page import SECTIONS, render
from pipelines.report.run import run_stage
from pipelines.report.sections.lineage import nodes
from pipelines.report.sections.run_artifacts import gather
from pipelines.text_format import byte_size, duration, number
from tests.support.evaluate.run import make_run

VOID = {"br", "hr", "img", "meta"}


class Outline(HTMLParser):
    """Checks that elements nest, and keeps what there is to look at."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.anchors: set[str] = set()
        self.targets: set[str] = set()
        self.addresses: list[str] = []
        self.counts: dict[str, int] = {}
        self.words = ""
        self.feed(page)
        self.close()
        assert not self.open, f"left open: {self.open}"

    def handle_starttag(self, tag, attrs):
        if tag not in VOID:
            self.open.append(tag)
        self.counts[tag] = self.counts.get(tag, 0) + 1
        for key, value in attrs:
            if key == "id":
                assert value is not None
                assert value not in self.anchors, f"{value} is there twice"
                self.anchors.add(value)
            if key in ("href", "src") and value is not None:
                (self.targets.add if value.startswith("#") else self.addresses.append)(value)

    def handle_endtag(self, tag):
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("style", "script"):
            self.words += data


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run with everything a report can show, and its page."""
    context = make_run(tmp_path_factory.mktemp("run"), questions=24, clips=3, steps=120)
    result = run_stage(context)
    return context, (context.output / "report.html").read_text(encoding="utf-8"), result


def without(context, *names):
    """The same run, had it not had these stages."""
    kept = {name: folder for name, folder in context.inputs.items() if name not in names}
    return gather(type(context)(
        name="report", settings=context.settings, placement={}, output=context.output, inputs=kept,
        manifests={name: context.manifests[name] for name in kept},
    ))  # fmt: skip


def test_the_stage_writes_the_report_and_the_data_cards_that_it_links_to(finished):
    context, page, result = finished
    path = str(context.output / "report.html")
    assert result == {"headline": path, "path": path, "bytes": len(page.encode())}
    cards = [f"cards/{name}.html" for name in ("clean-live", "clean-vqa", "pack")]
    written = [path for path in context.output.rglob("*") if path.is_file()]
    assert sorted(path.relative_to(context.output).as_posix() for path in written) == [*cards, "report.html"]
    assert sorted(address for address in Outline(page).addresses if "data:" not in address) == cards
    for card in cards:
        outline = Outline((context.output / card).read_text(encoding="utf-8"))
        assert all(address.startswith("data:") for address in outline.addresses)
        assert "Data card" in outline.words


def test_the_page_is_well_formed_and_its_links_lead_somewhere(finished):
    outline = Outline(finished[1])
    assert len(outline.targets) == len(SECTIONS)
    assert {target.removeprefix("#") for target in outline.targets} <= outline.anchors


def test_the_page_needs_nothing_from_anywhere(finished):
    page = finished[1]
    assert not re.search(r"https?:|//[a-z]+\.|@import|url\(", page)
    assert all(
        address.startswith(("data:image/png;base64,", "cards/")) for address in Outline(page).addresses
    )


def test_every_section_shows_its_evidence(finished):
    outline = Outline(finished[1])
    for words in (
        "casa-quickstart", "mean of types", "silent", "chance", "due", "said", "blind twin", "final loss",
        "of the image budget", "1091", "truncated_image", "missing_image", "train-00000/902", "corpus-live",
        "2.13.0", "trained on vqa and live", "Held-out scores", "blind twin, vqa accuracy", "The seed was 0.",
    ):  # fmt: skip
        assert words in outline.words, words
    assert outline.counts["svg"] == 7  # two score boards, the loss, scores over steps, two fills, the lineage
    frames = 3 * 8
    assert outline.counts["img"] == outline.counts["article"] + frames
    assert outline.counts["article"] > 12


def test_the_page_is_the_same_each_time(finished):
    context, page, _ = finished
    assert render(gather(context)) == page


def test_absent_parts_are_said_to_be_absent(finished):
    context, _, _ = finished
    for absent, sentence in {
        ("evaluate",): "This run has no evaluation",
        ("train", "train-blind"): "This run trained no model",
        ("pack",): "This run packed no sequences",
        ("clean-vqa", "clean-live"): "This run cleaned no data",
        tuple(context.inputs): "The report was made from no artifact at all",
    }.items():
        assert sentence in Outline(render(without(context, *absent))).words


def test_types_that_the_blind_twin_answers_as_well_are_flagged(finished, tmp_path):
    folder = shutil.copytree(finished[0].inputs["evaluate"], tmp_path / "evaluate")
    boards = json.loads((folder / "metrics.json").read_text())
    context = replace(finished[0], inputs={**finished[0].inputs, "evaluate": folder})
    for alike, said in ((["shape", "yes_no"], "Not above the blind twin: shape, yes/no."), ([], "")):
        boards["vqa"]["not_above_blind"] = alike
        (folder / "metrics.json").write_text(json.dumps(boards))
        words = Outline(render(gather(context))).words
        assert said in words
        assert ("Not above the blind twin" in words) == bool(alike)


def test_hostile_words_stay_words(finished, tmp_path):
    context, _, _ = finished
    attack = "<script>alert('&\"')</script>"
    evaluate, clean = tmp_path / "evaluate", tmp_path / "clean-vqa"
    shutil.copytree(context.inputs["evaluate"], evaluate)
    shutil.copytree(context.inputs["clean-vqa"], clean)
    rejected = Rejected(source=attack, file=attack, row=1, sample_id=attack, reason=attack, detail=attack)
    write_quarantine(clean / "quarantine.parquet", [rejected])
    told = json.loads((evaluate / "captions.json").read_text())
    told["model"]["live"][0]["frames"][0] |= {"truth": attack, "spoken": attack}
    (evaluate / "captions.json").write_text(json.dumps(told))
    metrics = json.loads((evaluate / "metrics.json").read_text())
    metrics["vqa"]["title"] = attack
    (evaluate / "metrics.json").write_text(json.dumps(metrics))
    inputs = {**context.inputs, "evaluate": evaluate, "clean-vqa": clean}
    hostile = type(context)(
        name="report", settings={**context.settings, "model_name": attack}, placement={}, output=tmp_path,
        inputs=inputs, manifests=context.manifests,
    )  # fmt: skip
    page = render(gather(hostile))
    outline = Outline(page)
    assert page.count("<script>") == 1
    assert outline.words.count(attack) >= 6


@given(st.text(), st.text())
def test_markup_holds_exactly_the_words_it_was_given(words, attribute):
    class Reader(HTMLParser):
        def handle_starttag(self, tag, attrs):
            self.attribute = dict(attrs)["title"]

        def handle_data(self, data):
            self.words = getattr(self, "words", "") + data

    reader = Reader()
    reader.feed(tag("p", words, title=attribute))
    reader.close()
    clean = words.replace("\r\n", "\n").replace("\r", "\n") if "\r" in words else words
    assert getattr(reader, "words", "") in (words, clean)
    assert reader.attribute == attribute


def test_only_elements_are_markup():
    assert tag("b", "<i>", Html("<i></i>"), None, class_="a", data_tip="x", hidden=True, lang=None) == (
        '<b class="a" data-tip="x" hidden>&lt;i&gt;<i></i></b>'
    )
    assert join(["a", Html("<br>"), 3], " & ") == "a &amp; <br> &amp; 3"
    assert escape(None) == ""
    assert tag("img", src="data:") == '<img src="data:">'
    assert tag("line", x1=1.23456, x2=2.0) == '<line x1="1.23" x2="2"></line>'


def test_lineage_runs_from_raw_files_to_the_endpoint_without_implied_edges(finished):
    found = nodes(gather(finished[0]))
    at = columns(found)
    assert at["raw:corpus-vqa"] == at["raw:corpus-live"] == 0
    assert [at[n] for n in ("corpus-vqa", "clean-vqa", "pack", "train", "evaluate", "casa-quickstart")] == [
        1,
        2,
        3,
        4,
        5,
        5,
    ]
    edges = {(parent, node.name) for parent, node in direct_edges(found)}
    assert ("clean-vqa", "pack") in edges
    assert ("clean-vqa", "train") not in edges
    assert ("train-blind", "evaluate") in edges


def test_axes_carry_round_numbers_inside_their_range():
    assert ticks(0, 100, 5) == [0, 20, 40, 60, 80, 100]
    assert ticks(3, 3) == [3]
    assert log_ticks(0.04, 6) == pytest.approx([0.05, 0.1, 0.2, 0.5, 1, 2, 5])
    assert logarithmic(0.1, 10, 0, 100)(1) == pytest.approx(50)
    assert logarithmic(0.1, 10, 0, 100)(0) == 0
    assert linear(5, 5, 1, 2)(5) == 1


@given(st.floats(-1e6, 1e6), st.floats(1e-3, 1e6), st.integers(2, 12))
def test_ticks_stay_inside_whatever_the_range(low, width, about):
    marks = ticks(low, low + width, about)
    assert all(low - width * 1e-6 <= mark <= low + width * (1 + 1e-6) for mark in marks)
    assert len(marks) <= about + 2


def test_values_are_written_for_people():
    assert [number(v) for v in (1234567, 45678, 1490, 0.0015, 12.0, 3.14159)] == [
        "1.23 M", "45.7 k", "1490", "0.0015", "12", "3.14",
    ]  # fmt: skip
    assert [byte_size(v) for v in (12, 1536, 5 * 2**20)] == ["12 B", "1.5 KiB", "5.0 MiB"]
    assert [duration(v) for v in (0.44, 42.2, 59.4, 61, 75, 3600, 7320, 7384)] == [
        "0.4 s", "42 s", "59 s", "1 min 1 s", "1 min 15 s", "1 h", "2 h 2 min", "2 h 3 min",
    ]  # fmt: skip


def test_a_moving_mean_narrows_at_the_ends():
    points = [(float(i), float(i)) for i in range(5)]
    assert moving_mean(points, 3) == [(0, 0.5), (1, 1), (2, 2), (3, 3), (4, 3.5)]


def test_a_bar_without_an_interval_has_no_whisker():
    sure = Bar(value=0.5, low=0.5, high=0.5, style="model", tip="")
    unsure = Bar(value=0.5, low=0.4, high=0.6, style="model", tip="")
    assert "whisker" not in grouped_bars([("a", [sure])], label="", emphasised="a")
    assert grouped_bars([("a", [unsure])], label="", emphasised="a").count("whisker") == 3
