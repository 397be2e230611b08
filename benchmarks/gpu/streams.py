"""How many live streams of 448² pixels at 2 frames a second one device holds with every frame on time.

All streams' frames come at once, twice a second, the worst case: encoded and prefilled together, then a few
words each, decoded together. A number of streams holds if no round of a trial takes more than half a second.
Every stream begins with a text of ``history`` tokens in its KV, as one that has run for a while. Decoding and
resizing of pictures is the host's work and not counted.
"""

from __future__ import annotations

import statistics
from typing import Any

import torch

from benchmarks.gpu.common import Frame, Setting, build, freed, record, relative_error, tokens
from benchmarks.gpu.stream import IMAGE, STOP
from casa_core.decoding.decode_step import DecodeStep
from casa_core.decoding.kv_batch import TokenChunk
from casa_core.engine.requests import SamplingParams
from casa_core.engine.slot_pool import SlotPool
from casa_core.model import CasaForConditionalGeneration

WORDS, PERIOD = 5, 0.5
BATCH_LIMIT = {torch.bfloat16: 6e-2, torch.float32: 1e-2}


def run(setting: Setting, rounds: int, history: int, most: int) -> None:
    """Double the number of streams until it fails, then narrow it down to a sixteenth."""
    with freed(setting):
        model = build("helium", {}, setting)
        check = _check(model, setting)
        trials: dict[int, dict[str, Any]] = {}
        good, bad, count = 0, 0, 1
        while count <= most and (bad == 0 or bad - good > max(good // 16, 1)):
            with freed(setting):
                trials[count] = _trial(model, setting, count, rounds, history)
            if trials[count]["longest_ms"] <= PERIOD * 1e3:
                good = count
            else:
                bad = count
            count = (good + bad) // 2 if bad else 2 * count
        record("streams", f"CASA-Helium1-VL-2B, {history} tokens before", {
            "streams": good,
            "words_a_frame": WORDS,
            "first_that_failed": bad or f"none up to {good}",
            "trials": {str(streams): trial for streams, trial in sorted(trials.items())},
            "batch_error": check,
        }, setting)  # fmt: skip


def _side(setting: Setting) -> int:
    return 56 if setting.tiny else 448


def _open(model: CasaForConditionalGeneration, streams: int, histories: list[list[int]]) -> SlotPool:
    """A pool with one slot per stream, each with its text read."""
    slots = SlotPool(model, streams, decode=DecodeStep(model))
    numbers = [slots.allocate(SamplingParams(stop_bias=-1e9), stop_ids=(STOP,)) for _ in histories]
    # All at once: a step pads every slot to the longest chunk.
    slots.step({slot: TokenChunk(history) for slot, history in zip(numbers, histories, strict=True)})
    return slots


def _round(slots: SlotPool, frames: list[Frame], pending: dict[int, list[int]]) -> dict[int, list[int]]:
    """A frame for everyone and the words about it; what the next frame is to be read with."""
    unread = {}
    for slot, before in pending.items():
        frame = frames[slot % len(frames)]
        ids = [*before, IMAGE]
        unread[slot] = TokenChunk(ids, [len(ids) - 1], [frame.patches_PE], [frame.grid], [frame.tokens])
    generated = dict.fromkeys(pending, 0)
    for _ in range(WORDS):
        generated = slots.step(unread)
        unread = {slot: TokenChunk([token]) for slot, token in generated.items()}
    return {slot: [token, STOP] for slot, token in generated.items()}


def _trial(
    model: CasaForConditionalGeneration, setting: Setting, streams: int, rounds: int, history: int
) -> dict[str, Any]:
    """Milliseconds of the median and of the longest round."""
    slots = _open(model, streams, [tokens(history, model) for _ in range(streams)])
    frames = [Frame.of(model, _side(setting), setting) for _ in range(4)]
    pending: dict[int, list[int]] = {slot: [STOP] for slot in range(streams)}
    setting.forget_peak()
    taken = []
    for number in range(rounds + 2):
        found: list[dict[int, list[int]]] = []
        seconds = setting.taken(lambda: found.append(_round(slots, frames, pending)))  # noqa: B023
        pending = found[0]
        if number >= 2:
            taken.append(seconds * 1e3)
    return {
        "median_ms": round(statistics.median(taken), 2),
        "longest_ms": round(max(taken), 2),
        "peak_gib": setting.peak_gib(),
    }


def _check(model: CasaForConditionalGeneration, setting: Setting) -> float:
    """A stream beside others hears what it hears alone."""
    texts = [tokens(length, model) for length in (7, 19, 11)]
    frames = [Frame.of(model, _side(setting), setting) for _ in texts]
    together = _open(model, len(texts), texts)
    rows: list[Any] = [
        TokenChunk([STOP, IMAGE], [1], [frame.patches_PE], [frame.grid], [frame.tokens]) for frame in frames
    ]
    found_BV = together.sequences.extend(rows)
    worst = 0.0
    for number, (text, row) in enumerate(zip(texts, rows, strict=True)):
        alone_V = _open(model, 1, [text]).sequences.extend([row])[0]
        worst = max(worst, relative_error(found_BV[number], alone_V))
    assert worst < BATCH_LIMIT[setting.dtype], f"neighbours change a stream's logits by {worst:.1e}"
    return worst
