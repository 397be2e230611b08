"""The official streaming protocol: a frame of 896² pixels and 16 greedy tokens a turn, batch 1.

The end of a sequence is suppressed; the stop token that would end a turn's words is recorded with the next
frame, as in :class:`casa_core.engine.engine.StreamSession`. Preprocessing is outside the time to first
token, which is image encoding and the prefill of the new frame.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import Any

from benchmarks.gpu.common import (
    Backbone,
    Frame,
    Setting,
    build,
    copy_bandwidth,
    freed,
    record,
    relative_error,
)
from benchmarks.gpu.common import tokens as random_tokens
from casa_core.decoding.decode_step import DecodeStep
from casa_core.decoding.kv_batch import KVBatch, TokenChunk
from casa_core.engine.requests import SamplingParams
from casa_core.engine.slot_pool import SlotPool
from casa_core.model import CasaForConditionalGeneration

WORDS, PROMPT, STOP, IMAGE = 16, 20, 1, 2
CHECK_LIMIT = 6e-2
HELIUM, QWEN = "helium", "qwen"
MODELS: dict[str, tuple[Backbone, dict[str, Any]]] = {
    "CASA-Helium1-VL-2B": (HELIUM, {}),
    "CASA-Helium1-VL-2B-Shared": (HELIUM, {"shared_projections": True}),
    "CASA-Qwen2_5-VL-3B": (QWEN, {}),
    "Helium1-VL-2B": (HELIUM, {"kind": "insertion"}),
    "Q-Former-32": (HELIUM, {"kind": "qformer", "qformer_queries": 32}),
    "Q-Former-64": (HELIUM, {"kind": "qformer", "qformer_queries": 64}),
    "Q-Former-128": (HELIUM, {"kind": "qformer", "qformer_queries": 128}),
}
PUBLISHED = {
    "Helium1-VL-2B": "80 → 459 ms, 89.5 → 20.1 tok/s, 266,773 tokens, 34.2 GiB",
    "CASA-Helium1-VL-2B": "64 → 64 ms, 59.2 → 58.9 tok/s, 4,629 tokens, 6.4 GiB",
    "CASA-Helium1-VL-2B-Shared": "65 → 65 ms, 59.0 → 59.1 tok/s, 4,629 tokens, 5.7 GiB",
    "CASA-Qwen2_5-VL-3B": "74 → 73 ms, 40.7 → 40.6 tok/s, 4,653 tokens, 8.1 GiB",
}
"""Official repository, 256 turns on one H100 80 GB."""


@dataclass(frozen=True, slots=True)
class Turn:
    """Seconds to the first token and of the words after it; tokens in the text KV."""

    first: float
    words: float
    kv_tokens: int


def run(setting: Setting, model: str, turns: int) -> None:
    """One model: check, warm up, measure."""
    backbone, fusion = MODELS[model]
    with freed(setting):
        built = build(backbone, fusion, setting)
        check = _check(built, setting)
        _session(built, setting, 2)
        setting.forget_peak()
        found, last_slots = _session(built, setting, turns)
        record("stream", model, _summary(found, turns) | {
            "peak_gib": setting.peak_gib(),
            "floor_tok_s": round(_floor(built, last_slots, setting), 1),
            "incremental_error": check,
            "published_h100": PUBLISHED.get(model, ""),
        }, setting)  # fmt: skip


def _side(setting: Setting) -> int:
    return 56 if setting.tiny else 896


def _extension(ids: list[int], frame: Frame) -> TokenChunk:
    """Tokens of which the last stands after the frame."""
    return TokenChunk(ids, [len(ids) - 1], [frame.patches_PE], [frame.grid], [frame.tokens])


def _check(model: CasaForConditionalGeneration, setting: Setting) -> float:
    """Two turns read turn by turn and word by word give the logits of one forward over both."""
    frames = [Frame.of(model, _side(setting), setting) for _ in range(2)]
    ids = [random_tokens(PROMPT, model), random_tokens(WORDS, model)]
    parts, whole = KVBatch(model, 1), KVBatch(model, 1)
    for frame, words in zip(frames, ids, strict=True):
        parts.extend([_extension([*words, IMAGE], frame)])
    by_word = [parts.extend([TokenChunk([word])]) for word in ids[1]]
    both = TokenChunk(
        [*ids[0], IMAGE, *ids[1], IMAGE, *ids[1]],
        [PROMPT, PROMPT + 1 + WORDS],
        [frame.patches_PE for frame in frames],
        [frame.grid for frame in frames],
        [frame.tokens for frame in frames],
    )
    error = relative_error(by_word[-1], whole.extend([both]))
    assert error < CHECK_LIMIT, f"word by word differs from one forward by {error:.1e}"
    return error


def _session(
    model: CasaForConditionalGeneration, setting: Setting, turns: int
) -> tuple[list[Turn], SlotPool]:
    """A stream of so many turns, or as many as the time allows."""
    slots = SlotPool(model, 1, decode=DecodeStep(model))
    slot = slots.allocate(SamplingParams(stop_bias=-1e9), stop_ids=(STOP,))
    pending, found, spent = random_tokens(PROMPT, model), [], 0.0
    frames = [Frame.of(model, _side(setting), setting) for _ in range(4)]
    for turn in range(turns):
        extension = _extension([*pending, IMAGE], frames[turn % len(frames)])
        generated: list[int] = []

        def step(next_tokens: TokenChunk) -> None:
            generated.append(slots.step({slot: next_tokens})[slot])  # noqa: B023

        def words() -> None:
            while len(generated) < WORDS:  # noqa: B023
                step(TokenChunk(generated[-1:]))  # noqa: B023

        first, rest = setting.taken(lambda: step(extension)), setting.taken(words)  # noqa: B023
        pending = [generated[-1], STOP]
        found.append(Turn(first, rest, slots.kv_length(slot)))
        spent += first + rest
        if spent > setting.seconds:
            break
    return found, slots


def _summary(found: list[Turn], turns: int) -> dict[str, Any]:
    part = max(len(found) // 10, 1)
    ends = {"first": found[:part], "last": found[-part:]}
    summary: dict[str, Any] = {"turns": len(found), "turns_asked": turns, "kv_tokens": found[-1].kv_tokens}
    for name, those in ends.items():
        summary[f"ttft_ms_{name}"] = round(statistics.median(turn.first for turn in those) * 1e3, 2)
        seconds = statistics.median(turn.words for turn in those)
        summary[f"decode_tok_s_{name}"] = round((WORDS - 1) / seconds, 1)
    return summary


def _floor(model: CasaForConditionalGeneration, slots: SlotPool, setting: Setting) -> float:
    """Tokens a second if a step only read its weights and the KV it attends to, at the copy's bandwidth."""
    weights = sum(p.nbytes for p in model.language_model.parameters()) + model.lm_head.weight.nbytes
    embedding = model.language_model.embed_tokens.weight
    weights -= embedding.nbytes  # one row of it is read; a tied head was counted as the head
    text = slots.sequences.text
    in_use = text.nbytes * max(text.lengths) / next(iter(text.keys.values())).shape[2]
    return copy_bandwidth(setting) / (weights + in_use + slots.sequences.windows.nbytes)
