"""Every benchmark: rows in the documented layout become the official prompts and truths."""

from __future__ import annotations

import pickle
import random

import numpy as np
import pyarrow as pa
import pytest

from casa_core.errors import ConfigError, DataError
from casa_core.media.decode import decode_images
from casa_core.types import Image, Text
from pipelines.evaluate.benchmarks.catalogue import CATALOGUE, benchmark_named
from pipelines.evaluate.benchmarks.layout.columns import Kind
from pipelines.evaluate.benchmarks.pictures import PICTURES
from pipelines.evaluate.benchmarks.pictures.gqa import GQA
from pipelines.evaluate.benchmarks.streams import STREAMS
from pipelines.evaluate.benchmarks.videos import VIDEOS
from pipelines.evaluate.benchmarks.videos.mvbench import MVBENCH
from pipelines.evaluate.metrics.choice import Choice
from pipelines.evaluate.metrics.intervals import wilson
from tests.support.evaluate.benchmark_tables import GQA_IMAGES, FakeVideos, png, rows, table

NAMES = list(CATALOGUE)


def config_of(name):
    return "object_shuffle" if name == "mvbench" else CATALOGUE[name].configs[0]


def questions(name, content=None):
    benchmark = CATALOGUE[name]
    pictures = benchmark.picture_lookup(GQA_IMAGES) if benchmark.lookup else None
    asked = benchmark.questions(
        table(name, content), config=config_of(name), videos=FakeVideos(), pictures=pictures
    )
    return list(asked)


def prompt_of(question):
    (text,) = (part.text for part in question.sample.parts if isinstance(part, Text))
    return text


SHORT = "Answer the question using a single word or phrase."
LETTER = "Answer with the option's letter from the given choices directly."
SELECT = (
    "Select the best answer to the following multiple-choice question based on the video and the subtitles. "
    "Respond with only the letter (A, B, C, or D) of the correct option.\nWhat appears first?\nA. Apples.\n"
    "B. Candles.\nC. Berries.\nD. The three kinds come together.\n"
)
PROMPTS = {
    "chartqa": f"How many bars?\n{SHORT}",
    "docvqa": f"What is the name?\n{SHORT}",
    "infovqa": f"Which platform is used most?\n{SHORT}",
    "ocrbench": "what is written in the image?\nPlease directly answer the question.",
    "textvqa": f"what brand is it?\n{SHORT}",
    "realworldqa": (
        "Where is the dog?\nA. On the left\nB. On the right\nC. Behind the car\n"
        f"Please answer directly with only the letter of the correct option and nothing else.\n{SHORT}"
    ),
    "ai2d": (
        "Question: What does A show?\nChoices:\nA. larva\nB. egg\nC. pupa\nD. adult\nAnswer with the letter."
    ),
    "gqa": f"Is it overcast?\n{SHORT}",
    "mme": f"Is it 0? Please answer yes or no.\n{SHORT}",
    "videomme": f"{SELECT}\n{LETTER}",
    "videomme_subtitles": (
        f"This video's subtitles are listed below: \nNo subtitles available\n{SELECT}The best answer is:"
    ),
    "nextqa": (
        "how do the two man play\nA. roll it\nB. tap their feet\nC. strum the string\n"
        "D. hit with sticks\nE. pat"
    ),
    "perceptiontest": (f"Is the camera moving?\nA. Yes\nB. No\nC. I don't know\n{LETTER}"),
    "mvbench": (
        "Question:What is the action performed?\nOption:\n(A) Not sure\n(B) Scattering\n(C) Piling\n"
        "Only give the best option.\n"
    ),
    "mlvu": ("What colour is it?\n(A) red\n(B) green\n(C) blue\nOnly give the best option.\nBest option: ("),
    "livesports": (
        "You are an expert video commentator providing real-time, insightful, and engaging commentary on "
        'visual content.\nThis is a video titled "Cup final".\nHere is previous commentary of the video:\n\n'
        "a corner\n\nPlease continue to comment the video."
    ),
    "streamingbench": (
        "You are an advanced video question-answering AI assistant. You have been provided with some frames "
        "from the video and a multiple-choice question related to the video. Your task is to carefully "
        "analyze the video and provide the best answer to question, choosing from the four options provided. "
        "Respond with only the letter (A, B, C, or D) of the correct option.\n\n"
        "Question: What is held up now?\n\nOptions:\nA. a cup\nB. a ball\nC. a flag\nD. nothing\n\n"
        "The best option is:"
    ),
    "ovobench": (
        "Question: Where was the cup?\nOptions:\nA. on the table; B. in the sink;\nRespond only with the "
        "letter corresponding to your chosen option (e.g., A, B, C).\nDo not include any additional text or "
        "explanation in your response."
    ),
}


def test_there_are_the_papers_nine_benchmarks_on_pictures_and_six_on_videos():
    assert [b.title for b in PICTURES] == [
        "ChartQA", "DocVQA", "InfoVQA", "OCRBench", "TextVQA", "RealWorldQA", "AI2D", "GQA", "MME",
    ]  # fmt: skip
    assert [b.title for b in VIDEOS] == [
        "VideoMME w/o sub", "VideoMME w/ sub", "NExT-QA", "PerceptionTest", "MVBench", "MLVU",
    ]  # fmt: skip
    assert [b.title for b in STREAMS] == ["LiveSports-3K-CC", "StreamingBench, real-time", "OVO-Bench"]
    assert PROMPTS.keys() == CATALOGUE.keys()


@pytest.mark.parametrize("name", NAMES)
def test_the_prompt_is_the_protocols_to_the_letter(name):
    assert prompt_of(questions(name)[0]) == PROMPTS[name]


def test_an_ai2d_question_gets_a_question_mark_where_it_has_no_end():
    prompts = [prompt_of(question).split("\n")[0] for question in questions("ai2d")]
    assert prompts == [
        "Question: What does A show?",
        "Question: Which one is it?",
        "Question: Name the part labelled T.",
    ]


@pytest.mark.parametrize("name", NAMES)
def test_every_row_is_one_question_with_what_is_shown_before_it(name):
    asked = questions(name)
    assert len(asked) == len(rows(name))
    assert len({question.id for question in asked}) == len(asked)
    for question in asked:
        parts = question.sample.parts
        *shown, text = parts if not CATALOGUE[name].live else parts[::-1]
        role = "assistant" if CATALOGUE[name].live else "user"
        assert all(isinstance(part, Image) and part.role == role for part in shown)
        assert isinstance(text, Text)
        assert not text.trained
        assert (question.sample.source, question.sample.sample_id) == (name, question.id)
        frames = 41 if CATALOGUE[name].live else 60
        assert len(shown) == (1 if CATALOGUE[name].modality == "picture" else frames)


@pytest.mark.parametrize("name", [benchmark.name for benchmark in PICTURES if benchmark is not GQA])
def test_the_pictures_bytes_are_the_rows_own_and_decode(name):
    for number, question in enumerate(questions(name)):
        assert question.sample.parts[0].data == png(number)
        (pixels,) = decode_images(question.sample)
        assert np.asarray(pixels).shape == (16, 24, 3)


def test_gqas_pictures_are_joined_by_id():
    assert [question.sample.parts[0].data for question in questions("gqa")] == [png(2), png(2), png(1)]
    assert [question.truth.group for question in questions("gqa")] == ["n161313", "n161313", "n235859"]


def oracle(question):
    return question.truth.answers[0]


@pytest.mark.parametrize("name", NAMES)
def test_an_oracle_scores_the_maximum(name):
    asked, metric = questions(name), CATALOGUE[name].metric
    truths = [question.truth for question in asked]
    best = {"mme": 2800, "ocrbench": 1000}.get(name, 100)
    assert metric.total(metric.scores(map(oracle, asked), truths), truths) == pytest.approx(best)
    for beside in CATALOGUE[name].beside:
        assert beside.total(beside.scores(map(oracle, asked), truths), truths) == pytest.approx(best)


CONSTANT = {
    "chartqa": ("14", 100 / 3),
    "docvqa": ("0.28", 100 / 3),
    "infovqa": ("26%", 50),
    "ocrbench": ("centre", 900),
    "textvqa": ("nokia", 50),
    "realworldqa": ("(B)", 50),
    "ai2d": ("The answer is C.", 100 / 3),
    "gqa": ("No", 100 / 3),
    "mme": ("No", 700),
    "videomme": ("A", 100 / 3),
    "videomme_subtitles": ("(B)", 100 / 3),
    "nextqa": ("E", 20),
    "perceptiontest": ("A", 100 / 3),
    "mvbench": ("(B) Scattering", 50),
    "mlvu": ("B)", 100 / 3),
    "livesports": ("the keeper saves", 50),
    "streamingbench": ("B", 100 / 3),
    "ovobench": ("No", 12.5),  # one question of two of one task of four
}


@pytest.mark.parametrize("name", NAMES)
def test_a_constant_answer_scores_what_arithmetic_says(name):
    metric = CATALOGUE[name].metric
    truths = [question.truth for question in questions(name)]
    answer, expected = CONSTANT[name]
    scores = metric.scores([answer] * len(truths), truths)
    assert metric.total(scores, truths) == pytest.approx(expected)


@pytest.mark.parametrize("name", [n for n in NAMES if isinstance(CATALOGUE[n].metric, Choice)])
def test_random_letters_score_chance_within_their_interval(name):
    rng = random.Random(name)
    truths = [question.truth for question in questions(name)] * 800
    letters = "ABCDE"[: len(truths[0].options)]
    scores = CATALOGUE[name].metric.scores([rng.choice(letters) for _ in truths], truths)
    estimate = wilson(int(scores.sum()), len(scores))
    assert estimate.low - 0.01 < 1 / len(letters) < estimate.high + 0.01


@pytest.mark.parametrize("name", NAMES)
def test_a_missing_column_is_named_with_what_there_is(name):
    benchmark = CATALOGUE[name]
    for column in benchmark.columns:
        content = table(name).drop_columns([column.name])
        with pytest.raises(DataError) as refused:
            next(benchmark.questions(content, videos=FakeVideos()))
        assert f"not in the layout of {name}: there is no column {column.name}." in refused.value.what
        assert content.schema.names[0] in refused.value.why


@pytest.mark.parametrize("name", NAMES)
def test_a_column_of_the_wrong_type_is_named_before_any_row_is_read(name):
    benchmark = CATALOGUE[name]
    for column in benchmark.columns:
        at = table(name).schema.names.index(column.name)
        wrong = pa.nulls(len(table(name)), pa.bool_())
        with pytest.raises(DataError, match=f"{column.name} is bool instead of {column.kind.value[:6]}"):
            benchmark.check(table(name).set_column(at, column.name, wrong).schema)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("empty", [False, True], ids=["null", "empty"])
def test_a_value_that_is_null_or_empty_is_refused_with_its_row_and_column(name, empty):
    benchmark = CATALOGUE[name]
    blank = {
        Kind.TEXT: " ",
        Kind.KEY: "",
        Kind.INDEX: "",
        Kind.TEXTS: [],
        Kind.NUMBER: "",
        Kind.PICTURE: {"bytes": b"", "path": None},
    }
    for column in benchmark.columns:
        content = rows(name)
        if empty and isinstance(content[1][column.name], int | float):
            continue
        content[1] = content[1] | {column.name: blank[column.kind] if empty else None}
        with pytest.raises(DataError) as refused:
            questions(name, content)
        assert refused.value.what.startswith(f"Row 1 of {name}")
        assert refused.value.why.startswith(f"Its column {column.name} ")
        assert refused.value.remedy


@pytest.mark.parametrize("name", NAMES)
def test_an_empty_table_is_an_error_and_no_zero(name):
    with pytest.raises(DataError, match=f"the table of {name} has no rows"):
        questions(name, [])


@pytest.mark.parametrize(
    ("name", "change", "problem"),
    [
        ("ai2d", {"answer": "4"}, "column answer holds '4', which is none of the 4 options"),
        ("ai2d", {"answer": "-1"}, "column answer holds '-1'"),
        ("ai2d", {"options": ["a", ""]}, "column options has an empty text"),
        ("mme", {"answer": "maybe"}, "column answer holds 'maybe' instead of Yes or No"),
        ("mme", {"category": "colour"}, "column category holds 'colour'"),
        ("ocrbench", {"question_type": "Reading"}, "column question_type holds 'Reading'"),
        ("textvqa", {"answers": ["a"] * 9}, "column answers holds 9 answers instead of 10"),
        ("textvqa", {"answers": [""] * 10}, "column answers holds empty texts only"),
        ("docvqa", {"answers": ["a", None]}, "column answers has a null among its texts"),
        ("videomme", {"answer": "E"}, "column answer holds 'E' instead of a letter from A to D"),
        ("mvbench", {"answer": "Running"}, "column answer holds 'Running', which is not one of the options"),
        ("mlvu", {"answer": "D"}, "column answer holds 'D', which is not one of the options"),
        ("livesports", {"begin": "soon"}, "column begin holds 'soon' instead of a number of at least 0"),
        ("livesports", {"end": "100"}, "column end holds 100, which is not after 125"),
        ("streamingbench", {"options": "red, blue"}, "column options holds 'red, blue' instead of a list"),
        ("streamingbench", {"options": "['red', '']"}, "column options has an empty text"),
        ("streamingbench", {"options": "['red', 'blue']"}, "there are 2 options instead of 4"),
        ("streamingbench", {"time_stamp": "now"}, "column time_stamp holds 'now' instead of a time"),
        ("streamingbench", {"question_id": "x"}, "column question_id holds 'x', which names no video"),
        (
            "ovobench",
            {"task": "EPM", "options": ["a"], "answer": "1"},
            "column answer holds '1', which is none",
        ),
        ("ovobench", {"realtime": float("nan")}, "column realtime holds nan"),
        ("nextqa", {"answer": 5}, "column answer holds '5', which is none of the 5 options"),
        (
            "chartqa",
            {"image": {"bytes": None, "path": "a/b.png"}},
            "names the picture 'a/b.png' without its bytes",
        ),
        (
            "gqa",
            {"imageId": "n9"},
            "column imageId names the picture 'n9', which testdev_balanced_images lacks",
        ),
    ],
)
def test_a_value_that_cannot_be_is_refused_in_words_of_the_benchmark(name, change, problem):
    content = rows(name)
    content[1] = content[1] | change
    with pytest.raises(DataError) as refused:
        questions(name, content)
    assert problem in refused.value.why
    assert (
        refused.value.what
        == f"Row 1 of {name}{' (object_shuffle)' if name == 'mvbench' else ''} cannot be used."
    )


def test_rows_that_cannot_be_used_may_be_listed_and_the_others_keep_their_ids():
    content = rows("ai2d")
    content[1] = content[1] | {"answer": "9"}
    refused = []
    asked = CATALOGUE["ai2d"].questions(
        table("ai2d", content), first_row=10, on_error=lambda row, error: refused.append((row, error.what))
    )
    assert [question.id for question in asked] == ["10", "12"]
    assert refused == [(11, "Row 11 of ai2d cannot be used.")]


def test_a_picture_that_two_rows_of_the_lookup_hold_is_refused():
    with pytest.raises(
        DataError, match=r"Row 2 of gqa \(testdev_balanced_images\)(.|\n)*as an earlier row does"
    ):
        GQA.picture_lookup(pa.concat_tables([GQA_IMAGES, GQA_IMAGES]))


def test_pictures_may_lie_there_as_plain_bytes_and_texts_as_large_ones():
    content = table("chartqa")
    plain = pa.array([row["bytes"] for row in content["image"].to_pylist()], pa.large_binary())
    content = content.set_column(3, "image", plain)
    content = content.set_column(1, "question", content["question"].cast(pa.large_string()))
    asked = list(CATALOGUE["chartqa"].questions(content))
    assert [question.sample for question in asked] == [question.sample for question in questions("chartqa")]


def test_ids_do_not_depend_on_where_a_table_is_cut():
    content = table("mme")
    cut = [*CATALOGUE["mme"].questions(content[:7]), *CATALOGUE["mme"].questions(content[7:], first_row=7)]
    assert cut == questions("mme")


def test_mvbenchs_questions_carry_their_task_and_find_its_videos():
    (question, _) = MVBENCH.questions(table("mvbench"), config="scene_transition", videos=FakeVideos())
    assert (question.id, question.truth.category) == ("scene_transition/0", "scene_transition")
    assert question.sample.parts[0].data == b"scene_qa/video/166583.webm"
    (frames, _) = MVBENCH.questions(table("mvbench"), config="episodic_reasoning", videos=FakeVideos())
    assert [part.data for part in frames.sample.parts[:-1]] == [
        f"tvqa/video_fps3_hq_segment/166583.webm/{n}".encode() for n in range(3)
    ]
    assert len(MVBENCH.configs) == 20


def test_categories_and_groups_are_the_benchmarks_own():
    assert [q.truth.category for q in questions("chartqa")] == ["human", "augmented", "augmented"]
    assert [q.truth.category for q in questions("realworldqa")] == ["choice", "open"]
    assert questions("realworldqa")[0].truth.options == ("On the left", "On the right", "Behind the car")
    assert {q.truth.group for q in questions("videomme")} == {"fFjv93ACGo8"}
    assert [q.id for q in questions("videomme")] == ["001-1", "001-2", "001-3"]
    assert questions("videomme")[0].truth.options[0] == "Apples."
    assert [q.truth.group for q in questions("docvqa")] == ["1", "1", "7"]


@pytest.mark.parametrize("name", NAMES)
def test_a_benchmark_travels_between_processes(name):
    assert pickle.loads(pickle.dumps(CATALOGUE[name])).name == name


def test_files_lie_in_the_folder_of_their_configuration():
    assert CATALOGUE["chartqa"].patterns("default") == ("data/test-*.parquet",)
    assert CATALOGUE["docvqa"].patterns("DocVQA") == ("DocVQA/validation-*.parquet",)
    assert CATALOGUE["mvbench"].patterns("action_count") == ("json/action_count.json",)


def test_an_unknown_benchmark_is_refused_with_the_closest_name():
    with pytest.raises(ConfigError, match=r"no benchmark 'chart_qa'(.|\n)*mean `chartqa`"):
        benchmark_named("chart_qa")


def test_only_what_was_seen_before_the_question_is_shown():
    for name, at, first in (("streamingbench", 90.0, 30.0), ("ovobench", 12.0, 0.0)):
        time = {"time_stamp": "00:01:30"} if name == "streamingbench" else {"realtime": at}
        [asked] = questions(name, [rows(name)[0] | time])
        shown = [part.timestamp for part in asked.sample.parts if isinstance(part, Image)]
        assert (shown[0], len(shown)) == (first, 2 * (at - first))
        assert max(shown) < at


def test_a_forward_tasks_annotation_is_a_question_for_each_time():
    asked = questions("ovobench")
    assert [one.id for one in asked] == ["1", "2_0", "2_1", "3_0", "3_1", "4_0"]
    assert [one.truth.answers[0] for one in asked] == ["B", "0", "2", "No", "Yes", "Yes"]
    assert "How many times did they clap?" in prompt_of(asked[1])
    assert "\ncut the bread\n" in prompt_of(asked[3])
    assert "\nWho wins?\n" in prompt_of(asked[5])
    assert asked[1].sample.parts[0].data == b"src_videos/perception_test/b.mp4"


def test_a_commentator_is_told_what_is_known_and_nothing_of_what_will_be_said():
    for one, row in zip(questions("livesports"), rows("livesports"), strict=True):
        assert row["event_asr_text"] not in prompt_of(one)
    assert "previous commentary" not in prompt_of(questions("livesports")[1])
    assert [one.id for one in questions("livesports")] == ["4hGQ_0", "4hGQ_1"]
    [*_, last] = questions("livesports")[0].sample.parts
    assert (last.timestamp, last.data) == (145.0, b"videos/4hGQ.mp4")
