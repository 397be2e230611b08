"""Choosing tokens beside the bare argmax of the same logits, in one run.

python -m benchmarks.sampling [--rows 64 --vocabulary 151936 --threads 1 --device cpu]

One step of a Sampler whose rows all have the same settings: greedy, greedy with the live captioner's
processors, drawing from the whole distribution, and drawing from a nucleus (which sorts the vocabulary).
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from datetime import date

import torch

from casa_core.engine.requests import SamplingParams
from casa_core.engine.sampling import Sampler

REPEATS = 5
CAPTIONER = {"repetition_penalty": 1.0, "no_repeat_ngram_size": 4, "stop_bias": 0.5}
SETTINGS = {
    "greedy": SamplingParams(),
    "greedy, processors": SamplingParams(**CAPTIONER),
    "temperature": SamplingParams(temperature=0.7, seed=0),
    "temperature, processors": SamplingParams(temperature=0.7, seed=0, **CAPTIONER),
    "temperature, top_p": SamplingParams(temperature=0.7, seed=0, top_p=0.9),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--vocabulary", type=int, default=151_936)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    logits_BV = torch.randn(options.rows, options.vocabulary, device=options.device)

    def step(params: SamplingParams) -> Callable[[], object]:
        sampler = Sampler(options.rows, options.vocabulary, device=options.device)
        for row in range(options.rows):
            sampler.set_slot(row, params, stop_ids=[0])
        return lambda: sampler.choose(logits_BV)

    commands = {name: step(params) for name, params in SETTINGS.items()}
    seconds = _interleaved({"argmax": lambda: logits_BV.argmax(-1), **commands}, options.device)
    print(
        json.dumps(
            {
                "command": "python -m benchmarks.sampling",
                "date": date.today().isoformat(),
                "machine": f"{platform.processor() or platform.machine()}, torch {torch.__version__}",
                "options": vars(options),
                "milliseconds": {name: round(value * 1000, 2) for name, value in seconds.items()},
                "over_argmax": {name: round(value / seconds["argmax"], 1) for name, value in seconds.items()},
            },
            indent=2,
        )
    )


def _interleaved(commands: dict[str, Callable[[], object]], device: str) -> dict[str, float]:
    """Median seconds of each command, taken in turns so that a drifting machine slows all alike."""
    taken: dict[str, list[float]] = {name: [] for name in commands}
    for repeat in range(REPEATS + 1):
        for name, command in commands.items():
            began = time.perf_counter()
            command()
            if device != "cpu":
                torch.cuda.synchronize()
            if repeat:  # the first round warms up
                taken[name].append(time.perf_counter() - began)
    return {name: statistics.median(values) for name, values in taken.items()}


if __name__ == "__main__":
    main()
