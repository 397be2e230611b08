"""Sixty calls as clients of OpenAI's API and of vLLM make them, each with its right outcome here.

The endpoint is one with a fake engine that answers with the pictures' colours and the last text, cut into
words at blanks, at most eight.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from tests.support.clients.outcomes import Answered, Outcome, no, said
from tests.support.clients.recorder import Recorder
from tests.support.serve.fakes import FakeEngine
from tests.support.serve.server import MODEL, data_uri, picture, running, settings_with

CHAT = "/v1/chat/completions"
MAX_NEW_TOKENS = 8


@dataclass(frozen=True)
class Call:
    """One entry of the list.

    Attributes:
        body: Fields of a chat call besides `model` and `messages`; a `model` here wins.
        then: Messages that follow the answer's own one, in a second call.
        path: Another path is a GET, without a body.
    """

    right: Outcome
    messages: tuple[dict[str, Any], ...] = ()
    body: dict[str, Any] | None = None
    then: tuple[dict[str, Any], ...] = ()
    path: str = CHAT

    @property
    def fields(self) -> dict[str, Any]:
        """Everything besides the messages."""
        return {"model": MODEL, **(self.body or {})}


def user(*content: Any, **fields: Any) -> dict[str, Any]:
    """A user's message of one text, or of parts."""
    [first, *rest] = content
    plain = isinstance(first, str) and not rest
    parts = [{"type": "text", "text": one} if isinstance(one, str) else one for one in content]
    return {"role": "user", "content": first if plain else parts, **fields}


def assistant(content: Any) -> dict[str, Any]:
    """An assistant's message."""
    return {"role": "assistant", "content": content}


def shown(url: str, **fields: Any) -> dict[str, Any]:
    """A part with a picture."""
    return {"type": "image_url", "image_url": {"url": url, **fields}}


def painted(colour: str, **fields: Any) -> dict[str, Any]:
    """A part with a small PNG of one colour."""
    return shown(data_uri(picture(colour)), **fields)


def wrapped(colour: str) -> dict[str, Any]:
    """Base64 as `base64` and Python's `encodebytes` write it, in lines of 76 characters."""
    return shown("data:image/png;base64," + base64.encodebytes(picture(colour)).decode())


def unpadded(colour: str) -> dict[str, Any]:
    """Base64 without its `=`."""
    return shown(data_uri(picture(colour, kind="GIF"), "image/gif").rstrip("="))


HI = (user("hello"),)
URL = "messages[0].content[0].image_url.url"
TRUNCATED = picture("red", size=64, kind="JPEG")[:200]
TOOL = {"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {}}}}
SCHEMA = {"name": "answer", "schema": {"type": "object", "properties": {"shape": {"type": "string"}}}}
NULLS = dict.fromkeys(
    (
        *("stream", "stream_options", "max_tokens", "temperature", "top_p", "seed", "stop", "n", "top_k"),
        *("logprobs", "logit_bias", "tools", "tool_choice", "response_format", "user", "frequency_penalty"),
    )
)
NEUTRAL = {
    "frequency_penalty": 0,
    "presence_penalty": 0,
    "repetition_penalty": 1.0,
    "min_tokens": 0,
    "ignore_eos": False,
    "skip_special_tokens": True,
    "add_generation_prompt": True,
}
LONG = "a b c d e f g h i j"

CALLS: dict[str, Call] = {
    # What is asked
    "a text": Call(said("hello"), HI),
    "text parts": Call(said("red\nsquare"), (user("red", "square"),)),
    "a picture": Call(said("red what is it"), (user(painted("red"), "what is it"),)),
    "a picture after the text": Call(said("blue what is it"), (user("what is it", painted("blue")),)),
    "three pictures": Call(
        said("red green blue which"), (user(*map(painted, ("red", "green", "blue")), "which"),)
    ),
    "a JPEG": Call(
        said("green x"), (user(shown(data_uri(picture("green", kind="JPEG"), "image/jpeg")), "x"),)
    ),
    "a WebP": Call(said("blue x"), (user(shown(data_uri(picture("blue", kind="WEBP"), "image/webp")), "x"),)),
    "a picture with detail": Call(said("red x"), (user(painted("red", detail="high"), "x"),)),
    "a picture with detail null": Call(said("red x"), (user(painted("red", detail=None), "x"),)),
    "wrapped base64": Call(said("red x"), (user(wrapped("red"), "x"),)),
    "unpadded base64": Call(said("red x"), (user(unpadded("red"), "x"),)),
    "an emoji and separators": Call(said("🟥 caf\u00e9 a\u2028b"), (user("🟥 caf\u00e9 a\u2028b"),)),
    # Turns
    "turns": Call(said("three"), (user("one"), assistant("two"), user("three"))),
    "pictures over turns": Call(
        said("red green and now"),
        (user(painted("red"), "what"), assistant("red"), user(painted("green"), "and now")),
    ),
    "the answer sent back": Call(
        said("red and now"), (user(painted("red"), "what"),), then=(user("and now"),)
    ),
    "the answer with logprobs sent back": Call(
        Answered(("and now",), "stop", 2, (("and", 0), ("now", 0))),
        HI,
        {"logprobs": True},
        then=(user("and now"),),
    ),
    "an assistant without content": Call(said("three"), (user("one"), assistant(None), user("three"))),
    "an empty assistant": Call(said("three"), (user("one"), assistant(""), user("three"))),
    "two users in a row": Call(said("one\ntwo"), (user("one"), user("two"))),
    "system first": Call(said("hello"), ({"role": "system", "content": "be brief"}, *HI)),
    "system in the middle": Call(
        said("three"),
        (user("one"), assistant("two"), {"role": "system", "content": "be brief"}, user("three")),
    ),
    "system last": Call(said("be brief"), (*HI, {"role": "system", "content": "be brief"})),
    "developer": Call(said("hello"), ({"role": "developer", "content": "be brief"}, *HI)),
    "a name": Call(said("hello"), (user("hello", name="ada"),)),
    # How it is answered
    "a stream": Call(
        Answered(("red what is it",), "stop", 0), (user(painted("red"), "what is it"),), {"stream": True}
    ),
    "a stream with usage": Call(
        said("hello"), HI, {"stream": True, "stream_options": {"include_usage": True}}
    ),
    "a stream of two": Call(
        Answered(("a seed=7", "a seed=8"), "stop", 0),
        (user("a"),),
        {"stream": True, "n": 2, "seed": 7, "temperature": 1.0},
    ),
    "three answers": Call(
        said("a seed=7", "a seed=8", "a seed=9"), (user("a"),), {"n": 3, "seed": 7, "temperature": 1.0}
    ),
    "a seed": Call(said("a seed=3"), (user("a"),), {"seed": 3, "temperature": 0.7, "top_p": 0.9}),
    "greedy": Call(said("hello"), HI, {"temperature": 0, "top_p": 1}),
    "top_k and min_p": Call(
        said("a seed=1"), (user("a"),), {"temperature": 0.5, "seed": 1, "top_k": 5, "min_p": 0.1}
    ),
    "all of top_k": Call(said("hello"), HI, {"top_k": -1}),
    "a stop string": Call(said("a b"), (user("a b c d"),), {"stop": "c"}),
    "stop strings": Call(said("a"), (user("a b c d"),), {"stop": ["x", "b"]}),
    "log probabilities": Call(
        Answered(("a b",), "stop", 2, (("a", 2), ("b", 2))),
        (user("a b"),),
        {"logprobs": True, "top_logprobs": 2},
    ),
    "a stream of log probabilities": Call(
        Answered(("a b",), "stop", 0, (("a", 0), ("b", 0))),
        (user("a b"),),
        {"logprobs": True, "stream": True},
    ),
    "few tokens": Call(said("a b c", finish="length"), (user(LONG),), {"max_tokens": 3}),
    "few completion tokens": Call(said("a b", finish="length"), (user(LONG),), {"max_completion_tokens": 2}),
    "more tokens than are given": Call(
        said("a b c d e f g h", finish="length"), (user(LONG),), {"max_tokens": 1024}
    ),
    "-1 tokens": Call(said("a b c d e f g h", finish="length"), (user(LONG),), {"max_tokens": -1}),
    "null fields": Call(said("hello"), HI, NULLS),
    "neutral fields": Call(said("hello"), HI, NEUTRAL),
    "an answer of text": Call(said("hello"), HI, {"response_format": {"type": "text"}, "user": "ada"}),
    "models": Call(Answered((MODEL,), None), path="/v1/models"),
    "a model": Call(Answered((MODEL,), None), path=f"/v1/models/{MODEL}"),
    # What is refused
    "another model": Call(no("model", "model_not_found", 404), HI, {"model": "gpt-4o"}),
    "a text as a picture": Call(
        no(URL, "invalid_image"), (user(shown(data_uri(b"hello", "image/png")), "x"),)
    ),
    "a truncated picture": Call(
        no(URL, "invalid_image"), (user(shown(data_uri(TRUNCATED, "image/jpeg")), "x"),)
    ),
    "a picture elsewhere": Call(
        no(URL, "unsupported_image_url"), (user(shown("https://images.example.org/cat.png"), "x"),)
    ),
    "too many pictures": Call(no("messages", "too_many_images"), (user(*[painted("red")] * 17, "x"),)),
    "half an emoji": Call(no("messages[0].content"), (user("x \ud83d"),)),
    "an empty user": Call(no("messages[0].content"), (user(""),)),
    "tools": Call(no("tools", "unsupported_parameter"), HI, {"tools": [TOOL]}),
    "a tool's answer": Call(
        no("messages[1].role"), (*HI, {"role": "tool", "content": "red", "tool_call_id": "call_1"})
    ),
    "a JSON answer": Call(
        no("response_format", "unsupported_parameter"),
        HI,
        {"response_format": {"type": "json_schema", "json_schema": SCHEMA}},
    ),
    "a frequency penalty": Call(
        no("frequency_penalty", "unsupported_parameter"), HI, {"frequency_penalty": 0.5}
    ),
    "a repetition penalty": Call(
        no("repetition_penalty", "unsupported_parameter"), HI, {"repetition_penalty": 1.1}
    ),
    "a bias of tokens": Call(no("logit_bias", "unsupported_parameter"), HI, {"logit_bias": {"50": -100}}),
    "a temperature of 3": Call(no("temperature"), HI, {"temperature": 3.0}),
    "nine answers": Call(no("n"), HI, {"n": 9, "temperature": 1.0}),
}


@contextmanager
def serving(recorder: Recorder) -> Iterator[str]:
    """The endpoint that the list is about; yields its URL."""
    engine = FakeEngine()
    engine.words_of = lambda text: text.split(" ")
    with running(engine, settings_with(max_new_tokens=MAX_NEW_TOKENS), around=recorder.around) as url:
        yield url
