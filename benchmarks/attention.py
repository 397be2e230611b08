"""Time of one fusion layer's attention, beside other ways to compute it and beside a lower bound.

    python -m benchmarks.attention                                  # the paper's Table 11; minutes
    python -m benchmarks.attention --windows 3 --image-tokens 64    # a glance; seconds
    python -m benchmarks.attention --json benchmarks/results/attention-DATE.json    # and a .md beside it

Text of each window attends to its image tokens (CA, eq. 2), or to those and to its text up to itself (CASA,
eq. 3). Contenders, which take turns in every round and must agree before they are timed:

* ours: `segment_attention`, all windows in one call;
* dense mask: `scaled_dot_product_attention` of all queries over all keys, with a mask;
* loop: `scaled_dot_product_attention` window by window;
* insertion: image tokens are queries too, causal over each sample's images and text: what the same layer
  costs where images are inserted into the text (another result; one sample per window, as in Table 11).

Rope, projections and everything else of a layer are left out. The floor is the time of the bare matrix
products, scores and weighted values of visible pairs alone, at the rate of a large fp32 product measured in
the same rounds; backward counts twice forward. One thread is timed by the processor's clock, which leaves out
what other programs take; several by the wall's.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import scaled_dot_product_attention

from benchmarks.measure import interleaved, options_parser, stamp, table, write_result
from casa_core.fusion.attention import Segments, segment_attention

GEMM = 1024
PASSES = ("forward", "forward+backward")


@dataclass(frozen=True)
class Shape:
    """Sizes of one comparison, and what it compares."""

    windows: int
    image: int
    text: int
    heads: int
    kv_heads: int
    size: int
    attends_text: bool

    def flops(self) -> float:
        """Operations of the bare forward products: two per visible pair, D values per head."""
        visible = self.text * self.image + self.attends_text * self.text * (self.text + 1) / 2
        return 4.0 * self.windows * visible * self.heads * self.size


class Tokens:
    """Random queries, keys and values of a shape, flat: image tokens window by window, then text."""

    def __init__(self, shape: Shape) -> None:
        draw = lambda tokens, heads: torch.randn(  # noqa: E731
            shape.windows * tokens, heads, shape.size, requires_grad=True
        )
        self.query = draw(shape.text, shape.heads)
        self.image_query = draw(shape.image, shape.heads)
        self.image_key, self.image_value = (
            draw(shape.image, shape.kv_heads),
            draw(shape.image, shape.kv_heads),
        )
        self.text_key, self.text_value = draw(shape.text, shape.kv_heads), draw(shape.text, shape.kv_heads)

    def forget_gradients(self) -> None:
        """Set all gradients to ``None``, as an optimizer's step does."""
        for tensor in vars(self).values():
            tensor.grad = None


def contenders(shape: Shape, tokens: Tokens) -> dict[str, Callable[[], torch.Tensor]]:
    """Each contender's forward; layouts and masks are made here, since a model's layers share them."""
    image_N = np.repeat(np.arange(shape.windows), shape.image)
    text_T = np.repeat(np.arange(shape.windows), shape.text)
    key_N = np.concatenate([image_N, text_T]) if shape.attends_text else image_N
    segments = Segments.build(text_T, key_N, shape.windows, "cpu")
    assert segments is not None
    mask_TN = segments.visible_TN(causal=shape.attends_text)
    tail_TK = torch.ones(shape.text, shape.image + shape.text, dtype=torch.bool).tril(shape.image)
    window_mask = tail_TK if shape.attends_text else None
    grouped = shape.kv_heads != shape.heads

    def keys_and_values() -> tuple[torch.Tensor, torch.Tensor]:
        if not shape.attends_text:
            return tokens.image_key, tokens.image_value
        return (
            torch.cat([tokens.image_key, tokens.text_key]),
            torch.cat([tokens.image_value, tokens.text_value]),
        )

    def ours() -> torch.Tensor:
        key, value = [tokens.image_key], [tokens.image_value]
        if shape.attends_text:
            key, value = [*key, tokens.text_key], [*value, tokens.text_value]
        return segment_attention(tokens.query, key, value, segments, causal=shape.attends_text)

    def dense() -> torch.Tensor:
        query, key, value = (x.transpose(0, 1)[None] for x in (tokens.query, *keys_and_values()))
        out = scaled_dot_product_attention(query, key, value, attn_mask=mask_TN, enable_gqa=grouped)
        return out[0].transpose(0, 1)

    def loop() -> torch.Tensor:
        sides = [tokens.query, tokens.image_key, tokens.image_value, tokens.text_key, tokens.text_value]
        outs = []
        for query, key, value, *text in zip(*(side.chunk(shape.windows) for side in sides), strict=True):
            if shape.attends_text:
                key, value = torch.cat([key, text[0]]), torch.cat([value, text[1]])
            batch = (x.transpose(0, 1)[None] for x in (query, key, value))
            outs.append(scaled_dot_product_attention(*batch, attn_mask=window_mask, enable_gqa=grouped))
        return torch.cat(outs, dim=2)[0].transpose(0, 1)

    def insertion() -> torch.Tensor:
        pairs = (
            (tokens.image_query, tokens.query),
            (tokens.image_key, tokens.text_key),
            (tokens.image_value, tokens.text_value),
        )
        query, key, value = (
            torch.cat([side.unflatten(0, (shape.windows, -1)) for side in pair], dim=1).transpose(1, 2)
            for pair in pairs
        )
        out = scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=grouped)
        return out.transpose(1, 2).flatten(0, 1)

    return {"ours": ours, "dense mask": dense, "loop": loop, "insertion": insertion}


def compare(shape: Shape, rounds: int) -> dict[str, float]:
    """Median milliseconds of each contender and pass, the floor's among them; the rate in GFLOP/s."""
    tokens = Tokens(shape)
    ways = contenders(shape, tokens)
    with torch.no_grad():
        for name in ("dense mask", "loop"):
            torch.testing.assert_close(ways["ours"](), ways[name](), rtol=1e-4, atol=1e-5)
    left, right = torch.randn(2, GEMM, GEMM)
    commands: dict[str, Callable[[], object]] = {"gemm": lambda: left @ right}
    for name, forward in ways.items():
        gradient = torch.randn_like(forward())

        def only_forward(forward: Callable[[], torch.Tensor] = forward) -> None:
            with torch.no_grad():
                forward()

        def both(forward: Callable[[], torch.Tensor] = forward, gradient: torch.Tensor = gradient) -> None:
            tokens.forget_gradients()
            forward().backward(gradient)

        commands[f"{name}, {PASSES[0]}"], commands[f"{name}, {PASSES[1]}"] = only_forward, both
    milliseconds = {
        name: 1e3 * statistics.median(taken.wall if torch.get_num_threads() > 1 else taken.cpu)
        for name, taken in interleaved(commands, rounds).items()
    }
    rate = 2 * GEMM**3 / milliseconds.pop("gemm") / 1e6
    for times, name in zip((1, 3), PASSES, strict=True):
        milliseconds[f"floor, {name}"] = times * shape.flops() / rate / 1e6
    return {**milliseconds, "GFLOP/s": rate}


def rendered(results: dict[str, dict[str, float]]) -> str:
    """A table for each pass: milliseconds, and in brackets how many times ours that is."""
    parts = []
    for name in PASSES:
        columns = ["floor", "ours", "loop", "dense mask", "insertion"]
        rows = []
        for label, result in results.items():
            ms = [result[f"{column}, {name}"] for column in columns]
            cells = [f"{value:.0f} ({value / ms[1]:.2f}x)" for value in ms]
            rows.append([label, *cells, f"{result['GFLOP/s']:.0f}"])
        parts.append(f"### {name}, milliseconds (times ours)\n\n" + table(["", *columns, "GFLOP/s"], rows))
    return "\n".join(parts)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, and write where asked."""
    parser = options_parser(
        __doc__,
        windows=(10, "windows, and samples (10)"),
        image_tokens=(1024, "image tokens of a window (1024)"),
        text_tokens=(50, "text tokens of a window (50)"),
        heads=(16, "query heads (16)"),
        head_dim=(128, "size of a head (128)"),
        rounds=(5, "rounds after a warm-up; medians are kept (5)"),
        threads=(1, "threads of torch (1)"),
    )
    parser.add_argument(
        "--kv-heads", type=int, nargs="+", default=[8, 2], help="key heads, each in turn (8 2)"
    )
    parser.add_argument("--json", type=Path, metavar="OUT", help="write results here, and as .md beside it")
    arguments = sys.argv[1:] if arguments is None else arguments
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    results = {}
    for attends_text, kind in ((False, "CA"), (True, "CASA")):
        for kv_heads in options.kv_heads:
            sizes = options.windows, options.image_tokens, options.text_tokens, options.heads
            shape = Shape(*sizes, kv_heads, options.head_dim, attends_text)
            results[f"{kind}, {kv_heads} kv heads"] = compare(shape, options.rounds)
    says = stamp(" ".join(["python -m benchmarks.attention", *arguments]), vars(options))
    sizes = f"{options.windows} windows of {options.image_tokens} image and {options.text_tokens} text tokens"
    text = f"## Attention of one fusion layer: {sizes}, {options.heads} heads of {options.head_dim}, fp32\n\n"
    text += f"`{says['command']}`, {says['date']}, {says['machine']}\n\n{rendered(results)}"
    print(text)
    if options.json:
        write_result(options.json.stem, {**says, "results": results}, text, options.json.parent)


if __name__ == "__main__":
    main()
