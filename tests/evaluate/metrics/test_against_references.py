"""Every metric against the reference evaluation's own functions, and each difference explained.

The reference is called as CASA's official evaluation script calls it. Where the two differ, one of the
metric's named reasons must hold, and each reason must occur, so that none is kept that explains nothing.
"""

from __future__ import annotations

import copy
import importlib
import math
import random
import re
import unicodedata
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest

from pipelines.evaluate.metrics.base import Truth
from pipelines.evaluate.metrics.by_name import METRICS
from pipelines.evaluate.metrics.mme import COGNITION, PERCEPTION
from pipelines.evaluate.metrics.ocrbench import CATEGORIES, FORMULAS
from pipelines.evaluate.metrics.vqa_text import vqa_normalise
from tests.support.evaluate.answer_pairs import pairs
from tests.support.evaluate.lmms_eval_rules import harness, rules

PAIRS = 3000


@pytest.fixture(scope="module", autouse=True)
def lmms():
    with harness():
        yield


def other_form(*texts):
    """Accents or quotation marks are written in two forms."""
    return any(
        unicodedata.normalize("NFC", t) != t or set(t) & set("\u2018\u2019\u201c\u201d") for t in texts
    )


def outer_space(*texts):
    """White space around the answer, or before its full stop, counts for the reference."""
    return any(re.search(r"^\s|\s\.*\s*$", t) for t in texts)


def runs_of_space(*texts):
    """The reference compares white space as it is, or counts it into the length."""
    return any(" ".join(t.split()) != t for t in texts)


def stop_in_truth(answer, *truths):
    """The reference strips the answer's full stop even where the truth ends with one."""
    return any(t.strip().endswith(".") for t in truths)


def longer_in_capitals(*texts):
    """The reference takes the length of the text in capitals: ß is SS there."""
    return any(len(t.upper()) != len(t) for t in texts)


def differences(cases, ours, theirs, reasons):
    """How often each reason explains a difference.

    Args:
        cases: ``(answer, truths)``.
        ours, theirs: Functions of a case that score it.
        reasons: Predicates of (answer, *truths).
    """
    found = Counter()
    for answer, truths in cases:
        mine, reference = ours(answer, truths), theirs(answer, truths)
        if not math.isclose(mine, reference, abs_tol=1e-9):
            holding = [reason.__name__ for reason in reasons if reason(answer, *truths)]
            assert holding, f"{answer!r} for {truths!r} is {mine} here and {reference} there"
            found.update(holding)
    return found


def scored(name, category=""):
    return lambda answer, truths: METRICS[name].score(answer, Truth(answers=truths, category=category))


def test_relaxed_accuracy_differs_only_in_space_stops_and_forms_of_characters():
    chartqa = rules("chartqa")

    def theirs(answer, truths):
        result = chartqa.chartqa_process_results(
            {"type": "human_test", "answer": truths[0]}, [answer.rstrip(".")]
        )
        assert result["relaxed_human_split"] == result["relaxed_overall"]
        return result["relaxed_overall"]

    reasons = (other_form, outer_space, stop_in_truth)
    found = differences(pairs(PAIRS, seed=1), scored("relaxed_accuracy"), theirs, reasons)
    assert found.keys() == {reason.__name__ for reason in reasons}
    assert found.total() < 0.1 * PAIRS


@pytest.mark.parametrize("truths", [1, 3])
def test_anls_differs_only_in_what_it_takes_for_the_length(truths):
    anls = importlib.import_module("lmms_eval.api.metrics").anls

    def theirs(answer, right):
        return anls(references=list(right), predictions=[answer])["anls"]

    reasons = (other_form, runs_of_space, longer_in_capitals)
    found = differences(pairs(PAIRS, seed=2, truths=truths), scored("anls"), theirs, reasons)
    assert found.keys() == {reason.__name__ for reason in reasons}


@pytest.mark.parametrize("truths", [1, 3])
def test_anls_star_is_the_authors_on_texts_but_for_stops_in_the_truth(truths):
    star = pytest.importorskip("anls_star").anls_score

    def theirs(answer, right):
        return star(gt=tuple(right), pred=answer.rstrip(".").strip())

    reasons = (other_form, outer_space, stop_in_truth)
    found = differences(pairs(PAIRS, seed=3, truths=truths), scored("anls_star"), theirs, reasons)
    assert found.keys() == {reason.__name__ for reason in reasons}


def test_vqa_accuracy_is_textvqas_but_for_forms_of_characters():
    textvqa = rules("textvqa")
    rng = random.Random(4)
    cases = []
    for answer, right in pairs(PAIRS, seed=4, truths=3):
        cases.append((answer, tuple(rng.choice((*right, answer)) for _ in range(10))))

    def theirs(answer, right):
        doc = {"answers": list(right), "question_id": 0}
        return textvqa.textvqa_process_results(copy.deepcopy(doc), [answer])["exact_match"]

    assert differences(cases, scored("vqa_accuracy"), theirs, (other_form,)).keys() == {"other_form"}
    values = {scored("vqa_accuracy")("red", ("red",) * n + ("blue",) * (10 - n)) for n in range(11)}
    assert sorted(values) == pytest.approx([0, 0.3, 0.6, 0.9, 1])


def test_the_normalisation_of_answers_is_textvqas_up_to_thirty_two_full_stops():
    processor = importlib.import_module("lmms_eval.tasks._task_utils.vqa_eval_metric").EvalAIAnswerProcessor()
    contractions = (*processor.CONTRACTIONS, *processor.CONTRACTIONS.values())
    texts = [answer for answer, _ in pairs(PAIRS, seed=5)] + [f"It {word} so" for word in contractions]
    assert [vqa_normalise(text) for text in texts] == [processor(text) for text in texts]
    # re.sub is given re.UNICODE, which is 32, where the number of replacements belongs.
    assert (vqa_normalise("." * 33), processor("." * 33)) == ("", ".")


@pytest.mark.parametrize("kind", ["Scene Text-centric VQA", FORMULAS])
def test_ocrbench_differs_only_in_stops_space_and_forms_of_characters(kind):
    ocrbench = rules("ocrbench")

    def theirs(answer, truths):
        doc = {
            "answer": list(truths),
            "dataset": "HME100k" if kind == FORMULAS else "ICDAR13",
            "question_type": kind,
        }
        return ocrbench.ocrbench_process_results(doc, [answer.rstrip(".")])["ocrbench_accuracy"]["score"]

    reasons = (other_form, outer_space, stop_in_truth)
    found = differences(pairs(PAIRS, seed=6, truths=2), scored("ocrbench", kind), theirs, reasons)
    assert {"other_form", "stop_in_truth"} <= found.keys() <= {reason.__name__ for reason in reasons}


def test_ocrbenchs_thousand_answers_add_up_to_the_same_number(tmp_path):
    """The reference adds them up in a table of the module that has to be cleared before."""
    ocrbench, rng = rules("ocrbench"), random.Random(7)
    sizes = {
        name: {"Text Recognition": 50, FORMULAS: 100}.get(part, 200) for name, part in CATEGORIES.items()
    }
    truths = [Truth(answers=("x",), category=name) for name, size in sizes.items() for _ in range(size)]
    scores = np.array([float(rng.random() < 0.7) for _ in truths])
    for _ in range(2):
        for name in ocrbench.OCRBench_score:
            ocrbench.OCRBench_score[name] = 0
        results = [
            {"question_type": t.category, "score": int(s)} for t, s in zip(truths, scores, strict=True)
        ]
        total = ocrbench.ocrbench_aggregate_accuracy(results, SimpleNamespace(output_path=str(tmp_path)))
        assert METRICS["ocrbench"].total(scores, truths) == pytest.approx(1000 * total)
    (report,) = tmp_path.rglob("ocrbench_results.txt")
    for name, count in METRICS["ocrbench"].parts(scores, truths).items():
        assert re.search(rf"^{name}\(Total \d+\): {count:.0f}$", report.read_text(), re.MULTILINE)


def test_mme_is_the_reference_answer_for_answer_and_in_both_totals():
    mme, rng = rules("mme"), random.Random(8)
    answers = (
        "yes",
        "No.",
        "Y",
        "n",
        "yes, it is",
        "not",
        "know",
        "no yes",
        "Yesno",
        "",
        "  yes",
        "maybe",
        "y.",
        "NO!",
    )
    truths, said, theirs = [], [], []
    for category in (*PERCEPTION, *COGNITION):
        for picture in range(20):
            for right in ("Yes", "No"):
                answer = rng.choice(answers)
                truths.append(Truth(answers=(right,), category=category, group=f"{picture}.png"))
                said.append(answer)
                doc = {"answer": right, "category": category, "question_id": f"{picture}.png"}
                theirs.append(mme.mme_process_results(doc, [answer]))
    flat = [next(iter(result.values())) for result in theirs]
    scores = METRICS["mme"].scores(said, truths)
    assert scores.tolist() == [result["score"] for result in flat]
    assert METRICS["mme"].total(scores, truths) == pytest.approx(mme.mme_aggregate_results(flat))
    parts = METRICS["mme"].parts(scores, truths)
    for name, part in (("mme_perception_score", "Perception"), ("mme_cognition_score", "Cognition")):
        own = [result[name] for result in theirs if name in result]
        assert parts[part] == pytest.approx(mme.mme_aggregate_results(own))


def test_gqas_exact_match_differs_only_in_space_and_forms_of_characters():
    exact = importlib.import_module("lmms_eval.api.metrics").exact_match_hf_evaluate

    def theirs(answer, truths):
        options = {"ignore_case": True, "ignore_punctuation": True}
        return float(exact(predictions=[answer], references=[truths[0]], **options)["exact_match"])

    def space(*texts):
        """White space is left as it is, even where a punctuation mark beside it was removed."""
        return any(re.search(r"^\W|\s\W*$|\s\W*\s|\n", text) for text in texts)

    reasons = (other_form, space)
    found = differences(pairs(PAIRS, seed=9), scored("gqa_match"), theirs, reasons)
    assert found.keys() == {reason.__name__ for reason in reasons}


def test_realworldqas_open_answers_differ_only_in_stops_space_and_forms_of_characters():
    realworldqa = rules("realworldqa")
    cases = [case for case in pairs(PAIRS, seed=10) if case[1][0].strip().upper() not in "ABCD"]

    def theirs(answer, truths):
        return realworldqa.realworldqa_process_results({"answer": truths[0]}, [answer.rstrip(".")])[
            "exact_match"
        ]

    reasons = (other_form, outer_space, stop_in_truth)
    found = differences(cases, scored("realworldqa_match"), theirs, reasons)
    assert found.keys() == {reason.__name__ for reason in reasons}
