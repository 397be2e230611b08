"""Prompts of video benchmarks beside the reference evaluation's own, and the files beside a table."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest
import yaml

from casa_core.errors import DataError
from casa_core.media.decode import decode_images
from casa_core.types import Text
from pipelines.evaluate.benchmarks.catalogue import CATALOGUE
from pipelines.evaluate.benchmarks.videos.files import VideoFolder, subtitles_at
from pipelines.evaluate.benchmarks.videos.mvbench import FOLDERS
from pipelines.evaluate.metrics.base import Truth
from tests.support.data.media import counting_video
from tests.support.evaluate.benchmark_tables import FakeVideos, png, rows, table
from tests.support.evaluate.lmms_eval_rules import harness, rules


def settings_of(file: Path) -> dict:
    """A task's YAML without its function tags."""
    lines = [line for line in file.read_text().splitlines() if "!function" not in line]
    return yaml.safe_load("\n".join(lines))


REFERENCES = {
    "videomme": ("videomme", "videomme_doc_to_text", "videomme.yaml"),
    "videomme_subtitles": ("videomme", "videomme_doc_to_text_subtitle", "videomme_w_subtitle.yaml"),
    "nextqa": ("nextqa", "nextqa_doc_to_text_mc", "nextqa_mc_test.yaml"),
    "perceptiontest": ("perceptiontest.val", "perceptiontest_val_doc_to_text", "_default_template_yaml"),
    "mvbench": ("mvbench", "mvbench_doc_to_text", "mvbench_object_shuffle.yaml"),
    "mlvu": ("mlvu", "mlvu_doc_to_text", "mlvu_dev.yaml"),
}


@pytest.mark.parametrize("name", REFERENCES)
def test_prompts_are_the_references_to_the_letter(name):
    task, function, file = REFERENCES[name]
    config = "object_shuffle" if name == "mvbench" else CATALOGUE[name].configs[0]
    with harness():
        module = rules(task)
        settings = settings_of(Path(inspect.getfile(module)).with_name(file))
        options = settings.get("lmms_eval_specific_kwargs", {}).get("default")
        asked = CATALOGUE[name].questions(table(name), config=config, videos=FakeVideos())
        for question, row in zip(asked, rows(name), strict=True):
            (text,) = (part.text for part in question.sample.parts if isinstance(part, Text))
            assert text == getattr(module, function)(row, options)


def test_prompts_about_pictures_differ_from_the_references_only_where_casas_do():
    """CASA's script asks ChartQA for a word *or phrase*, and does not capitalise TextVQA's questions."""
    own = {}
    for name in ("chartqa", "docvqa", "infovqa", "textvqa"):
        (question, *_) = CATALOGUE[name].questions(table(name))
        own[name] = question.sample.parts[-1].text
    with harness():
        default = {"pre_prompt": "", "post_prompt": "\nAnswer the question using a single word or phrase."}
        theirs = {
            name: getattr(rules(name), f"{name}_doc_to_text")(rows(name)[0], default)
            for name in ("chartqa", "docvqa", "infovqa", "textvqa")
        }
        file = Path(inspect.getfile(rules("chartqa"))).with_name("chartqa.yaml")
        asks = settings_of(file)["lmms_eval_specific_kwargs"]["default"]["post_prompt"]
    assert own.pop("textvqa").capitalize() == theirs.pop("textvqa").capitalize()
    assert own == theirs
    assert asks == "\nAnswer the question with a single word."


def test_mvbenchs_videos_lie_where_the_reference_looks_for_them():
    with harness():
        assert rules("mvbench").DATA_LIST == FOLDERS


def test_mlvus_headline_is_the_references_mean_over_tasks():
    metric = CATALOGUE["mlvu"].metric
    tasks = ("anomaly_reco", "count", "ego", "needle", "order", "plotQA", "topic_reasoning")
    truths = [Truth(answers=("A",), category=task) for n, task in enumerate(tasks) for _ in range(n + 2)]
    said = ["A" if n % 3 else "B" for n in range(len(truths))]
    results = [
        {"task_type": truth.category, "pred_answer": answer, "answer": "A"}
        for truth, answer in zip(truths, said, strict=True)
    ]
    with harness():
        expected = rules("mlvu").mlvu_aggregate_results_dev(results)
    assert metric.total(metric.scores(said, truths), truths) == pytest.approx(expected)


SRT = """1
00:00:00,500 --> 00:00:02,000
<font color="white" size=".72c">Hello there.</font>

2
00:00:02,000 --> 00:00:04,500
<font color="white" size=".72c">Two</font>
<font color="white" size=".72c">lines</font>

3
00:01:05,000 --> 00:01:06,000
<i>Late.</i>
"""


@pytest.mark.parametrize("srt", [SRT, SRT.replace("\n", "\r\n"), SRT.replace(",", ".")])
def test_subtitles_are_those_on_screen_at_a_frame_in_their_order(srt):
    assert subtitles_at(srt, [0.0]) == ""
    assert subtitles_at(srt, [0.0, 0.5, 1.0]) == "Hello there."
    assert subtitles_at(srt, [2.0, 1.5]) == "Hello there.\nTwo lines"
    assert subtitles_at(srt, [65.5]) == "Late."
    assert subtitles_at("", [1.0]) == subtitles_at("no subtitles", [1.0]) == ""


def test_the_subtitles_stand_before_the_question():
    videos = FakeVideos({"subtitle/fFjv93ACGo8.srt": SRT}, seconds=3)
    (question, *_) = CATALOGUE["videomme_subtitles"].questions(table("videomme"), videos=videos)
    prompt = question.sample.parts[-1].text
    assert prompt.startswith(
        "This video's subtitles are listed below: \nHello there.\nTwo lines\nSelect the best"
    )


def test_a_videos_frames_are_those_that_training_sees(tmp_path):
    (tmp_path / "videos").mkdir()
    data = counting_video(tmp_path / "videos" / "long.mp4", frames=48, fps=4)
    counting_video(tmp_path / "videos" / "short.webm.mp4", frames=16, fps=4)
    folder = VideoFolder(tmp_path)
    frames = folder.frames("videos/long.mp4")
    assert [frame.timestamp for frame in frames] == [n / 2 for n in range(24)]
    assert {frame.data for frame in frames} == {data}
    assert folder.frames("videos/long") == folder.frames("videos/long.MP4") == frames
    assert [frame.timestamp for frame in folder.frames("videos/short.webm.mp4")] == [n / 5 for n in range(20)]
    asked = CATALOGUE["perceptiontest"].questions(
        table("perceptiontest", [rows("perceptiontest")[0] | {"video_name": "long"}]), videos=folder
    )
    assert len(list(decode_images(next(asked).sample))) == 24


def test_a_video_of_pictures_is_sampled_twice_a_second(tmp_path):
    (tmp_path / "clip").mkdir()
    for number in range(45):
        (tmp_path / "clip" / f"{number:05}.png").write_bytes(png(number))
    frames = VideoFolder(tmp_path).pictures("clip", 3.0)
    assert [frame.data for frame in frames] == [png(int(n * 1.5)) for n in range(30)]
    assert [frame.media for frame in frames] == list(range(30))
    assert {frame.timestamp for frame in frames} == {None}


@pytest.mark.parametrize("name", ["gone.mp4", "../outside.mp4", "/etc/passwd"])
def test_a_video_that_is_not_there_is_an_error_with_a_remedy(tmp_path, name):
    with pytest.raises(DataError, match="archives"):
        VideoFolder(tmp_path).frames(name)
    with pytest.raises(DataError, match="archives"):
        VideoFolder(tmp_path).pictures(name, 3.0)


def test_a_missing_text_file_is_none(tmp_path):
    assert VideoFolder(tmp_path).text("a.srt") is None
    (tmp_path / "a.srt").write_text("x")
    assert VideoFolder(tmp_path).text("a.srt") == "x"
