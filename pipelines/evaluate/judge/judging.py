"""Judges a model's commentaries: each against the baseline's, in both orders.

Replies are kept as they come, by what they depend on (judge's model, both texts, order and wording): a run
that goes on, and another run with the same texts, ask nothing twice.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from casa_core.errors import DataError
from pipelines.evaluate.judge.baseline import Baseline
from pipelines.evaluate.judge.client import SETTINGS, Judge
from pipelines.evaluate.judge.wording import ALIGNED, BETTER, Verdict, verdict
from pipelines.evaluate.kept.answers import Answer, AnswerStore
from pipelines.storage.atomic import create
from pipelines.storage.uri import Folder

JUDGEMENTS = "judgements.parquet"
ORDERS = ("ab", "ba")
"""The model's commentary first, and second."""
SPOKEN_TOKENS = 120
"""About what is said in an event's 35 seconds, at 150 words a minute."""
MERGED_EVERY = 64
OnReply = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True)
class Court:
    """A judge, what commentaries are compared with, and where replies are kept.

    Attributes:
        baseline: Without one, what the person said.
    """

    judge: Judge
    store: Folder
    baseline: Baseline | None = None

    @property
    def wording(self) -> str:
        """What is asked."""
        return BETTER if self.baseline is None else ALIGNED

    def prompt(self, order: str, own: str, other: str, human: str) -> str:
        """What the judge is asked about a pair."""
        a, b = (own, other) if order == "ab" else (other, own)
        return self.wording.format(a=a, b=b, human=human)

    def cost(self, questions: int) -> tuple[int, int]:
        """Calls and prompt tokens that so many questions take at most; tokens are an estimate."""
        calls, each = 2 * questions, len(self.wording) // 4 + 2 * SPOKEN_TOKENS
        if self.baseline is not None:
            each += sum(map(len, self.baseline.texts.values())) // len(self.baseline.texts) // 4
        return calls, calls * each


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """One reply.

    Attributes:
        order: One of ``ORDERS``.
        verdict: Which commentary won; empty where the reply could not be read.
        reused: Whether the judge was not asked again.
    """

    index: int
    question_id: str
    order: str
    verdict: Verdict
    reply: str
    prompt: str
    prompt_tokens: int
    completion_tokens: int
    reused: bool

    @property
    def won(self) -> bool:
        """Whether the model's commentary did."""
        return self.verdict == ("A" if self.order == "ab" else "B")

    @property
    def lost(self) -> bool:
        """Whether the baseline's won."""
        return self.verdict == ("B" if self.order == "ab" else "A")


def judge_rows(
    court: Court, rows: Sequence[Mapping[str, Any]], on_reply: OnReply = lambda done, total: None
) -> list[Judgement]:
    """Judge the answers of a benchmark; rows without one are left out.

    Args:
        rows: Of :data:`pipelines.evaluate.worker.ROWS`.
        on_reply: Called with the number of replies that are there, and of all.

    Raises:
        DataError: Where the baseline lacks a commentary; nothing was asked.
        ConfigError: Where the judge cannot be asked any more; what it replied is kept.

    Returns:
        Two for each answer, in the rows' order.
    """
    asked = [row for row in rows if row["answer"] is not None]
    prompts = {
        (row["index"], order): court.prompt(order, row["answer"], other, row["truths"][0])
        for row, other in zip(asked, _others(court.baseline, asked), strict=True)
        for order in ORDERS
    }
    known, new = _replies(court, list(prompts.values()), on_reply)
    names = {row["index"]: row["question_id"] for row in asked}
    return [
        _judgement(index, names[index], order, prompt, known[prompt], reused=prompt not in new)
        for (index, order), prompt in prompts.items()
    ]


def write_judgements(folder: Folder, judgements: Sequence[Judgement]) -> None:
    """Write every prompt and reply beside a result, as ``judgements.parquet``."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = [{**asdict(one), "won": one.won} for one in judgements]
    with create(folder / JUDGEMENTS) as file:
        pq.write_table(pa.Table.from_pylist(rows), file)


def read_judgements(folder: Folder) -> list[Judgement]:
    """The judgements beside a result, their replies read by the present rule."""
    found: list[Judgement] = []
    for row in pq.read_table(pa.BufferReader((folder / JUDGEMENTS).read_bytes())).to_pylist():
        known: dict[str, Any] = {name: row[name] for name in row if name not in ("won", "verdict")}
        found.append(Judgement(**known, verdict=verdict(row["reply"])))
    return found


def points(judgements: Sequence[Judgement]) -> dict[int, float]:
    """Share of its judgements that each question won: a tie, and a reply that cannot be read, is no win."""
    found: dict[int, list[bool]] = {}
    for one in judgements:
        found.setdefault(one.index, []).append(one.won)
    return {index: sum(won) / len(won) for index, won in found.items()}


def counts(judgements: Sequence[Judgement]) -> dict[str, int]:
    """How verdicts are distributed, and what was asked now; tokens are the judge's own count."""
    pairs = list(zip(judgements[::2], judgements[1::2], strict=True))
    asked = {one.prompt: one for one in judgements if not one.reused}.values()
    return {
        "judgements": len(judgements),
        "won": sum(one.won for one in judgements),
        "lost": sum(one.lost for one in judgements),
        "ties": sum(one.verdict == "tie" for one in judgements),
        "unreadable": sum(one.verdict == "" for one in judgements),
        "pairs": len(pairs),
        "disagreements": sum((a.won and b.lost) or (a.lost and b.won) for a, b in pairs),
        "asked": len(asked),
        "prompt_tokens": sum(one.prompt_tokens for one in asked),
        "completion_tokens": sum(one.completion_tokens for one in asked),
    }


def account(court: Court, judgements: Sequence[Judgement]) -> dict[str, Any]:
    """What a result says about its judge: who, by which words, whether published win rates are of the same
    kind, and under ``counts`` `counts`."""
    baseline = court.baseline
    return {
        "model": court.judge.model,
        "url": court.judge.url,
        "baseline": "the person's words" if baseline is None else baseline.name,
        "baseline_digest": "" if baseline is None else baseline.digest,
        "wording": "this project's" if baseline is None else "LiveCC's",
        "comparable": baseline is not None,
        "wording_sha256": hashlib.sha256(court.wording.encode()).hexdigest(),
        **SETTINGS,
        "counts": counts(judgements),
    }


def _others(baseline: Baseline | None, rows: Sequence[Mapping[str, Any]]) -> list[str]:
    if baseline is None:
        return [row["truths"][0] for row in rows]
    if missing := [row["question_id"] for row in rows if row["question_id"] not in baseline.texts]:
        raise DataError(
            f"The baseline {baseline.name} has no commentary for {len(missing)} of {len(rows)} questions.",
            f"The first is {missing[0]}.",
            "Name a baseline of the same split; answers are kept, and are not computed again.",
        )
    return [baseline.texts[row["question_id"]] for row in rows]


def _replies(court: Court, prompts: Sequence[str], on_reply: OnReply) -> tuple[dict[str, Answer], set[str]]:
    """The reply to each prompt, and which of them are new."""
    judge, store = court.judge, AnswerStore(court.store, court.judge.identity)
    kept = store.read()
    known = {prompt: kept[key] for prompt in prompts if (key := judge.key(prompt)) in kept}
    new = [prompt for prompt in dict.fromkeys(prompts) if prompt not in known]
    lock, total = threading.Lock(), len(known) + len(new)

    def ask(prompt: str) -> tuple[str, Answer]:
        reply = judge.ask(prompt)
        with lock:  # kept before this thread asks the next
            store.add([(judge.key(prompt), reply)])
            if len(known) % MERGED_EVERY == 0:
                store.merge()
        return prompt, reply

    with ThreadPoolExecutor(judge.at_once) as pool:
        try:
            for future in as_completed([pool.submit(ask, prompt) for prompt in new]):
                prompt, reply = future.result()
                known[prompt] = reply
                on_reply(len(known), total)
        finally:
            pool.shutdown(cancel_futures=True)
            store.merge()
    return known, set(new)


def _judgement(index: int, name: str, order: str, prompt: str, reply: Answer, *, reused: bool) -> Judgement:
    return Judgement(
        index=index,
        question_id=name,
        order=order,
        verdict=verdict(reply.text),
        reply=reply.text,
        prompt=prompt,
        prompt_tokens=reply.prompt_tokens,
        completion_tokens=reply.completion_tokens,
        reused=reused,
    )
