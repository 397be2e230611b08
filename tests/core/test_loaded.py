"""``import casa``: a checkpoint answers and captions in a few lines, as the engine does, and without Ray."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as PILImage

import casa
from casa_core.engine.engine import Engine
from casa_core.engine.requests import GenerationRequest, SamplingParams
from casa_core.errors import ConfigError, DataError, MediaError, StoreError
from casa_core.media.video import VideoFrames
from casa_core.types import Image, Sample, Text
from tests.support.core.engine import picture, png
from tests.support.data.media import counting_video

QUESTION = "what colour is shape 3"


@pytest.fixture(scope="module")
def model(tiny_checkpoint: Path) -> casa.LoadedModel:
    return casa.load(tiny_checkpoint, device="cpu")


@pytest.fixture(scope="module")
def engine(tiny_checkpoint: Path) -> Engine:
    return Engine.from_pretrained(tiny_checkpoint, device="cpu")


def asked(engine: Engine, *pictures: bytes) -> str:
    """The engine's own answer to the question after some pictures."""
    parts = (*(Image(data=data) for data in pictures), Text(role="user", text=QUESTION))
    sample = Sample(source="test", sample_id="0", parts=parts)
    sampling = SamplingParams(max_new_tokens=12)
    return engine.generate([GenerationRequest(sample=sample, sampling=sampling)])[0].text


def test_an_answer_is_the_engines_whatever_the_picture_is_given_as(model, engine, tmp_path):
    expected = asked(engine, png(1))
    assert expected != asked(engine, png(2)) != asked(engine)
    file = tmp_path / "one.png"
    file.write_bytes(png(1))
    for given in (png(1), file, str(file), picture(1), PILImage.fromarray(picture(1)), [png(1)]):
        assert model.ask(given, QUESTION, max_new_tokens=12) == expected


def test_a_train_stages_own_folder_is_taken_for_the_model_in_it(tiny_checkpoint, engine, tmp_path):
    (tmp_path / "manifest.json").write_text("{}")  # an artifact's
    (tmp_path / "model").symlink_to(tiny_checkpoint)
    answer = casa.load(tmp_path, device="cpu").ask(png(1), QUESTION, max_new_tokens=12)
    assert answer == asked(engine, png(1))


def test_several_pictures_are_shown_in_their_order_and_none_is_a_plain_question(model, engine):
    assert model.ask([png(1), png(2)], QUESTION, max_new_tokens=12) == asked(engine, png(1), png(2))
    assert model.ask(None, QUESTION, max_new_tokens=12) == asked(engine)


def test_a_video_is_captioned_frame_by_frame_as_a_live_session_sees_it(model, engine, tmp_path):
    clip = tmp_path / "clip.mp4"
    counting_video(clip, frames=30)
    events = list(model.caption(clip, "describe it live"))
    times = [0.0, 0.5, 1.0, 1.5, 2.0, 2.5]
    assert [event.timestamp for event in events] == times
    session = engine.open_session("describe it live")
    with VideoFrames(clip) as frames:
        expected = [
            session.push_frame(np.array(rgb), time).text
            for time, rgb in zip(times, frames.at(times), strict=True)
        ]
    session.close()
    assert [event.text for event in events] == expected
    assert any(expected)
    assert [event.text for event in model.caption(str(clip), "describe it live", fps=1)] != expected


def test_mistakes_are_named(model, tmp_path):
    with pytest.raises(DataError, match="question is empty"):
        model.ask(png(1), "  ")
    for no_text in (None, 7, b"what?"):
        with pytest.raises(DataError, match=f"question is of type {type(no_text).__name__}"):
            model.ask(png(1), no_text)
        with pytest.raises(DataError, match="query is of type"):
            next(model.caption(b"", no_text))
    for no_video in (None, 7, [b""]):
        with pytest.raises(DataError, match="video is of type"):
            next(model.caption(no_video))
    for no_rate in (0, -1, float("nan"), float("inf")):
        with pytest.raises(ConfigError, match="`fps`"):
            next(model.caption(b"", fps=no_rate))
    with pytest.raises(MediaError):
        next(model.caption(b"no video"))
    with pytest.raises(MediaError, match="is not a file"):
        next(model.caption(tmp_path / "gone.mp4"))
    with pytest.raises((DataError, MediaError), match=r"gone\.png"):
        model.ask(tmp_path / "gone.png", QUESTION)
    with pytest.raises(ConfigError, match="temperature"):
        model.ask(None, QUESTION, temperature=-1)
    with pytest.raises(StoreError):
        casa.load(tmp_path)


def test_it_needs_no_ray_and_the_command_no_torch(tiny_checkpoint):
    program = (
        "import sys, casa\n"
        "assert 'torch' not in sys.modules\n"
        f"print(len(casa.load({str(tiny_checkpoint)!r}).ask(None, 'is red', max_new_tokens=3)))\n"
        "assert 'ray' not in sys.modules and 'deepspeed' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
