"""Greedy decoding: our engine's steps beside transformers' own ``generate`` on the same weights, in one run.

python -m benchmarks.decode [--rounds 5 --sizes 128x3:64,512x8:16,1024x16:8 --batches 1,8,32]

Text only, Heliums of several sizes: ``SlotPool.step`` plain and compiled, with fp32, bf16 and int8 weights,
and ``HeliumForCausalLM.generate`` in fp32 with its dynamic cache. All fp32 ways must give the same tokens
before any is timed, and so must the fused model's ``generate()``. The floor of a step is the time in which as
many bytes as its weights have are read. Beside them, prefill and the vision tower against bare products of
the same matrices.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.functional import linear
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList
from transformers.models.helium import HeliumConfig, HeliumForCausalLM

from benchmarks.measure import interleaved, publish, read_options, table
from casa_core.compiling import can_compile
from casa_core.config import CasaConfig, FusionConfig
from casa_core.decoding.decode_step import DecodeStep
from casa_core.decoding.kv_batch import TokenChunk
from casa_core.engine.requests import SamplingParams
from casa_core.engine.slot_pool import SlotPool
from casa_core.model import CasaForConditionalGeneration

THEIRS = "transformers' generate(), fp32"
PLAIN, COMPILED = "plain, fp32", "compiled, fp32"
BF16, INT8 = "compiled, bf16", "compiled, int8"
READ = {4: "floor: fp32 read", 2: "floor: bf16 read", 1: "floor: int8 read"}
OURS = {PLAIN: 4, COMPILED: 4, BF16: 2, INT8: 1}
"""Ways and the bytes of their weights."""

Run = tuple[CasaForConditionalGeneration, DecodeStep]


def main(arguments: Sequence[str] | None = None) -> None:
    options = read_options(
        __doc__,
        arguments,
        rounds=5,
        prompt=(4, "tokens of every prompt"),
        prefill=(256, "tokens of the prefill, and patches of the tower's picture"),
        sizes=("128x3:64,512x8:16,1024x16:8", "width x layers : tokens decoded"),
        batches="1,8,32",
        vocabulary=8192,
    )
    found = [_size(size, options) for size in options.sizes.split(",")]
    title = "Greedy decoding beside transformers' own"
    publish("decode", title, options, {"sizes": found}, _report(found))


def _size(size: str, options: argparse.Namespace) -> dict[str, Any]:
    """All batches of one size of model."""
    hidden, layers, new = (int(part) for part in size.replace(":", "x").split("x"))
    theirs, ours = models(hidden, layers, options.vocabulary)
    embedding = theirs.model.embed_tokens.weight  # a step reads a row a token of it
    weights = sum(p.numel() for p in theirs.parameters() if p is not embedding)
    half = copy.deepcopy(ours)
    half.to(dtype=torch.bfloat16)  # pyright: ignore[reportCallIssue]
    compile = can_compile(ours.device)
    runs: dict[str, Run] = {
        PLAIN: (ours, DecodeStep(ours)),
        COMPILED: (ours, DecodeStep(ours, compile=compile)),
        BF16: (half, DecodeStep(half, compile=compile)),
        INT8: (half, DecodeStep(half, compile=compile, quantize="int8")),
    }
    batches = [
        measure(theirs, runs, weights, int(batch), new, options) for batch in options.batches.split(",")
    ]
    with torch.inference_mode():
        products = _products(ours, options)
    return {"size": size.split(":")[0], "weights": weights, "batches": batches, "products": products}


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
    runs: dict[str, Run],
    weights: int,
    batch: int,
    new: int,
    options: argparse.Namespace,
) -> dict[str, Any]:
    """Tokens per second after the first token of every answer; the same tokens in fp32."""
    generator = torch.Generator().manual_seed(batch)
    ids_BL = torch.randint(1, theirs.config.vocab_size, (batch, options.prompt), generator=generator)
    ways: dict[str, Callable[[], _Answer]] = {
        name: lambda run=run: _by_steps(*run, ids_BL, new + 1) for name, run in runs.items()
    }
    ways[THEIRS] = lambda: _by_generate(theirs, ids_BL, new + 1)
    first = {name: way() for name, way in ways.items()}
    own = _by_generate(runs[PLAIN][0], ids_BL, new + 1)
    for name, answer in {PLAIN: first[PLAIN], COMPILED: first[COMPILED], "our generate()": own}.items():
        assert answer.tokens == first[THEIRS].tokens, f"{name} gives other tokens than transformers"
    buffers = {size: torch.ones(weights * size // 4) for size in READ}
    for size, name in READ.items():  # a batch reads the weights once a step, however many rows it has
        ways[name] = lambda size=size: _reads(buffers[size], new)
    found: dict[str, list[_Answer]] = {name: [] for name in ways}
    for number in range(options.rounds):
        names = [*list(ways)[number % len(ways) :], *list(ways)[: number % len(ways)]]
        for name in names:
            found[name].append(ways[name]())
    # A ratio of neighbours in time, round by round, is steadier than a ratio of medians.
    ratio = lambda a, b: round(  # noqa: E731
        statistics.median(y.cpu / x.cpu for x, y in zip(found[a], found[b], strict=True)), 3
    )
    return {
        "batch": batch,
        "tokens_a_second": {
            name: round(batch * new / statistics.median(answer.wall for answer in each), 1)
            for name, each in found.items()
        },
        "times_transformers": {name: ratio(name, THEIRS) for name in OURS},
        "of_the_floor": {name: ratio(name, READ[size]) for name, size in OURS.items()},
        "tokens_as_transformers": {
            name: round(_same(first[name].tokens, first[THEIRS].tokens), 3) for name in OURS
        },
        "first_answer_processor_seconds": {name: round(first[name].cpu, 2) for name in OURS},
        "processor_seconds": {
            name: [round(answer.cpu, 4) for answer in each] for name, each in found.items()
        },
    }


@dataclass(slots=True)
class _Answer:
    """Tokens of all rows, and seconds from the first token on, by the wall and of the processor."""

    tokens: list[list[int]]
    wall: float = 0.0
    cpu: float = 0.0


class _Clock(LogitsProcessor):
    """Starts when the first logits are there."""

    def __init__(self) -> None:
        self.start: tuple[float, float] | None = None

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        self.start = self.start or (time.perf_counter(), time.process_time())
        return scores

    def answer(self, tokens: list[list[int]]) -> _Answer:
        """The answer, ended now."""
        assert self.start is not None
        wall, cpu = self.start
        return _Answer(tokens, time.perf_counter() - wall, time.process_time() - cpu)


def _reads(buffer: torch.Tensor, count: int) -> _Answer:
    clock = _Clock()
    clock(buffer, buffer)
    for _ in range(count):
        buffer.sum()
    return clock.answer([])


def _same(ours: list[list[int]], theirs: list[list[int]]) -> float:
    """Share of tokens that are the same."""
    pairs = [pair for rows in zip(ours, theirs, strict=True) for pair in zip(*rows, strict=True)]
    return sum(a == b for a, b in pairs) / len(pairs)


def _by_steps(
    model: CasaForConditionalGeneration, decode: DecodeStep, ids_BL: torch.Tensor, new: int
) -> _Answer:
    clock = _Clock()
    slots = SlotPool(model, len(ids_BL), decode=decode)
    unread = {slots.allocate(SamplingParams()): TokenChunk(row) for row in ids_BL.tolist()}
    generated: dict[int, list[int]] = {slot: [] for slot in unread}
    for _ in range(new):
        for slot, token in slots.step(unread).items():
            generated[slot].append(token)
            unread[slot] = TokenChunk([token])
        clock(ids_BL, ids_BL)
    return clock.answer(list(generated.values()))


def _by_generate(model: Any, ids_BL: torch.Tensor, new: int) -> _Answer:
    clock = _Clock()
    settings = GenerationConfig(max_new_tokens=new, do_sample=False, eos_token_id=None, pad_token_id=0)
    with torch.inference_mode():
        out_BL = model.generate(
            input_ids=ids_BL,
            attention_mask=torch.ones_like(ids_BL),
            generation_config=settings,
            logits_processor=LogitsProcessorList([clock]),
        )
    return clock.answer(out_BL[:, ids_BL.shape[1] :].tolist())


def _products(model: CasaForConditionalGeneration, options: argparse.Namespace) -> dict[str, float]:
    """Share of the rate of bare matrix products that a prefill, and the tower, reach: by processor time."""
    count = options.prefill
    ids_1T = torch.randint(1, options.vocabulary, (1, count))
    config = model.config.vision_config
    values = 3 * config.patch_size**2
    grid = (2 * config.spatial_merge_size, count // (2 * config.spatial_merge_size))
    patches_PE = torch.randn(grid[0] * grid[1], values)
    parts: dict[str, tuple[nn.Module, Callable[[], object]]] = {
        "prefill": (model, lambda: model(ids_1T, last_tokens=torch.tensor([count - 1]))),
        "vision tower": (model.vision_tower, lambda: model.vision_tower(patches_PE, [grid])),
    }
    shares = {}
    for name, (module, run) in parts.items():
        pairs = _linear_calls(module, run)
        bare = lambda pairs=pairs: [linear(x_XC, weight) for x_XC, weight in pairs]  # noqa: E731
        taken = interleaved({"bare": bare, "run": run}, options.rounds)
        shares[name] = round(
            statistics.median(a / b for a, b in zip(taken["bare"].cpu, taken["run"].cpu, strict=True)), 3
        )
    return shares


def _linear_calls(module: nn.Module, run: Callable[[], object]) -> list[tuple[torch.Tensor, Any]]:
    """Input and weight of every linear layer that runs, in order."""
    pairs: list[tuple[torch.Tensor, Any]] = []
    hooks = [
        part.register_forward_hook(lambda layer, inputs, _: pairs.append((inputs[0], layer.weight)))
        for part in module.modules()
        if isinstance(part, nn.Linear)
    ]
    run()
    for hook in hooks:
        hook.remove()
    return pairs


def _report(found: Sequence[dict[str, Any]]) -> str:
    rows = []
    for size in found:
        for one in size["batches"]:
            for name, rate in one["tokens_a_second"].items():
                ratio, share = one["times_transformers"].get(name), one["of_the_floor"].get(name)
                same = one["tokens_as_transformers"].get(name)
                rows.append(
                    [
                        f"{size['size']}, {name}",
                        one["batch"],
                        rate,
                        "" if ratio is None else f"{ratio:.2f}",
                        "" if share is None else f"{share:.0%}",
                        "" if same is None else f"{same:.0%}",
                    ]
                )
    header = ["model, way", "batch", "tokens/s", "times transformers'", "of its floor", "tokens as fp32"]
    products = table(
        ["model", "weights", "prefill", "vision tower"],
        [
            [
                size["size"],
                f"{size['weights'] / 1e6:.1f} M",
                f"{size['products']['prefill']:.0%}",
                f"{size['products']['vision tower']:.0%}",
            ]
            for size in found
        ],
    )
    notes = (
        "Tokens per second by the wall; ratios by processor time, which a busy machine disturbs less, as\n"
        "medians of the rounds'. From the first token of an answer on. The floor: the weights' bytes, read\n"
        "by a sum. Random weights: bf16 and int8 may choose other tokens where fp32 was undecided.\n\n"
        "Share of the rate of bare products of the same matrices:\n"
    )
    return f"{table(header, rows)}\n{notes}\n{products}"


if __name__ == "__main__":
    main()
