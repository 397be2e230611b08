"""Greedy decoding: our engine's steps beside transformers' own ``generate`` on the same weights, in one run.

python -m benchmarks.decode [--rounds 7 --prompt 32 --new 64 --batches 1,8]

Text only, a Helium of some forty million weights, three ways: ``SlotPool.step``, the fused model's
``generate()``, and ``HeliumForCausalLM.generate`` with its dynamic cache. All must give the same tokens
before any is timed. The floor of a step is the time that a matrix-vector product takes to read as many
bytes as the weights have.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers import GenerationConfig
from transformers.models.helium import HeliumConfig, HeliumForCausalLM

from benchmarks.measure import interleaved, publish, read_options, table
from casa_core.config import CasaConfig, FusionConfig
from casa_core.decoding.decode_step import DecodeStep
from casa_core.decoding.kv_batch import TokenChunk
from casa_core.engine.requests import SamplingParams
from casa_core.engine.slot_pool import SlotPool
from casa_core.model import CasaForConditionalGeneration

OURS, OUR_GENERATE, THEIRS = "our engine", "our generate()", "transformers' generate()"
FLOOR = "floor: weights read"


def main(arguments: Sequence[str] | None = None) -> None:
    options = read_options(
        __doc__,
        arguments,
        rounds=7,
        prompt=(32, "tokens of every prompt"),
        new=(64, "tokens decoded"),
        batches="1,8",
        hidden=512,
        layers=12,
        vocabulary=8192,
    )
    theirs, ours = models(options.hidden, options.layers, options.vocabulary)
    embedding = theirs.model.embed_tokens.weight  # a step reads a row a token of it
    weights = sum(p.nbytes for p in theirs.parameters() if p is not embedding)
    decode = DecodeStep(ours)
    found = [
        measure(theirs, ours, decode, weights, int(batch), options) for batch in options.batches.split(",")
    ]
    payload = {"weights_bytes": weights, "batches": found}
    title = "Greedy decoding beside transformers' own"
    publish("decode", title, options, payload, _report(found, weights))


def models(
    hidden: int, layers: int, vocabulary: int
) -> tuple[HeliumForCausalLM, CasaForConditionalGeneration]:
    """transformers' Helium, and a fused model of the same weights (its fusion has none of its own)."""
    heads = max(hidden // 64, 2)
    config = HeliumConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=hidden * 11 // 4,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads // 2,
        head_dim=hidden // heads,
        initializer_range=0.06,
        max_position_embeddings=4096,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=0,
    )
    torch.manual_seed(0)
    theirs = HeliumForCausalLM(config).eval()
    # A copy of the configuration: each model writes its own kind of attention into it.
    fused = CasaConfig(text_config=config.to_dict(), fusion=FusionConfig(shared_projections=True))
    ours = CasaForConditionalGeneration(fused).eval()
    ours.language_model.load_state_dict(theirs.model.state_dict())
    ours.lm_head.load_state_dict(theirs.lm_head.state_dict())
    return theirs, ours


def measure(
    theirs: HeliumForCausalLM,
    ours: CasaForConditionalGeneration,
    decode: DecodeStep,
    weights: int,
    batch: int,
    options: argparse.Namespace,
) -> dict[str, Any]:
    """Whole answers (prompt and all), tokens a second; the same tokens from all three."""
    prompt, new, rounds = options.prompt, options.new, options.rounds
    generator = torch.Generator().manual_seed(batch)
    ids_BL = torch.randint(1, theirs.config.vocab_size, (batch, prompt), generator=generator)
    ways: dict[str, Callable[[], Any]] = {
        OURS: lambda: _by_steps(ours, decode, ids_BL, new),
        OUR_GENERATE: lambda: _by_generate(ours, ids_BL, new),
        THEIRS: lambda: _by_generate(theirs, ids_BL, new),
    }
    answers = {name: way() for name, way in ways.items()}
    for name, answer in answers.items():
        assert answer == answers[THEIRS], f"{name} says other tokens than transformers, batch {batch}"
    # A batch reads the weights once a step, however many rows it has.
    matrix, vector = torch.randn(weights // 4 // 4096, 4096), torch.randn(4096)
    reads = max(new // 8, 1)
    ways[FLOOR] = lambda: [torch.mv(matrix, vector) for _ in range(reads)]
    taken = interleaved(ways, rounds)
    done = {name: batch * (reads if name == FLOOR else new) for name in ways}
    # A ratio of neighbours in time, round by round, is steadier than a ratio of medians.
    ratio = lambda ours, theirs: round(statistics.median(b / a for a, b in zip(ours, theirs, strict=True)), 3)  # noqa: E731
    return {
        "batch": batch,
        "tokens_a_second": {
            name: round(done[name] / statistics.median(each.wall), 1) for name, each in taken.items()
        },
        "tokens_a_processor_second": {
            name: round(done[name] / statistics.median(each.cpu), 1) for name, each in taken.items()
        },
        "times_transformers": {
            name: {
                "wall": ratio(taken[name].wall, taken[THEIRS].wall),
                "cpu": ratio(taken[name].cpu, taken[THEIRS].cpu),
            }
            for name in (OURS, OUR_GENERATE)
        },
        "seconds": {name: [round(value, 4) for value in each.wall] for name, each in taken.items()},
    }


def _by_steps(
    model: CasaForConditionalGeneration, decode: DecodeStep, ids_BL: torch.Tensor, new: int
) -> list[list[int]]:
    slots = SlotPool(model, len(ids_BL), decode=decode)
    unread = {slots.allocate(SamplingParams()): TokenChunk(row) for row in ids_BL.tolist()}
    generated: dict[int, list[int]] = {slot: [] for slot in unread}
    for _ in range(new):
        for slot, token in slots.step(unread).items():
            generated[slot].append(token)
            unread[slot] = TokenChunk([token])
    return list(generated.values())


def _by_generate(model: Any, ids_BL: torch.Tensor, new: int) -> list[list[int]]:
    settings = GenerationConfig(max_new_tokens=new, do_sample=False, eos_token_id=None, pad_token_id=0)
    with torch.inference_mode():
        out_BL = model.generate(
            input_ids=ids_BL, attention_mask=torch.ones_like(ids_BL), generation_config=settings
        )
    return out_BL[:, ids_BL.shape[1] :].tolist()


def _report(found: Sequence[dict[str, Any]], weights: int) -> str:
    rows = []
    for one in found:
        rates, by_cpu = one["tokens_a_second"], one["tokens_a_processor_second"]
        for name, rate in rates.items():
            ratio = one["times_transformers"].get(name)
            beside = "" if ratio is None else f"{ratio['wall']:.2f} ({ratio['cpu']:.2f})"
            share = f"{rate / rates[FLOOR]:.0%} ({by_cpu[name] / by_cpu[FLOOR]:.0%})"
            rows.append([name, one["batch"], f"{rate:.1f} ({by_cpu[name]:.1f})", beside, share])
    text = table(["way", "batch", "tokens/s", "times transformers'", "of the floor"], rows)
    return (
        f"{text}\nBy the wall; in parentheses by processor time, which a busy machine disturbs less. Ratios "
        f"are medians of the rounds'.\nFloor: the {weights / 1e6:.0f} MB of fp32 weights that a step reads, "
        "read by a matrix-vector product. All ways gave the same tokens.\n"
    )


if __name__ == "__main__":
    main()
