"""When what is asked of an endpoint: Poisson arrivals, fixed by a seed before the run."""

from __future__ import annotations

import random
from dataclasses import dataclass

from casa_core.media.data_uri import to_data_uri
from casa_core.media.decode import encode_jpeg
from casa_core.media.video import LIVE_FPS

PICTURES = 64
SIDE = 224
QUESTIONS = ("what color is the shape?", "what shape is in the image?", "is there a red shape?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What is asked.

    Attributes:
        rate: Answers per second, on average.
        streams: Live sessions that begin per minute, on average.
        seconds: The time in which answers are asked for and sessions begin.
        stream_seconds: How long a session sends frames.
        fps: Frames per second of a session.
        deadline: Seconds from a frame's time to its last word.
        tokens: Bound on an answer, in tokens.
        drain: Seconds after which work that is still open is given up.
        seed: Fixes the arrivals and the pictures.
    """

    rate: float = 2.0
    streams: float = 0.0
    seconds: float = 30.0
    stream_seconds: float = 15.0
    fps: float = LIVE_FPS
    deadline: float = 0.5
    tokens: int = 32
    drain: float = 60.0
    seed: int = 0

    @property
    def answers_at(self) -> list[float]:
        """When answers are asked for, seconds after the beginning."""
        return arrivals(self.rate, self.seconds, f"answers {self.seed}")

    @property
    def sessions_at(self) -> list[float]:
        """When sessions begin."""
        return arrivals(self.streams / 60, self.seconds, f"sessions {self.seed}")


def arrivals(rate: float, seconds: float, seed: str) -> list[float]:
    """Times of a Poisson process: independent of one another, ``rate`` per second on average."""
    rng = random.Random(seed)
    times: list[float] = []
    now = rng.expovariate(rate) if rate > 0 else seconds
    while now < seconds:
        times.append(now)
        now += rng.expovariate(rate)
    return times


def draw_pictures(seed: int, count: int = PICTURES, side: int = SIDE) -> list[bytes]:
    """So many pictures of a shape each, all different, as JPEG files."""
    from pipelines.data.generate.shapes import draw_ground, draw_shape, render

    rng = random.Random(f"pictures {seed}")
    drawn = []
    for _ in range(count):
        shape = draw_shape(rng, side)
        center = rng.uniform(0.3, 0.7) * side, rng.uniform(0.3, 0.7) * side
        drawn.append(encode_jpeg(render(side, draw_ground(rng), (shape, center))))
    return drawn


def chat_body(model: str, picture: bytes, number: int, tokens: int) -> dict[str, object]:
    """The call that asks the ``number``-th question."""
    content = [
        {"type": "image_url", "image_url": {"url": to_data_uri(picture, "image/jpeg")}},
        {"type": "text", "text": QUESTIONS[number % len(QUESTIONS)]},
    ]
    return {
        "model": model,
        "messages": [{"role": "user", "content": content}],
        "max_tokens": tokens,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
