"""lmms-eval drives the engine through the plugin: the answers are those of CASA's own evaluation."""

from __future__ import annotations

import io
import tomllib
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
from PIL import Image as Pillow

from casa_core.engine.engine import Engine
from casa_core.engine.requests import GenerationRequest, SamplingParams
from casa_core.errors import ConfigError, DataError, StoreError
from casa_core.types import Sample, Text
from pipelines.evaluate.benchmarks.layout.benchmark import Question
from pipelines.evaluate.benchmarks.videos.files import VideoFolder
from pipelines.evaluate.kept.answers import Answer, AnswerStore
from pipelines.evaluate.metrics.base import Truth
from pipelines.evaluate.model_engine import Model
from pipelines.evaluate.runner import answer_all
from tests.support.data.media import counting_video
from tests.support.evaluate.lmms_eval_model import documents, instances, plugin, user
from tests.support.evaluate.questions import Drawn, expected
from tests.support.paths import ROOT

SOURCE = Drawn(count=23)
SETTINGS = {"max_new_tokens": 6, "do_sample": False}


@pytest.fixture(scope="module")
def module() -> Iterator[Any]:
    with plugin() as found:
        yield found


@pytest.fixture(scope="module")
def alone(tiny_checkpoint: Path) -> list[str]:
    """What each question is answered by the engine in lockstep, one at a time."""
    return list(expected(tiny_checkpoint, SOURCE, SETTINGS["max_new_tokens"]).values())


def messages(document: tuple[bytes, str]) -> list[Any]:
    """As a task whose data set decodes its pictures."""
    shown, text = document
    return [user({"type": "image", "url": Pillow.open(io.BytesIO(shown))}, text)]


def as_bytes(document: tuple[bytes, str]) -> list[Any]:
    return [user({"type": "image", "url": document[0]}, document[1])]


def test_the_entry_point_of_the_package_registers_the_model(module: Any):
    from lmms_eval.models.registry_v2 import ModelRegistryV2

    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]
    [(name, value)] = declared["lmms_eval.models"].items()
    registry = ModelRegistryV2()
    registry.register_manifest(EntryPoint(name, value, "lmms_eval.models").load()())
    assert registry.get_model_class("casa") is module.Casa, "lmms-eval checks it as a chat model here"


@pytest.mark.parametrize("batch_size", [1, "16", "auto"])
def test_each_question_is_answered_as_it_is_alone_and_in_the_order_asked(
    module: Any, tiny_checkpoint: Path, alone: list[str], batch_size: Any
):
    made = module.Casa.create_from_arg_string(f"pretrained={tiny_checkpoint}", {"batch_size": batch_size})
    found = made.generate_until(instances(made, documents(SOURCE), SETTINGS, messages))
    assert [one.text for one in found] == alone
    assert len(set(alone)) > 5
    engine = Engine.from_pretrained(tiny_checkpoint)
    questions = [one for one in SOURCE.read(0, 3) if isinstance(one, Question)]
    sampling = SamplingParams(max_new_tokens=SETTINGS["max_new_tokens"])
    results = engine.generate([GenerationRequest(sample=one.sample, sampling=sampling) for one in questions])
    counts = [(one.token_counts.input_tokens, one.token_counts.output_tokens) for one in found[:3]]
    assert counts == [(one.prompt_tokens, one.completion_tokens) for one in results]


def test_a_question_is_read_when_its_turn_comes(
    module: Any, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
):
    made = module.Casa(str(tiny_checkpoint), batch_size=2)
    read, answered, ahead = 0, 0, []
    answer = made._engine.answer

    def reading(document: tuple[bytes, str]) -> list[Any]:
        nonlocal read
        read += 1
        ahead.append(read - answered)
        return messages(document)

    async def counted(*given: Any) -> Answer:
        nonlocal answered
        try:
            return await answer(*given)
        finally:
            answered += 1

    monkeypatch.setattr(made._engine, "answer", counted)
    assert len(made.generate_until(instances(made, documents(Drawn(count=40)), SETTINGS, reading))) == 40
    assert read == answered == 40
    assert max(ahead) <= 2 * 2 + 1, "so many are in memory, however long the task is"


def test_settings_may_differ_from_question_to_question_and_are_checked_before_any_is_asked(
    module: Any, tiny_checkpoint: Path, alone: list[str]
):
    made = module.Casa(str(tiny_checkpoint), batch_size=4)
    asked = instances(made, documents(SOURCE), SETTINGS, messages)
    asked[1].args[2]["max_new_tokens"] = 1
    found = made.generate_until(asked)
    assert found[1].token_counts.output_tokens == 1
    assert [one.text for at, one in enumerate(found) if at != 1] == [*alone[:1], *alone[2:]]
    asked[22].args[2]["num_beams"] = 5
    with pytest.raises(ConfigError, match="num_beams"):
        made.generate_until(asked)


def test_a_refused_question_says_so_in_its_place_and_the_others_are_answered(
    module: Any, tiny_checkpoint: Path, alone: list[str], caplog: pytest.LogCaptureFixture
):
    made = module.Casa(str(tiny_checkpoint), batch_size=4)
    shown = documents(Drawn(count=23, broken=4))
    found = [one.text for one in made.generate_until(instances(made, shown, SETTINGS, as_bytes))]
    for at, text in enumerate(found):
        if at % 4 == 0:
            assert text.startswith(f"{module.REFUSED} ")
            assert "image" in text.lower()
        else:
            assert text == alone[at]
    assert "6 of 23 questions were refused" in caplog.text


def test_where_every_question_is_refused_the_first_refusal_ends_the_run(module: Any, tiny_checkpoint: Path):
    made = module.Casa(str(tiny_checkpoint))
    heard = [[user({"type": "audio", "url": "speech.wav"}, "?")]] * 3
    with pytest.raises(DataError, match="task/test/0 holds a part of type audio"):
        made.generate_until(instances(made, heard, SETTINGS))


class Filmed:
    """One question about a video, for the runner."""

    max_new_tokens = 6

    def __init__(self, question: Question) -> None:
        self._question = question

    def __len__(self) -> int:
        return 1

    def read(self, start: int, stop: int) -> Iterator[Question]:
        yield self._question


@pytest.mark.parametrize("mode", ["offline", "streaming"])
def test_a_video_is_answered_as_the_runner_answers_it(
    module: Any, tiny_checkpoint: Path, tmp_path: Path, mode: Any
):
    counting_video(tmp_path / "v.mp4", frames=20)
    parts = (*VideoFolder(tmp_path).frames("v.mp4"), Text(role="user", text="what colour is it"))
    sample = Sample(source="s", sample_id="q", parts=parts)
    question = Question(id="q", sample=sample, truth=Truth(answers=("red",)))
    model = Model(folder=tiny_checkpoint, digest="", fingerprint="m", mode=mode)
    [row] = answer_all(model, {"filmed": Filmed(question)}, AnswerStore(tmp_path / "store", "m"))
    assert not row["error"]
    made = module.Casa(str(tiny_checkpoint), mode=mode)
    asked = [user({"type": "video", "url": str(tmp_path / "v.mp4")}, "what colour is it")]
    [found] = made.generate_until(instances(made, [asked], SETTINGS))
    assert found.text == row["answer"]
    assert found.token_counts.output_tokens == row["completion_tokens"]


def test_after_it_was_cleaned_its_engine_is_gone_and_another_answers_the_same(
    module: Any, tiny_checkpoint: Path, alone: list[str]
):
    made = module.Casa(str(tiny_checkpoint), batch_size=4)
    client = made._engine.load()
    made.clean()
    with pytest.raises(RuntimeError, match="stopped"):
        client.check_alive()
    found = made.generate_until(instances(made, documents(SOURCE), SETTINGS, messages))
    assert [one.text for one in found] == alone


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"pretraind": "x"}, "`pretraind` does not exist"),
        ({}, "No checkpoint is named"),
        ({"pretrained": "x", "dtype": "fp8"}, "`dtype` is 'fp8'"),
        ({"pretrained": "x", "quantize": "int4"}, "`quantize` is 'int4'"),
        ({"pretrained": "x", "mode": "live"}, "`mode` is 'live'"),
        ({"pretrained": "x", "max_side": 0}, "`max_side` is 0"),
        ({"pretrained": "x", "max_video_tokens": "many"}, "`max_video_tokens` is 'many'"),
        ({"pretrained": "x", "batch_size": "0"}, "batch size is '0'"),
    ],
)
def test_a_wrong_argument_is_named_with_a_remedy(module: Any, arguments: dict[str, Any], named: str):
    with pytest.raises(ConfigError, match=named) as refused:
        module.Casa(**arguments)
    assert refused.value.remedy


def test_a_folder_that_is_no_checkpoint_is_named(module: Any, tmp_path: Path):
    with pytest.raises(StoreError, match="nowhere is not a checkpoint") as refused:
        module.Casa(str(tmp_path / "nowhere"))
    assert refused.value.remedy


@pytest.mark.parametrize("kind", ["loglikelihood", "generate_until_multi_round"])
def test_a_kind_of_task_that_cannot_be_run_is_refused_by_name(module: Any, tiny_checkpoint: Path, kind: str):
    made = module.Casa(str(tiny_checkpoint))
    with pytest.raises(ConfigError, match=f"output type {kind}") as refused:
        getattr(made, kind)([])
    assert refused.value.remedy
