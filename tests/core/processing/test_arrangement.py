"""One arrangement of turns: a record and a request of the same content become the same tokens."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from casa_core.processing.arrangement import arrange, role_of
from casa_core.processing.processor import CasaProcessor
from casa_core.processing.tokenizer import build_tokenizer
from casa_core.types import EncodedSample, Image, Sample, Text
from pipelines.data.read.corpora.image_text import ImageTextReader
from serve.api.request_conversion import to_generation_requests
from serve.api.schemas import ChatCompletionRequest
from tests.support.data.corpus import PICTURE, read_all, write_jsonl
from tests.support.serve.server import data_uri, settings_with

WORDS = "Before : After What changed ? does the tag do red square be brief a ramp system user assistant"
SHOWN = {"type": "image_url", "image_url": {"url": data_uri(PICTURE)}}
ANSWER = {"role": "assistant", "content": "a ramp"}


def text(words: str) -> dict[str, str]:
    return {"type": "text", "text": words}


def user(*content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content[0] if isinstance(content[0], str) else list(content)}


# name → the request's messages, the same as records of a corpus, the parts: i for a picture
CASES: dict[str, tuple[list[dict[str, Any]], list[dict[str, Any]], list[str]]] = {
    "text, picture, text, picture, text": (
        [user(text("Before:"), SHOWN, text("After:"), SHOWN, text("What changed?"))],
        [
            {"messages": [user("Before: <image> After: <image> What changed?")]},
            {"conversations": [{"from": "human", "value": "Before:\n<image>\nAfter:<image>What changed? "}]},
            {"texts": [{"user": "Before: <image> After: <image> What changed?"}]},
        ],
        ["Before:", "i", "After:", "i", "What changed?"],
    ),
    "a picture after its question": (
        [user(text("What changed?"), SHOWN)],
        [{"messages": [user("What changed? <image>")]}],
        ["What changed?", "i"],
    ),
    "unmarked pictures come first": (
        [user(SHOWN, SHOWN, text("What changed?"))],
        [{"messages": [user("What changed?")]}, {"texts": [{"user": " What changed?\n"}]}],
        ["i", "i", "What changed?"],
    ),
    "texts without a picture between": (
        [user(SHOWN, text("red"), text("square"))],
        [{"messages": [user("<image>red\nsquare")]}],
        ["i", "red\nsquare"],
    ),
    "two messages of the user": (
        [user(SHOWN, text("red")), user("square")],
        [
            {"messages": [user("<image>"), user("red"), user("square")]},
            {"messages": [user("<image>red"), user("  "), user("square")]},
        ],
        ["i", "red\nsquare"],
    ),
    "a picture alone": ([user(SHOWN)], [{"messages": [user("<image>")]}], ["i"]),
    "the word itself": (
        [user(SHOWN, text("What does the <image> tag do?"))],
        [{"messages": [user("<image>What does the \\<image> tag do?")]}],
        ["i", "What does the <image> tag do?"],
    ),
    "a system text and turns before": (
        [
            {"role": "developer", "content": "be brief"},
            {"role": "system", "content": " "},
            user(text("Before:"), SHOWN),
            {"role": "assistant", "content": " the <image>\n"},
            user(SHOWN, text("After:")),
        ],
        [
            {
                "conversations": [
                    {"from": "SYSTEM", "value": "be brief"},
                    {"from": "Human", "value": "Before:<image>"},
                    {"from": "MODEL", "value": " the <image>\n"},
                    {"from": "USER", "value": "<image>After:"},
                ]
            }
        ],
        ["be brief", "Before:", "i", " the <image>\n", "i", "After:"],
    ),
}


@pytest.fixture(scope="module", params=["casa-1", "qwen-1"])
def processor(request) -> CasaProcessor:
    return CasaProcessor(build_tokenizer([WORDS] * 3, 420, request.param), request.param, max_side=32)


def of_request(messages: list[dict[str, Any]]) -> Sample:
    body = ChatCompletionRequest.model_validate({"model": "m", "messages": messages})
    return asyncio.run(to_generation_requests(body, settings_with(), "r"))[0].sample


def of_records(folder: Path, records: list[dict[str, Any]]) -> list[Sample]:
    found = read_all(ImageTextReader, write_jsonl(folder / "a.jsonl", records, seeks=False).parent)
    return [record.sample for record in found]


def with_answer(record: dict[str, Any], pictures: int) -> dict[str, Any]:
    """A record of a corpus: the turns, an answer to them, and the pictures in a field of their own."""
    complete: dict[str, Any] = {"images": [data_uri(PICTURE)] * pictures}
    for name, turns in record.items():
        if name == "texts":
            complete[name] = [{**turns[0], "assistant": "a ramp"}]
        else:
            complete[name] = [*turns, ANSWER if name == "messages" else {"from": "gpt", "value": "a ramp"}]
    return complete


def encoded(processor: CasaProcessor, sample: Sample, *, prompt: bool) -> EncodedSample:
    size = processor.image_size(48, 64)
    count = sum(isinstance(part, Image) for part in sample.parts)
    return processor.encode(sample, [size] * count, add_generation_prompt=prompt)


def outline(sample: Sample) -> list[str]:
    return ["i" if isinstance(part, Image) else part.text for part in sample.parts]


@pytest.mark.parametrize("name", CASES)
def test_training_and_the_endpoint_make_the_same_ids_and_image_positions(
    processor: CasaProcessor, tmp_path: Path, name: str
):
    messages, records, expected = CASES[name]
    asked = of_request(messages)
    assert outline(asked) == expected
    as_parts = {"messages": [*messages, ANSWER]}
    trained = of_records(
        tmp_path, [as_parts, *(with_answer(record, expected.count("i")) for record in records)]
    )
    prompt = encoded(processor, asked, prompt=True)
    length = len(prompt.input_ids)
    for sample in trained:
        assert outline(sample) == [*expected, "a ramp"]
        whole = encoded(processor, sample, prompt=False)
        assert whole.input_ids[:length] == prompt.input_ids
        assert whole.image_positions == prompt.image_positions
        assert whole.loss_mask[length]
    called = [
        {**message, "content": [{"type": "image"} if part is SHOWN else part for part in message["content"]]}
        if isinstance(message["content"], list)
        else message
        for message in messages
    ]
    batch = processor(called, images=[PICTURE] * expected.count("i"))
    assert batch["input_ids"][0].tolist() == list(prompt.input_ids)
    counts = batch["image_counts"][0].tolist()
    assert [place for place, count in enumerate(counts) for _ in range(count)] == list(prompt.image_positions)


@pytest.mark.parametrize("template", ["casa-1", "qwen-1"])
def test_interleaved_text_is_one_turn_with_its_pictures_inside(template: str):
    processor = CasaProcessor(build_tokenizer([WORDS] * 3, 420, template), template, max_side=32)
    sample = of_request(CASES["text, picture, text, picture, text"][0])
    found = encoded(processor, sample, prompt=True)
    tokens = processor.tokenizer.convert_ids_to_tokens(list(found.input_ids))
    opens = "<|user|>" if template == "casa-1" else "<|im_start|>"
    assert tokens.count(opens) == (1 if template == "casa-1" else 3)  # qwen-1: system, user, assistant
    first, second = found.image_positions
    words = [processor.decode_text(found.input_ids[a:b]) for a, b in ((0, first), (first, second))]
    assert words[0].endswith("Before:")
    assert words[1] == "After:"


def test_roles_have_many_names_and_tools_none():
    names = {
        "system": ["system", "Developer"],
        "user": ["USER", " human "],
        "assistant": ["GPT", "bot", "model"],
    }
    assert {role: {role_of(name) for name in own} for role, own in names.items()} == {
        role: {role} for role in names
    }
    assert [role_of(name) for name in ("tool", "function", "observation", "", None, 7)] == [None] * 6


def test_answers_keep_their_white_space_and_blank_turns_stay_turns():
    assert arrange([("user", ["hi "]), ("assistant", [" yes\n"])])[1] == Text(
        role="assistant", text=" yes\n", trained=True
    )
    assert arrange([("user", ["a"]), ("assistant", [""])])[1] == Text(role="assistant", text="", trained=True)
    assert arrange([("assistant", ["a"]), ("assistant", ["b"])]) == (
        Text(role="assistant", text="a\nb", trained=True),
    )
