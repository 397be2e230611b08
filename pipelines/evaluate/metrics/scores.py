"""Numbers from answers, and how sure one may be of them. Pure functions: no Ray, no model, no files.

Two measures carry the quickstart:

* **Exact match**: an answer is right when it equals the truth after `normalise`. Question types are weighted
  equally, because raw test sets are lopsided (three of four easy-vqa questions are yes/no).
* **Word-event F1** for live captions: an event is ``(frame index, word)``: the word was said at that frame. A
  spoken and a true event may be paired when the words are equal and the frames at most ``tolerance`` apart;
  each event pairs once, and the pairing is the largest possible one.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

Z_95 = 1.959963984540054
"""Two-sided 95 % quantile of the normal distribution: every interval here is a 95 % one."""

Event = tuple[int, str]
"""A word and the index of the frame at which it is said."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A share between 0 and 1 with its 95 % confidence interval.

    Attributes:
        value: The point estimate.
        low, high: Ends of the interval; ``low <= value <= high``.
        count: How many items (answers, clips) it rests on.
    """

    value: float
    low: float
    high: float
    count: int


def normalise(text: str) -> str:
    """Outer white space, case and one trailing full stop carry no meaning: "Yes. " equals "yes"."""
    return text.strip().lower().removesuffix(".").rstrip()


def exact_match(answer: str, truth: str) -> bool:
    """Whether the two say the same after `normalise`."""
    return normalise(answer) == normalise(truth)


def wilson(correct: int, count: int) -> Estimate:
    """A share of successes with Wilson's score interval, which stays honest at 0 % and 100 %.

    Raises:
        ValueError: For ``count`` below 1 or ``correct`` outside ``0…count``.
    """
    if count < 1 or not 0 <= correct <= count:
        raise ValueError(f"a share needs 0 <= correct <= count and count >= 1, got {correct} of {count}")
    share = correct / count
    denominator = 1 + Z_95**2 / count
    centre = (share + Z_95**2 / (2 * count)) / denominator
    spread = Z_95 / denominator * math.sqrt(share * (1 - share) / count + Z_95**2 / (4 * count**2))
    # Exactly 0 and 1 at the ends; rounding would leave them a few 1e-17 off the point estimate.
    low = 0.0 if correct == 0 else centre - spread
    high = 1.0 if correct == count else centre + spread
    return Estimate(share, low, high, count)


def equal_weight_mean(groups: Mapping[str, Estimate]) -> Estimate:
    """The mean over groups, each counting the same however many items it has.

    The interval combines the groups' own intervals (Zou and Donner's recovery of variances), so that it
    neither collapses at 100 % nor depends on a random resampling.

    Raises:
        ValueError: Without any group.
    """
    if not groups:
        raise ValueError("a mean over question types needs at least one type")
    estimates = list(groups.values())
    value = sum(e.value for e in estimates) / len(estimates)
    below = math.sqrt(sum((e.value - e.low) ** 2 for e in estimates)) / len(estimates)
    above = math.sqrt(sum((e.high - e.value) ** 2 for e in estimates)) / len(estimates)
    count = sum(e.count for e in estimates)
    return Estimate(value, max(0.0, value - below), min(1.0, value + above), count)


def accuracy_by_type(outcomes: Iterable[tuple[str, bool]]) -> dict[str, Estimate]:
    """``(question type, correct)`` pairs to one estimate a type, in alphabetical order of the types."""
    right: Counter[str] = Counter()
    total: Counter[str] = Counter()
    for question_type, correct in outcomes:
        total[question_type] += 1
        right[question_type] += int(correct)
    return {name: wilson(right[name], total[name]) for name in sorted(total)}


def chance_by_type(truths: Iterable[tuple[str, str]]) -> dict[str, float]:
    """What always giving a type's most frequent held-out answer would score, from ``(type, truth)`` pairs.

    This is the strongest constant guess: it reads the truths, which no honest model can.
    """
    answers: dict[str, Counter[str]] = defaultdict(Counter)
    for question_type, truth in truths:
        answers[question_type][normalise(truth)] += 1
    return {name: max(answers[name].values()) / answers[name].total() for name in sorted(answers)}


def word_events(texts: Sequence[str]) -> list[Event]:
    """The words said at each frame: ``["a red", "", "ball."]`` → ``[(0, "a"), (0, "red"), (2, "ball")]``."""
    words = ((frame, normalise(word)) for frame, text in enumerate(texts) for word in text.split())
    return [(frame, word) for frame, word in words if word]


def paired_events(
    spoken: Iterable[Event], true: Iterable[Event], tolerance: int
) -> list[tuple[Event, Event]]:
    """The largest one-to-one pairing ``(spoken, true)`` of equal words at most ``tolerance`` frames apart.

    Words do not compete with one another, and for one word the frames lie on a line: there, pairing the
    earliest spoken with the earliest true event whenever they are close enough is optimal (by exchange: the
    tests check it against all pairings).
    """
    spoken_frames, true_frames = _frames_by_word(spoken), _frames_by_word(true)
    pairs: list[tuple[Event, Event]] = []
    for word, frames in spoken_frames.items():
        others = true_frames.get(word, [])
        i = j = 0
        while i < len(frames) and j < len(others):
            gap = frames[i] - others[j]
            if abs(gap) <= tolerance:
                pairs.append(((frames[i], word), (others[j], word)))
                i, j = i + 1, j + 1
            elif gap < 0:
                i += 1
            else:
                j += 1
    return pairs


def _frames_by_word(events: Iterable[Event]) -> dict[str, list[int]]:
    frames: dict[str, list[int]] = defaultdict(list)
    for frame, word in sorted(events):
        frames[word].append(frame)
    return frames


@dataclass(frozen=True, slots=True)
class EventCounts:
    """One clip's account: events matched, said by the model, and in the truth."""

    matched: int
    spoken: int
    true: int

    @classmethod
    def of_clip(cls, spoken: Sequence[str], truth: Sequence[str], tolerance: int) -> EventCounts:
        """Count a clip from what was said and what should have been said at each of its frames."""
        said, meant = word_events(spoken), word_events(truth)
        return cls(len(paired_events(said, meant, tolerance)), len(said), len(meant))


@dataclass(frozen=True, slots=True)
class EventScore:
    """Precision, recall and F1 over all events of all clips (micro-averaged)."""

    precision: float
    recall: float
    f1: Estimate
    matched: int
    spoken: int
    true: int


def event_f1(matched: int | np.ndarray, spoken: int | np.ndarray, true: int | np.ndarray) -> np.ndarray:
    """F1 = 2·matched / (spoken + true), elementwise; 1 where nothing was to be said and nothing was.

    Silence where there are truths therefore scores 0, although its precision is undefined.
    """
    total = np.asarray(spoken) + np.asarray(true)
    return np.where(total == 0, 1.0, 2 * np.asarray(matched) / np.maximum(total, 1))


def event_score(clips: Sequence[EventCounts], *, resamples: int = 2000, seed: int = 0) -> EventScore:
    """Score a set of clips. F1's interval resamples whole clips, since the words of one clip hang together.

    Raises:
        ValueError: Without any clip.
    """
    if not clips:
        raise ValueError("a word-event score needs at least one clip")
    counts = np.array([(c.matched, c.spoken, c.true) for c in clips], dtype=np.int64)
    matched, spoken, true = (int(n) for n in counts.sum(axis=0))
    value = float(event_f1(matched, spoken, true))
    picks = np.random.default_rng(seed).integers(0, len(clips), size=(resamples, len(clips)))
    drawn = counts[picks].sum(axis=1)
    low, high = np.quantile(event_f1(drawn[:, 0], drawn[:, 1], drawn[:, 2]), [0.025, 0.975])
    return EventScore(
        precision=matched / spoken if spoken else 0.0,
        recall=matched / true if true else 0.0,
        f1=Estimate(value, min(float(low), value), max(float(high), value), len(clips)),
        matched=matched,
        spoken=spoken,
        true=true,
    )
