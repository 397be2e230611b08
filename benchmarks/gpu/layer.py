"""One layer, the paper's Table 11: ten windows of 1024 image and 50 text tokens, training and inference.

Image tokens are given, the vocabulary is tiny, so that what is measured is the decoder layer: self-attention,
fusion, feed-forward. Training is one forward and backward over all windows; inference reads window by window,
an image and its first token, then word by word. Memory is beyond the weights and inputs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from benchmarks.gpu.common import Setting, build, freed, record, relative_error, tokens
from casa_core.batch import PackedSequence, collate
from casa_core.decoding.kv_batch import KVBatch, TokenChunk
from casa_core.model import CasaForConditionalGeneration

VARIANTS: dict[str, dict[str, Any]] = {
    "insertion": {"kind": "insertion"},
    "CA, parallel": {},
    "CASA, parallel": {"kind": "casa"},
    "CASA, replace": {"kind": "casa", "placement": "replace", "layers": "all"},
}
PUBLISHED = {
    "insertion": "training 1.45 GB, 4.34 ms; inference 0.44 GB, 215 ms",
    "CASA, parallel": "training 0.38 GB, 0.69 ms; inference 0.38 GB, 228 ms",
    "CASA, replace": "training 0.37 GB, 0.47 ms; inference 0.38 GB, 145 ms",
}
"""Table 11, totals of CASA or self-attention and feed-forward, one layer on an H100."""
LIMIT = {torch.bfloat16: 5e-2, torch.float32: 1e-2}


def run(setting: Setting, rounds: int) -> None:
    """All variants."""
    for name, fusion in VARIANTS.items():
        with freed(setting):
            model = build("helium", fusion, setting, tower=False, num_hidden_layers=1, vocab_size=256)
            record("layer", name, _measure(model, setting, rounds) | {
                "published": PUBLISHED.get(name, "")
            }, setting)  # fmt: skip


def _measure(model: CasaForConditionalGeneration, setting: Setting, rounds: int) -> dict[str, Any]:
    windows, text, side = (3, 5, 4) if setting.tiny else (10, 50, 32)
    width, image = model.config.text_config.hidden_size, side**2
    pictures = [torch.randn(image, width, device=setting.device, dtype=setting.dtype) for _ in range(windows)]
    ids = tokens(windows * text, model)
    sequence = PackedSequence(
        input_ids=ids,
        loss_mask=[place > 0 for place in range(len(ids))],
        document_starts=[0],
        image_positions=[n * text for n in range(windows)],
        image_tokens=[image] * windows,
        image_grids=[(side, side)] * windows,
        patches_PE=pictures,
    )
    batch = collate([sequence], setting.device)

    def train() -> None:
        model(**batch.inputs()).loss_sum.backward()
        model.zero_grad()

    def infer() -> torch.Tensor:
        return _word_by_word(model, ids, pictures, side, text)

    with torch.no_grad():
        inputs = batch.inputs() | {"loss_mask": None}
        whole_V = model(**inputs).logits[0, -1]
    error = relative_error(infer(), whole_V)
    assert error < LIMIT[setting.dtype], f"word by word differs from one forward by {error:.1e}"
    found: dict[str, Any] = {"incremental_error": error}
    for name, command, times in (("training", train, rounds), ("inference", infer, max(rounds // 5, 3))):
        found |= _time_and_memory(name, command, times, setting)
    return found


def _word_by_word(
    model: CasaForConditionalGeneration, ids: list[int], pictures: list[torch.Tensor], side: int, text: int
) -> torch.Tensor:
    """(V,) logits after the last token."""
    sequences = KVBatch(model, 1)
    logits_BV = torch.empty(0)
    for place, token in enumerate(ids):
        extension = TokenChunk([token])
        if place % text == 0:
            picture = pictures[place // text]
            extension = TokenChunk([token], [0], [picture], [(side, side)], [side**2])
        logits_BV = sequences.extend([extension])
    return logits_BV[0]


def _time_and_memory(
    name: str, command: Callable[[], object], rounds: int, setting: Setting
) -> dict[str, Any]:
    command()
    setting.wait()
    before = torch.cuda.memory_allocated(setting.device) if setting.device.type == "cuda" else 0
    setting.forget_peak()
    seconds = setting.median(command, rounds)
    return {f"{name}_ms": round(seconds * 1e3, 3), f"{name}_gib": setting.peak_gib(before)}
