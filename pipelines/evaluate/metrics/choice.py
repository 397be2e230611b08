"""Multiple choice: which option an answer names, by one written rule. Pure functions.

The rule, in order; the first step that finds a letter of an option decides:

1. The answer is a letter, in either case, with or without brackets and punctuation: ``b``, ``(B)``, ``B.``
2. It begins with a letter as a list does: ``B. red``, ``B) red``, ``(B) red``, ``B: red``, ``B, since …``
3. It names a letter as its answer, the last time it does: ``Answer: B``, ``The answer is (B)``, ``option B``.
4. It is the text of one option, or contains, as words, the text of exactly one (of several, the one whose
   text contains all the others): ``red``, ``It is red.``
5. It contains exactly one of the letters as a word by itself, as a capital or in brackets: ``I think B``. The
   article *A* before another word is none.

An answer in which nothing is found is wrong; none is drawn by lot.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from string import ascii_uppercase

from pipelines.evaluate.metrics.base import CategoryMean, Metric, Truth
from pipelines.evaluate.metrics.characters import same_characters, words

LETTERS = "ABCDEFGH"
"""Letters that are looked for where the options are not known."""

_MARKUP = re.compile(r"[*_`#$]+|\\boxed|\\text")
_NOT_ARTICLE = r"(?!\s+(?!(?:and|or|is|because|since|as)\b)[a-z])"  # "A because …", but "A dog" only for "A"
_LETTER = rf"(?:A{_NOT_ARTICLE}|[B-Z])(?![\w'])"
_ALONE = re.compile(r"[\s(\[{<\"']*([A-Za-z])[\s)\]}>.,:;!?\"']*")
_LISTED = re.compile(
    r"\s*(?:[(\[{]\s*([A-Za-z])\s*[)\]}]|([A-Za-z])\s*[).:\]](?!\w\.)|([A-Z]),(?!\s*(?:and\s+)?[A-Z]\b))"
)
_NAMED = re.compile(
    r"\b(?i:answer|option|choice|select|choose|pick)\b"
    r"(?i:\s+(?:is|are|would\s+be|should\s+be|option|choice|letter|number))*\s*[:=\-]?\s*"
    rf"(?:[(\[{{\"']\s*([A-Za-z])\s*[)\]}}\"']|({_LETTER})|([a-z])\s*[.!]?\s*$)"
)
_STANDING = re.compile(rf"[(\[{{]([A-Za-z])[)\]}}]|(?<![\w'])({_LETTER})")


class Choice(Metric):
    """Right where `chosen_letter` is the truth's letter."""

    name = "choice"
    version = "1"
    source = "this project, `pipelines.evaluate.metrics.choice`"

    def score(self, answer: str, truth: Truth) -> float:
        """1 where the answer names the right option; ``truth.answers`` is its letter."""
        letters = ascii_uppercase[: len(truth.options)] or LETTERS
        return float(chosen_letter(answer, truth.options, letters=letters) == truth.answers[0].upper())


class ChoiceByCategory(Choice, CategoryMean):
    """`Choice`, averaged over categories (the tasks of MVBench and of MLVU), each counting the same."""

    name = "choice_by_category"


class Ai2dMatch(Metric):
    """AI2D by the official repository's rule: a capital letter and a full stop at the beginning, else the
    whole answer, after ``Answer: `` is stripped. ``(B)`` and ``B) red`` are wrong by it."""

    name = "ai2d_official"
    version = "1"
    source = "CASA's scripts/eval.py with lmms-eval's ai2d filter"

    def score(self, answer: str, truth: Truth) -> float:
        """1 where the letter, or the whole answer, equals the truth's letter."""
        said = re.sub("^Answer: ", "", answer)
        begins = re.match(r"\s*([A-Z])\.", said)
        return float((begins[1] if begins else said) == truth.answers[0])


def chosen_letter(answer: str, options: Sequence[str] = (), *, letters: str = LETTERS) -> str:
    """The letter of the option that an answer names, by the module's rule; empty where it names none.

    Args:
        answer: A model's answer.
        options: Texts of the options, in the order of their letters; without them step 4 is left out.
        letters: Letters that there are options for, as capitals.
    """
    said = " ".join(same_characters(_MARKUP.sub("", answer)).split())
    steps = (_alone, _listed, _named, lambda text, known: _by_text(text, options, known), _standing)
    return next((letter for step in steps if (letter := step(said, letters))), "")


def _alone(said: str, letters: str) -> str:
    return _known(_ALONE.fullmatch(said), letters)


def _listed(said: str, letters: str) -> str:
    return _known(_LISTED.match(said), letters)


def _named(said: str, letters: str) -> str:
    found = [letter for match in _NAMED.finditer(said) if (letter := _known(match, letters))]
    return found[-1] if found else ""


def _by_text(said: str, options: Sequence[str], letters: str) -> str:
    spoken = _spaced(said)
    texts = {letter: _spaced(option) for letter, option in zip(letters, options, strict=False)}
    found = [letter for letter, text in texts.items() if text.strip() and text in spoken]
    whole = [letter for letter in found if all(texts[other] in texts[letter] for other in found)]
    return whole[0] if len(whole) == 1 else ""


def _standing(said: str, letters: str) -> str:
    found = {letter for match in _STANDING.finditer(said) if (letter := _known(match, letters))}
    return found.pop() if len(found) == 1 else ""


def _known(match: re.Match[str] | None, letters: str) -> str:
    letter = next((group for group in match.groups() if group), "").upper() if match else ""
    return letter if letter and letter in letters else ""


def _spaced(text: str) -> str:
    return f" {' '.join(words(text))} "
