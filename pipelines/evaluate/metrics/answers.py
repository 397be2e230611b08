"""Exact-match accuracy of short answers, by question type. Pure functions.

An answer is right when it equals the truth after `normalise`. Question types are weighted equally, because
raw test sets are lopsided (three of four easy-vqa questions are yes/no).
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable

from pipelines.evaluate.metrics.characters import same_characters
from pipelines.evaluate.metrics.intervals import Estimate, wilson

_DECIDED = re.compile(r"(yes|no)\s*[.,;:!?…\u2013\u2014](?!\s*\d)")  # "No. 5" is a number


def normalise(text: str) -> str:
    """What an answer says, however it is written: ``" “Yes”! "`` and ``"yes, it is"`` → ``"yes"``.

    Case, the form of accents and quotation marks, outer white space and quotation marks, and punctuation at
    the end make no difference; an answer that begins with *yes* or *no* and a punctuation mark is that word.
    """
    said = _DECIDED.match(bare := _bare(same_characters(text).lower()))
    return said[1] if said else bare


def _bare(text: str) -> str:
    """Without outer white space and pairs of quotation marks, and without punctuation at the end."""
    while (bare := _unquoted(text.strip().rstrip(".,;:!?…"))) != text:
        text = bare
    return text


def _unquoted(text: str) -> str:
    return text[1:-1] if len(text) > 1 and text[0] == text[-1] and text[0] in "\"'" else text


def exact_match(answer: str, truth: str) -> bool:
    """Whether the two are equal after `normalise`."""
    return normalise(answer) == normalise(truth)


def accuracy_by_type(outcomes: Iterable[tuple[str, bool]]) -> dict[str, Estimate]:
    """``(question type, correct)`` pairs → one estimate per type, in alphabetical order of the types."""
    right: Counter[str] = Counter()
    total: Counter[str] = Counter()
    for question_type, correct in outcomes:
        total[question_type] += 1
        right[question_type] += int(correct)
    return {name: wilson(right[name], total[name]) for name in sorted(total)}


def chance_by_type(truths: Iterable[tuple[str, str]]) -> dict[str, float]:
    """Accuracy of always giving a type's most frequent held-out answer, from ``(type, truth)`` pairs.

    This is the strongest constant guess: it reads the truths, which a model cannot.
    """
    answers: dict[str, Counter[str]] = defaultdict(Counter)
    for question_type, truth in truths:
        answers[question_type][normalise(truth)] += 1
    return {name: max(answers[name].values()) / answers[name].total() for name in sorted(answers)}
