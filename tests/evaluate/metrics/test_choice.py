"""Which option an answer names: by the written rule, and beside the functions of the reference evaluation."""

from __future__ import annotations

import importlib
import random
import re
from collections import Counter

import pytest

from pipelines.evaluate.metrics.base import Truth
from pipelines.evaluate.metrics.by_name import METRICS
from pipelines.evaluate.metrics.choice import chosen_letter
from tests.support.evaluate.answer_pairs import pairs
from tests.support.evaluate.lmms_eval_rules import harness, rules

OPTIONS = ("red", "dark red", "blue", "a dog")


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        ("(A)", "A"), ("A) red", "A"), ("Answer: A", "A"), ("The answer is B.", "B"), ("b", "B"),
        ("B", "B"), ("B.", "B"), ("[b]", "B"), ("**B**", "B"), ("\nA\n", "A"), ("$\\boxed{C}$", "C"),
        ("A. red", "A"), ("A.red", "A"), ("a. red", "A"), ("(c) blue", "C"), ("B: dark red", "B"),
        ("B, since it is", "B"), ("C. blue because A is wrong", "C"), ("Answer: A. red", "A"),
        ("The correct answer is D. a dog", "D"), ("Final answer: **(D)**", "D"),
        ("the best option is (c).", "C"), ("Option C looks right", "C"), ("The answer is: b", "B"),
        ("I choose 'B'", "B"), ("It could be A, but the answer is B", "B"), ("red", "A"), ("Red.", "A"),
        ("It is dark red.", "B"), ("Answer: red", "A"), ("The answer is a dog", "D"), ("A dog", "D"),
        ("a dog and a cat", "D"), ("The answer is A dog", "D"), ("I think B", "B"), ("A is correct", "A"),
        ("\uff08B\uff09", "B"), ("My guess would be (d)", "D"), ("", ""), ("none", ""), ("I", ""),
        ("E", ""), ("A and B", ""), ("A, B, and C", ""), ("D.C. is it", ""), ("red or blue", ""),
        ("a cat", ""), ("A cat", ""), ("The answer is a cat", ""), ("Ambiguous", ""),
    ],
)  # fmt: skip
def test_the_letter_is_found_by_the_written_rule(answer, letter):
    assert chosen_letter(answer, OPTIONS, letters="ABCD") == letter


def test_letters_there_is_no_option_for_are_no_answer():
    assert METRICS["choice"].score("D", Truth(answers=("C",), options=("x", "y", "z"))) == 0
    assert chosen_letter("D", ("x", "y", "z"), letters="ABC") == ""
    assert chosen_letter("The answer is E", letters="ABCDE") == "E"


def test_letters_as_options_texts_do_not_hide_the_letter_that_was_asked_for():
    diagram = Truth(answers=("B",), options=("C", "A", "D", "B"))
    assert [METRICS["choice"].score(answer, diagram) for answer in ("B", "B. A", "A")] == [1, 1, 0]


TEMPLATES = (
    "{L}", "{L}.", "({L})", "{L})", "{L}. {T}", "({L}) {T}", "{L}) {T}", "{L}: {T}", "Answer: {L}",
    "The answer is {L}.", "The answer is ({L}).", "The correct answer is {L}. {T}",
    "The best option is {L}", "The correct option is ({L}) {T}", "I choose {L}", "Answer: ({L})",
    "answer is {L}",
)  # fmt: skip
TEXTS = ("a person runs", "two cars", "left", "from the box", "it opens the door", "12", "nothing happens")


def usual(count, letters):
    """Answers in the usual forms, with the letter they name and the options' texts."""
    rng = random.Random(11)
    for _ in range(count):
        options = rng.sample(TEXTS, len(letters))
        at = rng.randrange(len(letters))
        yield rng.choice(TEMPLATES).format(L=letters[at], T=options[at]), letters[at], tuple(options)


def reference(name):
    """The reference's function (answer, options, letter) → whether it is right."""
    module = rules(name)
    if name == "mvbench":
        return lambda answer, options, letter: module.mcq_acc(letter, answer)
    if name == "nextqa":
        return lambda answer, options, letter: (
            module.parse_multi_choice_response(
                answer, list("ABCDE"), dict(zip("ABCDE", options, strict=True))
            )
            == letter
        )
    if name == "perceptiontest.val":
        doc = {"video_name": "v", "question": "q"}
        return lambda answer, options, letter: module.perceptiontest_val_process_results_mc(
            {**doc, "answer_id": "ABCD".index(letter)}, [answer]
        )["accuracy"]["correct"]
    return lambda answer, options, letter: module.extract_characters_regex(answer) == letter


@pytest.mark.parametrize("name", ["videomme", "mlvu", "mvbench", "nextqa", "perceptiontest.val"])
def test_answers_in_the_usual_forms_are_read_as_the_reference_reads_them(name):
    """All 1500, but for ``A) …`` and ``A: …``, for which NExT-QA's reference draws a letter by lot."""
    letters = {"nextqa": "ABCDE", "perceptiontest.val": "ABC"}.get(name, "ABCD")
    with harness():
        right = reference(name)
        for answer, letter, options in usual(1500, letters):
            assert chosen_letter(answer, options, letters=letters) == letter
            drawn = name == "nextqa" and re.match(r"[A-E][):]", answer)
            assert drawn or right(answer, options, letter), answer


ALONE = re.compile(r"(?<![^\W_])[A-D](?![^\W_])")


def in_lower_case(answer):
    """The reference knows capitals only."""
    return re.search(r"\b[a-d]\b", answer)


def an_options_text(answer):
    """The reference does not look at the options."""
    return any(option in answer.lower() for option in OPTIONS)


def inside_a_word(answer):
    """The reference falls back on any capital, as the A of *Ambiguous*."""
    return not ALONE.search(answer)


def the_article(answer):
    """The reference takes the A of *A dog* for the letter."""
    return re.search(r"\bA\s+[a-z]", answer)


def several_letters(answer):
    """The reference takes the last one of the form that it trusts most."""
    return len(set(ALONE.findall(answer))) > 1


def glued_to_a_word(answer):
    """The reference takes the A of *DNA*, as it looks for a capital and a blank anywhere."""
    return re.search(r"\w[A-D](?:[.):\s]|$)|[A-D]['_]", answer)


def after_the_answer_is(answer):
    """The reference takes any capital after these words, as the B of *the answer is A Because*."""
    return re.search(r"answer is .*[A-D]", answer)


def test_adversarial_answers_are_read_otherwise_for_seven_reasons_only():
    reasons = (
        in_lower_case, an_options_text, inside_a_word, the_article, several_letters, glued_to_a_word,
        after_the_answer_is,
    )  # fmt: skip
    rng, found = random.Random(12), Counter()
    answers = [answer for answer, _ in pairs(1500, seed=12)]
    pieces = (
        "A",
        "B",
        "b",
        "(C)",
        "D.",
        "a dog",
        "A cat",
        "red",
        "and",
        "not",
        "Because",
        "the answer is",
        "DNA",
    )
    answers += [" ".join(rng.choices(pieces, k=rng.randint(1, 4))) for _ in range(1500)]
    with harness():
        extract = importlib.import_module("lmms_eval.tasks._task_utils.mcq_extract").extract_mcq_answer
        for answer in answers:
            mine, reference = chosen_letter(answer, OPTIONS, letters="ABCD"), extract(answer, list("ABCD"))
            if mine != reference:
                holding = [reason.__name__ for reason in reasons if reason(answer)]
                assert holding, f"{answer!r} is {mine!r} here and {reference!r} there"
                found.update(holding)
    assert found.keys() == {reason.__name__ for reason in reasons}


def test_ai2ds_official_rule_is_the_official_one_and_what_it_counts_right_is_right_by_ours():
    rng = random.Random(13)
    answers = [answer for answer, _ in pairs(1000, seed=13)] + [answer for answer, *_ in usual(1000, "ABCD")]
    answers += [f"Answer: {answer}" for answer in answers[-300:]]
    with harness():
        filtered = rules("ai2d").MultiChoiceRegexFilter(regex_pattern="([A-Z])\\.")
        for answer in answers:
            at = rng.randrange(4)
            said = filtered.apply([[re.sub("^Answer: ", "", answer)]], [{}])[0]
            truth = Truth(answers=("ABCD"[at],), options=OPTIONS)
            official = METRICS["ai2d_official"].score(answer, truth)
            assert official == (said == "ABCD"[at])
            assert METRICS["choice"].score(answer, truth) >= official
