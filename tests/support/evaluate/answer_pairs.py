"""Answers and truths as models and annotators write them, and as nobody should; drawn from a seed."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

WORDS = (
    "red", "Blue", "the cat", "A dog", "two", "Ten", "none", "dont", "y'all", "it's", "New York", "U.S.",
    "St. Louis", "café", "cafe\u0301", "it\u2019s", "\u201cStop\u201d", "naïve", "STRASSE", "straße",
    "\uff15\uff4b\uff4d", "\uff21\uff22\uff23\u3000\uff44", "数学", "no", "Yes", "\\frac { a } { b }",
    "x ^ { 2 } + 1", "left/right", "black and white", "well-known", "50-60", "[3]", "a_b", "what?",
    "Coca-Cola", "john's", "3 : 4", "e.g. this", "...", "-", "", " ", "nan", "inf", "True", "o'clock",
)  # fmt: skip
NUMBERS = (
    "0",
    "0.0",
    "1",
    "5",
    "10",
    "100",
    "1000",
    "2019",
    "3.5",
    ".5",
    "1e3",
    "-7",
    "1_000",
    "0.02",
    "12:30",
)


def decorated(text: str, rng: random.Random) -> str:
    """The text with what models put around, or make of it."""
    changes: Sequence[Callable[[str], str]] = (
        lambda t: t,
        lambda t: t,
        str.upper,
        str.lower,
        str.title,
        lambda t: f"{t}.",
        lambda t: f"{t}...",
        lambda t: f" {t}",
        lambda t: f"{t}\n",
        lambda t: f"{t} .",
        lambda t: f"{t}%",
        lambda t: f"${t}",
        lambda t: f"{t}!",
        lambda t: f"“{t}”",
        lambda t: f"The answer is {t}.",
        lambda t: t.replace(" ", "  "),
        lambda t: t.replace(" ", "\n"),
        lambda t: t.replace("o", "0"),
        lambda t: t[:-1],
        lambda t: t + t[:1],
        lambda t: t[1:],
        lambda t: f"{t}, {t}",
    )
    return rng.choice(changes)(text)


def plain(rng: random.Random) -> str:
    """A word, a few words, or a number, sometimes close to a round one."""
    kind = rng.randrange(5)
    if kind == 0:
        return rng.choice(NUMBERS)
    if kind == 1:
        return f"{rng.choice((10, 100, 1000)) * (1 + rng.choice((0, 0.049, 0.05, 0.0501, -0.05, -0.06))):g}"
    if kind == 2:
        return f"{rng.choice(WORDS)} {rng.choice(WORDS)}"
    return rng.choice(WORDS)


def pairs(count: int, *, seed: int, truths: int = 1) -> list[tuple[str, tuple[str, ...]]]:
    """Answers with ``truths`` truths each, a third of them about the answer. No truth is empty."""
    rng = random.Random(seed)
    found = []
    while len(found) < count:
        right = [decorated(plain(rng), rng) if rng.random() < 0.4 else plain(rng) for _ in range(truths)]
        if all(text.strip() for text in right):
            about = rng.choice(right)
            said = rng.choice((about, decorated(about, rng), decorated(plain(rng), rng)))
            found.append((said, tuple(right)))
    return found
