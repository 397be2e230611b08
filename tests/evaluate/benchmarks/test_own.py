"""A benchmark of one's own: a parquet file and a few lines of YAML."""

from __future__ import annotations

import pickle
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from casa_core.errors import ConfigError, DataError
from pipelines.evaluate.benchmarks.own import own_benchmark
from pipelines.evaluate.metrics.by_name import METRICS
from tests.support.evaluate.benchmark_tables import PICTURE, picture

SIGNS = """
name: shop_signs
data: signs/questions-*.parquet
picture: photo
answers: answer
prompt: "{question} ({language})\\nAnswer the question using a single word or phrase."
metric: anls
"""
CHOICE = """
name: birds
data: birds.parquet
id: key
answers: right
answers_as: letter
options: species
prompt: "Which bird is it?\\n{options}\\nAnswer {{like this}}: A"
category: habitat
metric: choice
"""


def write(folder: Path, text: str, name: str = "own.yaml") -> Path:
    file = folder / name
    file.write_text(text, encoding="utf-8")
    return file


def signs() -> pa.Table:
    return pa.table(
        {
            "photo": pa.array([picture(0), picture(1)], PICTURE),
            "question": ["What is sold?", "Which street?"],
            "language": ["French", "German"],
            "answer": ["café", "Straße"],
        }
    )


def birds(right: list) -> pa.Table:
    return pa.table(
        {
            "image": pa.array([picture(n) for n in range(len(right))], PICTURE),
            "key": [f"bird-{n}" for n in range(len(right))],
            "species": [["robin", "tit", "crow"]] * len(right),
            "right": right,
            "habitat": ["wood", "town"][: len(right)],
        }
    )


def test_ten_lines_of_yaml_are_a_benchmark(tmp_path):
    assert len(SIGNS.strip().splitlines()) <= 10
    own = own_benchmark(write(tmp_path, SIGNS))
    (tmp_path / "signs").mkdir()
    pq.write_table(signs(), tmp_path / "signs" / "questions-0.parquet")
    assert (own.name, own.title, own.metric, own.max_new_tokens) == (
        "shop_signs",
        "shop_signs",
        METRICS["anls"],
        128,
    )
    (file,) = Path(own.repository).glob(*own.patterns("default"))
    first, second = own.questions(pq.read_table(file))
    assert first.sample.parts[1].text == (
        "What is sold? (French)\nAnswer the question using a single word or phrase."
    )
    assert first.sample.parts[0].data == picture(0)["bytes"]
    assert (first.id, second.id, second.truth.answers) == ("0", "1", ("Straße",))
    truths = [first.truth, second.truth]
    assert own.metric.total(own.metric.scores(["cafe\u0301", "Strasse"], truths), truths) == pytest.approx(
        100 * (1 + 1 - 2 / 7) / 2
    )


@pytest.mark.parametrize(
    ("answers_as", "right"), [("letter", ["B", "c"]), ("index", [1, 2]), ("text", ["tit", "crow"])]
)
def test_a_multiple_choices_truth_may_be_letter_index_or_text(tmp_path, answers_as, right):
    own = own_benchmark(write(tmp_path, CHOICE.replace("letter", answers_as)))
    asked = list(own.questions(birds(right)))
    assert [question.id for question in asked] == ["bird-0", "bird-1"]
    assert [question.truth.answers for question in asked] == [("B",), ("C",)]
    assert asked[0].truth.options == ("robin", "tit", "crow")
    assert asked[0].truth.category == "wood"
    assert asked[0].sample.parts[1].text == (
        "Which bird is it?\nA. robin\nB. tit\nC. crow\nAnswer {like this}: A"
    )
    assert own.metric.scores(["It is a tit.", "(C)"], [q.truth for q in asked]).tolist() == [1, 1]


def test_several_right_answers_are_a_list(tmp_path):
    own = own_benchmark(write(tmp_path, SIGNS + "answers_as: texts\n"))
    content = signs().set_column(3, "answer", pa.array([["café", "coffee"], ["Straße"]]))
    assert [q.truth.answers for q in own.questions(content)] == [("café", "coffee"), ("Straße",)]


@pytest.mark.parametrize(
    "data", ["/data/q.parquet", "s3://bucket/folder/q.parquet", "hf://datasets/a/b@1f/q.parquet"]
)
def test_data_may_be_an_absolute_path_or_a_uri(tmp_path, data):
    own = own_benchmark(write(tmp_path, SIGNS.replace("signs/questions-*.parquet", data)))
    assert f"{own.repository}/{own.patterns('default')[0]}" == data


def test_it_travels_between_processes(tmp_path):
    own = own_benchmark(write(tmp_path, SIGNS))
    assert list(pickle.loads(pickle.dumps(own)).questions(signs())) == list(own.questions(signs()))


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (("answers: answer\n", ""), "The setting answers is missing (Column of the right answer"),
        (("metric:", "metrik:"), "There is no setting metrik; did you mean metric?"),
        (("name: shop_signs", "name: Shop Signs"), "The setting name cannot be 'Shop Signs'"),
        (("metric: anls", "metric: anls\nmax_new_tokens: '9'"), "The setting max_new_tokens cannot be '9'"),
        (("metric: anls", "metric: anls\nanswers_as: word"), "answers_as cannot be 'word'"),
        (
            ("metric: anls", "metric: anls\noptions: language"),
            "both {options} in its prompt and a column of options",
        ),
        (("metric: anls", "metric: choice"), "The metric choice needs a column of options"),
        (("metric: anls", "metric: mme"), "mme needs a column of categories, and one of groups"),
        (
            ("metric: anls", "metric: anls\nanswers_as: index"),
            "Answers given as index need a column of options",
        ),
        (("{question} ({language})", "Read it."), "The prompt names no column"),
        (("{language}", "{0}"), "{0} is no plain name of a column"),
        (("{language}", "{language!r}"), "{language} is no plain name of a column"),
        (("{language}", "{language"), "The prompt cannot be filled in"),
        (("{language}", "{question.upper}"), "{question.upper} is no plain name"),
    ],
)
def test_a_setting_that_cannot_work_is_named(tmp_path, change, problem):
    with pytest.raises(ConfigError) as refused:
        own_benchmark(write(tmp_path, SIGNS.replace(*change)))
    assert problem in str(refused.value)
    assert "own.yaml" in refused.value.what
    assert refused.value.remedy


def test_all_wrong_settings_are_named_at_once(tmp_path):
    with pytest.raises(ConfigError) as refused:
        own_benchmark(write(tmp_path, SIGNS.replace("name: shop_signs", "nam: x").replace("data:", "dato:")))
    assert "4 settings" in refused.value.what
    for name in ("name is missing", "data is missing", "setting nam;", "setting dato;"):
        assert name in refused.value.why


def test_an_unknown_metric_is_refused_with_the_closest(tmp_path):
    with pytest.raises(ConfigError, match="mean `anls`"):
        own_benchmark(write(tmp_path, SIGNS.replace("metric: anls", "metric: anlz")))


@pytest.mark.parametrize("text", ["- a\n", "", "a: [", "\x00"])
def test_what_is_no_yaml_of_settings_is_refused(tmp_path, text):
    with pytest.raises(ConfigError, match=r"own\.yaml"):
        own_benchmark(write(tmp_path, text))


def test_a_file_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"gone\.yaml cannot be read"):
        own_benchmark(tmp_path / "gone.yaml")


def test_its_table_is_checked_as_any_benchmarks(tmp_path):
    own = own_benchmark(write(tmp_path, SIGNS))
    with pytest.raises(DataError, match="layout of shop_signs: there is no column language, photo"):
        own.check(pa.schema([("question", pa.string()), ("answer", pa.string())]))
    wrong = own_benchmark(write(tmp_path, CHOICE))
    with pytest.raises(DataError, match="column right holds 'D', which is no letter of the 3 options"):
        list(wrong.questions(birds(["A", "D"])))
