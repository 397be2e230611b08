"""One training step on one packed sequence of 2048 text and 20,480 image tokens, for each fusion.

Forward, backward and a fused AdamW on weights of the compute type. The language model, the fusion layers and
the tower's last four blocks learn, as in the paper. Utilisation counts the products that ran (forward,
backward), attention included where torch counts it, over the product rate measured in the same run.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.gpu.common import Frame, Setting, build, freed, record, tokens
from casa_core.backbones.vision import last_blocks
from casa_core.batch import PackedSequence, collate
from casa_core.model import CasaForConditionalGeneration

VARIANTS: dict[str, dict[str, Any]] = {
    "CA": {},
    "CA, shared": {"shared_projections": True},
    "CASA, parallel": {"kind": "casa"},
    "CASA, before": {"kind": "casa", "placement": "before"},
    "CASA, replace": {"kind": "casa", "placement": "replace"},
    "CA, image FFNs": {"image_ffn": True},
    "insertion": {"kind": "insertion"},
}
PUBLISHED = {
    "CA": "1817 text tok/s, 32.9 GB",
    "CA, shared": "1845 text tok/s, 32.0 GB",
    "CA, image FFNs": "1504 text tok/s, 57.8 GB",
    "insertion": "1501 text tok/s, 62.8 GB",
}
"""Project page, H100, training state sharded."""
PACKING_LIMIT = {torch.bfloat16: 2e-2, torch.float32: 2e-3}


def run(setting: Setting, variant: str, rounds: int, checkpointing: bool) -> None:
    """One fusion: check, warm up, measure."""
    with freed(setting):
        model = build("helium", VARIANTS[variant], setting)
        model.vision_tower.requires_grad_(False)
        for block in last_blocks(model.vision_tower, 2 if setting.tiny else 4):
            block.requires_grad_(True)
        if checkpointing:
            model.recompute_activations()
        check = _check(model, setting)
        model.train()
        images, side, text = (2, 56, 32) if setting.tiny else (20, 896, 2048)
        batch = collate([_sequence(model, setting, images, side, text)], setting.device)
        learning = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(learning, lr=1e-5, fused=setting.device.type == "cuda")

        def step() -> None:
            loss = model(**batch.inputs()).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()

        counter = FlopCounterMode(display=False)
        with counter:
            step()
        setting.forget_peak()
        seconds = setting.median(step, rounds)
        left, right = (torch.randn(4096 if not setting.tiny else 256, device=setting.device).to(setting.dtype)
                       .expand(len(batch.input_ids[0]), -1).contiguous() for _ in range(2))  # fmt: skip
        ceiling = 2 * left.shape[0] ** 2 * left.shape[1] / setting.median(lambda: left @ right.T, 10)
        flops = counter.get_total_flops()
        record("train", variant, {
            "text_tokens": batch.text_tokens,
            "image_tokens": batch.image_tokens,
            "seconds": round(seconds, 4),
            "text_tok_s": round(batch.text_tokens / seconds, 1),
            "peak_gib": setting.peak_gib(),
            "tflop": round(flops / 1e12, 3),
            "tflop_s": round(flops / seconds / 1e12, 2),
            "of_measured_product_rate": round(flops / seconds / ceiling, 3),
            "learning_parameters": sum(p.numel() for p in learning),
            "checkpointing": checkpointing,
            "packing_error": check,
            "published": PUBLISHED.get(variant, ""),
        }, setting)  # fmt: skip


def _sequence(
    model: CasaForConditionalGeneration, setting: Setting, images: int, side: int, text: int
) -> PackedSequence:
    """One document; images spread evenly, every second token an answer's."""
    frames = [Frame.of(model, side, setting) for _ in range(images)]
    return PackedSequence(
        input_ids=tokens(text, model),
        loss_mask=[place > 0 and place % 2 == 0 for place in range(text)],
        document_starts=[0],
        image_positions=[text * n // images for n in range(images)],
        image_tokens=[frame.tokens for frame in frames],
        image_grids=[frame.grid for frame in frames],
        patches_PE=[frame.patches_PE for frame in frames],
    )


@torch.no_grad()
def _check(model: CasaForConditionalGeneration, setting: Setting) -> float:
    """Two documents packed have the loss of each alone, and an untrained model knows nothing."""
    side = 56 if setting.tiny else 448
    pair = [_sequence(model, setting, 2, side, 48) for _ in range(2)]
    packed = float(model(**collate(pair, setting.device).inputs()).loss_sum)
    alone = sum(float(model(**collate([one], setting.device).inputs()).loss_sum) for one in pair)
    error = abs(packed - alone) / alone
    assert error < PACKING_LIMIT[setting.dtype], f"packed documents see each other: {packed} against {alone}"
    per_token = alone / sum(collate([one]).trained_tokens for one in pair)
    chance = math.log(model.config.text_config.vocab_size)
    assert 0.7 * chance < per_token < 1.5 * chance, f"a random model's loss is {per_token}, chance {chance}"
    return error
