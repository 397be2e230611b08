"""Checks for a GPU, one model or group a call, each under four minutes on an H200.

python -m benchmarks.gpu.run ceilings
python -m benchmarks.gpu.run parity
python -m benchmarks.gpu.run stream --model CASA-Helium1-VL-2B [--turns 256]
python -m benchmarks.gpu.run train --variant "CASA, parallel"
python -m benchmarks.gpu.run layer
python -m benchmarks.gpu.run streams
python -m benchmarks.gpu.run render

Each checks correctness on fresh random inputs before any timing, and writes
``benchmarks/results/gpu/<date>-<sub-command>.json``; ``render`` makes ``benchmarks/results/gpu.md`` of them.
Without a GPU: ``--device cpu --scale tiny`` shows that all of it runs.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.gpu import ceilings, layer, parity, render, stream, streams, train
from benchmarks.gpu.common import RESULTS, Setting
from casa_core.dtypes import DTYPES


def main(arguments: Sequence[str] | None = None) -> None:
    options = _parser().parse_args(arguments)
    if options.command == "render":
        print(render.render(options.results))
        return
    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    setting = Setting(
        device=torch.device(device),
        dtype=DTYPES[options.dtype],
        tiny=options.scale == "tiny",
        seconds=options.seconds,
        results=options.results,
    )
    if options.command == "ceilings":
        ceilings.run(setting)
    elif options.command == "parity":
        parity.run(setting)
    elif options.command == "stream":
        stream.run(setting, options.model, options.turns)
    elif options.command == "train":
        train.run(setting, options.variant, options.rounds, options.checkpointing)
    elif options.command == "layer":
        layer.run(setting, options.rounds)
    else:
        streams.run(setting, options.rounds, options.history, options.most)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    every = {name: commands.add_parser(name) for name in render.TITLES}
    for command in every.values():
        command.add_argument("--device", help="cuda where there is one, by default")
        command.add_argument("--dtype", choices=sorted(DTYPES), default="bf16")
        command.add_argument("--scale", choices=("full", "tiny"), default="full")
        command.add_argument("--seconds", type=float, default=180.0, help="a stream stops early after these")
    every["stream"].add_argument("--model", choices=sorted(stream.MODELS), default="CASA-Helium1-VL-2B")
    every["stream"].add_argument("--turns", type=int, default=256)
    every["train"].add_argument("--variant", choices=sorted(train.VARIANTS), default="CA")
    every["train"].add_argument("--rounds", type=int, default=10)
    every["train"].add_argument("--checkpointing", action="store_true", help="recompute activations")
    every["layer"].add_argument("--rounds", type=int, default=50)
    every["streams"].add_argument("--rounds", type=int, default=10, help="of each trial")
    every["streams"].add_argument("--history", type=int, default=512, help="text tokens of a stream before")
    every["streams"].add_argument("--most", type=int, default=512)
    every["render"] = commands.add_parser("render")
    for command in every.values():
        command.add_argument("--results", type=Path, default=RESULTS)
    return parser


if __name__ == "__main__":
    main()
