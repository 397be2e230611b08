"""Greedy decoding: our engine's steps beside transformers' own ``generate`` on the same weights, in one run.

python -m benchmarks.decode [--rounds 7 --prompt 32 --new 64 --batches 1,8]

Text only, a Helium of some forty million weights, three ways: ``Slots.step``, the fused model's
``generate()``, and ``HeliumForCausalLM.generate`` with its dynamic cache. All must give the same tokens
before any is timed. The floor of a step is the weights' bytes over the memory bandwidth that a matrix-vector
product reaches here.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig
from transformers.models.helium import HeliumConfig, HeliumForCausalLM

from benchmarks.measure import RESULTS, interleaved, stamp, table, write_result
from casa_core.cache import Extension
from casa_core.config import CasaConfig, FusionConfig
from casa_core.engine.requests import SamplingParams
from casa_core.engine.slots import Slots
from casa_core.model import CasaForConditionalGeneration

OURS, OUR_GENERATE, THEIRS = "our engine", "our generate()", "transformers' generate()"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--prompt", type=int, default=32, help="tokens of every prompt")
    parser.add_argument("--new", type=int, default=64, help="tokens decoded")
    parser.add_argument("--batches", default="1,8")
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--vocabulary", type=int, default=8192)
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    theirs, ours = models(options.hidden, options.layers, options.vocabulary)
    found = [
        measure(theirs, ours, int(batch), options.prompt, options.new, options.rounds)
        for batch in options.batches.split(",")
    ]
    embedding = theirs.model.embed_tokens.weight  # a step reads a row a token of it
    weights = sum(p.nbytes for p in theirs.parameters() if p is not embedding)
    bandwidth = memory_bandwidth()
    text = _report(found, weights, bandwidth)
    said = stamp("python -m benchmarks.decode", vars(options))
    payload = said | {"weights_bytes": weights, "bandwidth_bytes_s": round(bandwidth), "batches": found}
    title = (
        f"# Greedy decoding beside transformers' own\n\n`{said['command']}`, {said['date']}, "
        f"{said['machine']}. Options: {said['options']}.\n\n"
    )
    write_result("decode", payload, title + text, options.results)
    print(text)


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
    batch: int,
    prompt: int,
    new: int,
    rounds: int,
) -> dict[str, Any]:
    """Medians of whole answers (prompt and all), tokens a second; the same tokens from all three."""
    generator = torch.Generator().manual_seed(batch)
    ids_BL = torch.randint(1, theirs.config.vocab_size, (batch, prompt), generator=generator)
    ways = {
        OURS: lambda: _by_steps(ours, ids_BL, new),
        OUR_GENERATE: lambda: _by_generate(ours, ids_BL, new),
        THEIRS: lambda: _by_generate(theirs, ids_BL, new),
    }
    answers = {name: way() for name, way in ways.items()}
    for name, answer in answers.items():
        assert answer == answers[THEIRS], f"{name} says other tokens than transformers, batch {batch}"
    seconds = interleaved(ways, rounds)
    rate = {name: batch * new / statistics.median(taken) for name, taken in seconds.items()}
    # A ratio of neighbours in time, round by round, is steadier than a ratio of medians.
    ratios = {
        name: statistics.median(b / a for a, b in zip(seconds[name], seconds[THEIRS], strict=True))
        for name in (OURS, OUR_GENERATE)
    }
    return {
        "batch": batch,
        "tokens_a_second": {name: round(value, 1) for name, value in rate.items()},
        "times_transformers": {name: round(value, 3) for name, value in ratios.items()},
        "seconds": {name: [round(value, 4) for value in taken] for name, taken in seconds.items()},
    }


def _by_steps(model: CasaForConditionalGeneration, ids_BL: torch.Tensor, new: int) -> list[list[int]]:
    slots = Slots(model, len(ids_BL))
    unread = {slots.take(SamplingParams()): Extension(row) for row in ids_BL.tolist()}
    said: dict[int, list[int]] = {seat: [] for seat in unread}
    for _ in range(new):
        for seat, token in slots.step(unread).items():
            said[seat].append(token)
            unread[seat] = Extension([token])
    return list(said.values())


def _by_generate(model: Any, ids_BL: torch.Tensor, new: int) -> list[list[int]]:
    settings = GenerationConfig(max_new_tokens=new, do_sample=False, eos_token_id=None, pad_token_id=0)
    with torch.inference_mode():
        out_BL = model.generate(
            input_ids=ids_BL, attention_mask=torch.ones_like(ids_BL), generation_config=settings
        )
    return out_BL[:, ids_BL.shape[1] :].tolist()


def memory_bandwidth(rows: int = 16384, columns: int = 4096) -> float:
    """Bytes a second that a matrix-vector product reads from memory, the best of ten."""
    matrix, vector = torch.randn(rows, columns), torch.randn(columns)
    product: Callable[[], object] = lambda: torch.mv(matrix, vector)  # noqa: E731
    taken = []
    for _ in range(11):
        began = time.perf_counter()
        product()
        taken.append(time.perf_counter() - began)
    return matrix.nbytes / min(taken)


def _report(found: Sequence[dict[str, Any]], weights: int, bandwidth: float) -> str:
    rows = []
    for one in found:
        batch, floor = one["batch"], one["batch"] * bandwidth / weights
        for name, rate in one["tokens_a_second"].items():
            ratio = one["times_transformers"].get(name)
            beside = "" if ratio is None else f"{ratio:.2f}"
            rows.append([name, batch, f"{rate:.1f}", beside, f"{rate / floor:.0%}"])
        rows.append(["floor: weights over bandwidth", batch, f"{floor:.1f}", "", "100%"])
    text = table(["way", "batch", "tokens/s", "times transformers'", "of the floor"], rows)
    return (
        f"{text}\nWeights read a step: {weights / 1e6:.0f} MB in fp32; bandwidth {bandwidth / 1e9:.1f} GB/s. "
        "All ways gave the same tokens.\n"
    )


if __name__ == "__main__":
    main()
