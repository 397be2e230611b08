"""What lmms-eval asks becomes the conversation and the settings that CASA's own evaluation would use."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as Pillow

from casa_core.engine.requests import SamplingParams
from casa_core.errors import ConfigError, DataError
from casa_core.media.decode import decode_image
from casa_core.types import Image, Sample, Text
from pipelines.evaluate.benchmarks.videos.files import VideoFolder
from pipelines.evaluate.lmms_eval_plugin.messages import to_sample
from pipelines.evaluate.lmms_eval_plugin.sampling import sampling_params
from tests.support.core.engine import picture, png
from tests.support.data.media import counting_video
from tests.support.evaluate.lmms_eval_model import plugin, user


@pytest.fixture(scope="module")
def chat() -> Iterator[Any]:
    """lmms-eval's own class of messages."""
    with plugin() as module:
        yield module.ChatMessages


def sample(chat: Any, *messages: dict[str, Any]) -> Sample:
    return to_sample(chat(messages=list(messages)), "task/test/7")


def shown(kind: str, url: Any, **more: Any) -> dict[str, Any]:
    return {"type": kind, "url": url, **more}


def test_turns_of_system_user_and_assistant_become_parts_in_their_order(chat: Any):
    found = sample(
        chat,
        {"role": "system", "content": [{"type": "text", "text": "Be brief."}]},
        user(shown("image", png(1)), "What is it?"),
        {"role": "assistant", "content": [{"type": "text", "text": "A dog."}]},
        user("And here? ", shown("image", png(2))),
    )
    assert found.sample_id == "task/test/7"
    assert found.parts == (
        Text(role="system", text="Be brief."),
        Image(data=png(1), media=0),
        Text(role="user", text="What is it?"),
        Text(role="assistant", text="A dog.", trained=True),
        Text(role="user", text="And here?"),
        Image(data=png(2), media=1),
    )


def files() -> dict[str, bytes]:
    """Picture files of every kind of pixels that Pillow hands on."""
    colours = Pillow.fromarray(picture(3))
    alpha = colours.copy()
    alpha.putalpha(Pillow.fromarray(picture(4)[:, :, 0]))
    turned = Pillow.Exif()
    turned[0x0112] = 6
    kinds = {
        "RGB": (colours, "PNG", {}),
        "grey": (colours.convert("L"), "PNG", {}),
        "palette": (colours.quantize(16), "PNG", {"transparency": 3}),
        "alpha": (alpha, "PNG", {}),
        "CMYK": (colours.convert("CMYK"), "JPEG", {}),
        "turned": (colours, "JPEG", {"exif": turned}),
    }
    found = {}
    for name, (image, form, more) in kinds.items():
        file = io.BytesIO()
        image.save(file, form, **more)
        found[name] = file.getvalue()
    return found


@pytest.mark.parametrize("kind", list(files()))
def test_a_decoded_picture_shows_the_pixels_that_its_file_would(chat: Any, kind: str):
    file = files()[kind]
    [found] = sample(chat, user(shown("image", Pillow.open(io.BytesIO(file))))).parts
    assert isinstance(found, Image)
    assert found.data is not None
    assert np.array_equal(decode_image(found.data), decode_image(file))


def test_paths_bytes_and_data_uris_are_taken_byte_for_byte(chat: Any, tmp_path: Path):
    file = files()["turned"]
    (tmp_path / "p.jpg").write_bytes(file)
    uri = "data:image/jpeg;base64," + base64.b64encode(file).decode()
    given = (file, str(tmp_path / "p.jpg"), tmp_path / "p.jpg", uri)
    found = sample(chat, user(*(shown("image", one) for one in given), "?")).parts[:-1]
    assert [part.data for part in found if isinstance(part, Image)] == [file] * 4


def test_a_video_is_shown_at_the_times_of_training(chat: Any, tmp_path: Path):
    counting_video(tmp_path / "v.mp4", frames=36, fps=3)
    counting_video(tmp_path / "short.mp4", frames=40, fps=10)
    folder = VideoFolder(tmp_path)
    whole, short = (shown("video", str(tmp_path / name)) for name in ("v.mp4", "short.mp4"))
    found = sample(chat, user(whole, "What happens?", short)).parts
    frames = [part for part in found if isinstance(part, Image) and part.media == 0]
    assert [frame.timestamp for frame in frames] == [at / 2 for at in range(24)], "two a second"
    assert {frame.data for frame in frames} == {folder.read("v.mp4")}
    of_short = [part for part in found if isinstance(part, Image) and part.media == 1]
    assert [frame.timestamp for frame in of_short] == pytest.approx([at / 5 for at in range(20)])


def test_of_a_video_a_part_can_be_meant_in_both_ways_of_the_harness(chat: Any, tmp_path: Path):
    counting_video(tmp_path / "v.mp4", frames=36, fps=3)
    expected = [part.timestamp for part in VideoFolder(tmp_path).frames("v.mp4", 1.0, 11.5)]
    path = str(tmp_path / "v.mp4")
    for part in (
        shown("video", path, start_time=1.0, end_time=11.5),
        shown("video", {"type": "video", "url": path, "video_start": 1.0, "video_end": 11.5}),
    ):
        found = sample(chat, user(part, "?")).parts
        assert [one.timestamp for one in found if isinstance(one, Image)] == expected


@pytest.mark.parametrize(
    ("messages", "named"),
    [
        ([user(shown("audio", "speech.wav"), "?")], "type audio"),
        ([user("?"), {"role": "assistant", "content": []}], "end with the assistant"),
        ([], "end with the assistant"),
        ([{"role": "assistant", "content": [shown("image", b"")]}, user("?")], "assistant in task/test/7"),
        ([user(shown("image", "https://host/p.png"), "?")], "https://host/p.png"),
        ([user(shown("image", "nowhere.png"), "?")], "nowhere.png"),
        ([user(shown("image", 3), "?")], "a int"),
        ([user(shown("video", "nowhere.mp4"), "?")], "nowhere.mp4"),
        ([user(shown("video", [png(1)]), "?")], "a list"),
    ],
)
def test_what_cannot_be_shown_is_refused_by_name_and_with_a_remedy(chat: Any, messages: Any, named: str):
    with pytest.raises(DataError, match="task/test/7") as refused:
        sample(chat, *messages)
    assert named in refused.value.what
    assert refused.value.remedy


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ({}, SamplingParams(max_new_tokens=128)),
        ({"max_new_tokens": 16, "temperature": 0, "num_beams": 1}, SamplingParams(max_new_tokens=16)),
        ({"do_sample": False, "temperature": 0.7, "top_p": None}, SamplingParams()),
        ({"do_sample": True}, SamplingParams(temperature=1.0)),
        ({"temperature": 0.2, "top_p": 0.9, "top_k": 5}, SamplingParams(temperature=0.2, top_p=0.9, top_k=5)),
        ({"do_sample": True, "temperature": "0.5", "seed": 3}, SamplingParams(temperature=0.5, seed=3)),
        ({"until": ["\n\n", ""], "stop": "END"}, SamplingParams(stop=("\n\n", "END"))),
        ({"max_new_tokens": 49152}, SamplingParams(max_new_tokens=2048)),
        ({"repetition_penalty": 1.0, "image_aspect_ratio": "pad", "use_cache": True}, SamplingParams()),
    ],
)
def test_generation_settings_are_the_engines(asked: dict[str, Any], expected: SamplingParams):
    assert sampling_params(asked, context=4096) == expected


@pytest.mark.parametrize(
    ("asked", "named"),
    [
        ({"num_beams": 4}, "num_beams"),
        ({"repetition_penalty": 1.2}, "repetition_penalty"),
        ({"visual_cot": True}, "visual_cot"),
        ({"max_new_token": 16}, "max_new_token"),
        ({"temperature": "hot"}, "temperature"),
        ({"top_p": 1.5}, "top_p"),
        ({"do_sample": "yes"}, "do_sample"),
        ({"until": 3}, "until"),
    ],
)
def test_a_setting_that_cannot_be_obeyed_is_refused_by_name(asked: dict[str, Any], named: str):
    with pytest.raises(ConfigError, match=f"`{named}`") as refused:
        sampling_params(asked, context=4096)
    assert refused.value.remedy
