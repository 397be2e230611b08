"""OVO-Bench's annotations as rows, one for each question, with its prompts in their own words."""

from __future__ import annotations

from collections.abc import Mapping
from string import ascii_uppercase
from typing import Any

ONLY = "Do not include any additional text or explanation in your response."
YES_NO = f"Answer only with “Yes” or “No”.\n{ONLY}"
REPEATED = (
    "You're watching a video in which people may perform a certain type of action repetively.\n"
    "The person performing this kind of action are referred to as 'they' in the following statement.\n"
    "You're task is to count how many times have different people in the video perform this kind of action "
    "in total.\nOne complete motion counts as one.\n"
    "Now, answer the following question: How many times did they {}?\n"
    "Provide your answer as a single number (e.g., 0, 1, 2, 3…) indicating the total count.\n" + ONLY
)
STEP = (
    "You're watching a tutorial video which contain a sequential of steps.\n"
    "The following is one step from the whole procedures:\n{}\n"
    "Your task is to determine if the man or woman in the video is currently performing this step.\n" + YES_NO
)
ENOUGH = (
    "You're responsible of answering questions based on the video content.\n"
    "The following question are relevant to the latest frames, i.e. the end of the video.\n{}\n"
    "Decide whether existing visual content, especially latest frames, i.e. frames that near the end of the "
    "video, provide enough information for answering the question.\n" + YES_NO
)
FORWARD = {
    "REC": (REPEATED, "activity", "count"),
    "SSR": (STEP, "step", "type"),
    "CRR": (ENOUGH, "question", "type"),
}
"""Forward task → its prompt, what stands in it, and where the truth is; a ``type`` is 1 for yes."""


def unroll(annotations: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row for each question; a forward task's annotation has several."""
    rows = []
    for one in annotations:
        task = str(one.get("task"))
        for number, test in enumerate(one.get("test_info") or [{}] if task in FORWARD else [one]):
            right = test.get(FORWARD[task][2] if task in FORWARD else "gt")
            if task in ("SSR", "CRR"):
                right = {"0": "No", "1": "Yes"}.get(str(right))
            row = {"id": f"{one.get('id')}_{number}" if task in FORWARD else str(one.get("id"))}
            row |= {name: one.get(name) for name in ("task", "video")}
            row |= {"realtime": test.get("realtime"), "answer": None if right is None else str(right)}
            rows.append(row | {"prompt": _prompt(one | test), "options": one.get("options") or []})
    return rows


def _prompt(annotation: Mapping[str, Any]) -> str | None:
    """The prompt of one question; None where what stands in it is missing."""
    form, column, _ = FORWARD.get(str(annotation.get("task")), ("", "question", ""))
    text, options = annotation.get(column), annotation.get("options") or []
    if not text:
        return None
    if form:
        return form.format(text)
    listed = "; ".join(
        f"{letter}. {option}" for letter, option in zip(ascii_uppercase, options, strict=False)
    )
    return (
        f"Question: {text}\nOptions:\n{listed};\n"
        f"Respond only with the letter corresponding to your chosen option (e.g., A, B, C).\n{ONLY}"
    )
