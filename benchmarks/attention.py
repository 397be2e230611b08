"""Cross-attention windows: the padded backend beside the dense reference and beside its floor, in one run.

python -m benchmarks.attention [--windows 10 --image-tokens 1024 --text-tokens 50 --heads 16 --head-dim 128]

The default is the paper's Table 11: 10 windows of 1024 image and 50 text tokens, one layer. The floor is the
time of the bare matrix products (scores and weighted values), batched by window, contiguous, without softmax,
gathering or scattering; forward and backward together take three times the forward's arithmetic.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from datetime import date

import numpy as np
import torch

from casa_core.fusion.attention import Backend, Segments, segment_attention

REPEATS = 5


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--windows", type=int, default=10)
    parser.add_argument("--image-tokens", type=int, default=1024)
    parser.add_argument("--text-tokens", type=int, default=50)
    parser.add_argument("--heads", type=int, default=16)
    parser.add_argument("--head-dim", type=int, default=128)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    windows, text, image = options.windows, options.text_tokens, options.image_tokens
    query, key, value = (
        torch.randn(count * windows, options.heads, options.head_dim, requires_grad=True)
        for count in (text, image, image)
    )
    segments = Segments.build(
        np.repeat(np.arange(windows), text), np.repeat(np.arange(windows), image), windows, "cpu"
    )

    def step(backend: Backend) -> Callable[[], None]:
        def run() -> None:
            out = segment_attention(query, key, value, segments, causal=False, backend=backend)
            out.sum().backward()

        return run

    batch = windows * options.heads
    bare_query = torch.randn(batch, text, options.head_dim)
    bare_key, bare_value = (
        torch.randn(batch, options.head_dim, image),
        torch.randn(batch, image, options.head_dim),
    )

    def floor() -> None:
        for _ in range(3):
            torch.bmm(torch.bmm(bare_query, bare_key), bare_value)

    seconds = _interleaved({"padded": step("padded"), "reference": step("reference"), "floor": floor})
    print(
        json.dumps(
            {
                "command": "python -m benchmarks.attention",
                "date": date.today().isoformat(),
                "machine": f"{platform.processor() or platform.machine()}, torch {torch.__version__}",
                "options": vars(options),
                "milliseconds": {name: round(value * 1000, 1) for name, value in seconds.items()},
                "reference_over_padded": round(seconds["reference"] / seconds["padded"], 2),
                "padded_over_floor": round(seconds["padded"] / seconds["floor"], 2),
            },
            indent=2,
        )
    )


def _interleaved(commands: dict[str, Callable[[], None]]) -> dict[str, float]:
    """Median seconds of each command, taken in turns so that a drifting machine slows all alike."""
    taken: dict[str, list[float]] = {name: [] for name in commands}
    for repeat in range(REPEATS + 1):
        for name, command in commands.items():
            began = time.perf_counter()
            command()
            if repeat:  # the first round warms up
                taken[name].append(time.perf_counter() - began)
    return {name: statistics.median(values) for name, values in taken.items()}


if __name__ == "__main__":
    main()
