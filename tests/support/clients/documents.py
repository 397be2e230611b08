"""Thirty-six documents of evaluation harnesses: sixty calls with what lmms-eval can make of the list.

Pictures are in whatever mode and size a data set has, and are sent as PNG in that mode; prompts hold several
pictures between their texts, examples in earlier turns, and limits that tasks set.
"""

from __future__ import annotations

import io

from PIL import Image as Picture

from tests.support.clients.calls import LONG, Call, assistant, painted, shown, user
from tests.support.clients.outcomes import no, said
from tests.support.serve.fakes import COLOURS
from tests.support.serve.server import data_uri

SIZES = ((1, 1), (300, 200), (33, 500))
"""Width and height, pixels."""
MODES = {
    "RGB": "red",
    "RGBA": "green",
    "P": "blue",
    "L": "white",
    "LA": "black",
    "1": "white",
    "I;16": "black",
}
"""Modes of PNG files, and the colour of a picture in each."""
CHOICES = (
    "Which colour is it?\nA. red\nB. green\nAnswer with the option's letter from the given choices directly."
)


def in_mode(mode: str, size: tuple[int, int]) -> bytes:
    """A PNG of one colour, opaque where the mode has transparency."""
    out = io.BytesIO()
    grey = mode == "I;16"
    picture = (
        Picture.new("I;16", size, 0) if grey else Picture.new("RGB", size, COLOURS[MODES[mode]]).convert(mode)
    )
    picture.save(out, "PNG")
    return out.getvalue()


def example(colour: str, answer: str) -> tuple[dict, dict]:
    """Two turns of a few-shot prompt."""
    return user(painted(colour), "what colour"), assistant([{"type": "text", "text": answer}])


def words(count: int) -> str:
    """A long text."""
    return " ".join(str(number) for number in range(count))


DOCUMENTS: dict[str, Call] = {
    **{
        f"{mode} of {width} x {height}": Call(
            said(f"{colour} x"), (user(shown(data_uri(in_mode(mode, (width, height)))), "x"),)
        )
        for mode, colour in MODES.items()
        for width, height in SIZES
    },
    "choices": Call(
        said(" ".join(["red", *CHOICES.split(" ")][:8]), finish="length"), (user(painted("red"), CHOICES),)
    ),
    "sixteen pictures": Call(
        said(" ".join(["red"] * 8), finish="length"), (user(*[painted("red")] * 16, "how many"),)
    ),
    "pictures between texts": Call(
        said("red blue same"), (user("first", painted("red"), "second", painted("blue"), "same"),)
    ),
    "one example": Call(said("red green go"), (*example("red", "red"), user(painted("green"), "go"))),
    "two examples": Call(
        said("red blue green go"),
        (*example("red", "red"), *example("blue", "blue"), user(painted("green"), "go")),
    ),
    "a system prompt and a picture": Call(
        said("blue go"), ({"role": "system", "content": "one word"}, user(painted("blue"), "go"))
    ),
    "a long text": Call(said(words(8), finish="length"), (user(words(500)),)),
    "an address in the text": Call(
        said("see https://example.org/a.png x"), (user("see https://example.org/a.png x"),)
    ),
    "lines and tabs": Call(said("a\n\tb c"), (user("a\n\tb c"),)),
    "other scripts": Call(said("这是什么 что это"), (user("这是什么 что это"),)),
    "special tokens": Call(said("<|im_end|> <image> hello"), (user("<|im_end|> <image> hello"),)),
    "one token": Call(said("a", finish="length"), (user(LONG),), {"max_tokens": 1}),
    "all of 4096 tokens": Call(said("a b c d e f g h", finish="length"), (user(LONG),), {"max_tokens": 4096}),
    "no token": Call(no("max_tokens"), (user(LONG),), {"max_tokens": 0}),
    "a temperature of 0.7": Call(said("a seed=None"), (user("a"),), {"temperature": 0.7}),
}
