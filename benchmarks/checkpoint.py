"""Measures what saving checkpoints in the background costs a step, against steps without saves, in turns.

python -m benchmarks.checkpoint [--rounds 4 --steps 10 --hidden 768]

One worker under DeepSpeed. A round is ``--steps`` steps with a save at their start, and as many without. The
parts of a save are timed too: the copy to host memory, for which the step waits, and the writing.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from benchmarks.measure import publish, read_options, table
from benchmarks.train_overhead import VOCABULARY, OurLoop, model_config
from casa_core.model import CasaForConditionalGeneration
from casa_core.processing.processor import CasaProcessor
from casa_core.processing.tokenizer import build_tokenizer
from pipelines.cost.synthetic import SequenceShape, random_batch
from pipelines.train.checkpoint import zero_state
from pipelines.train.checkpoint.save import Checkpointer, list_checkpoints

TARGET = 0.05


def main(arguments: Sequence[str] | None = None) -> None:
    options = read_options(
        __doc__,
        arguments,
        rounds=4,
        steps=(10, "from one save to the next"),
        hidden=512,
        layers=6,
        text=512,
    )
    with tempfile.TemporaryDirectory(prefix="casa-") as folder:
        os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}
        dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=0, world_size=1)
        found = measure(Path(folder), options)
        dist.destroy_process_group()
    text = report(found, options.steps)
    publish("checkpoint", "Saving in the background", options, found, text)


def measure(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Seconds per step with and without saves, and seconds of each part of a save."""
    torch.manual_seed(0)
    model = CasaForConditionalGeneration(model_config(vars(options))).train()
    processor = CasaProcessor(build_tokenizer(["a few words of text"] * 3, 300), max_side=64)
    shape = SequenceShape(options.text, 8, 4, 3 * 8 * 8, 8)
    batches = [random_batch(shape, 1, VOCABULARY, torch.Generator().manual_seed(0))]
    loop = OurLoop(model, batches, 1, zero_stage=2)
    saver = Checkpointer(folder / "checkpoints", rank=0, world_size=1, keep=1, keep_best=0)
    loop.step()  # the optimizer's moments are made in the first
    saver.save(loop.engine, processor, steps_done=1)
    saver.close()
    taken: dict[str, list[float]] = {"with": [], "without": []}
    copies, writes, done = [], [], 1
    for number in range(options.rounds):
        for name in sorted(taken, reverse=bool(number % 2)):
            began = time.perf_counter()
            if name == "with":
                saver.save(loop.engine, processor, steps_done=done)
            for _ in range(options.steps):
                loop.step()
                saver.check()
                done += 1
            taken[name].append((time.perf_counter() - began) / options.steps)
            if name == "with":
                saver.close()
                assert list_checkpoints(folder / "checkpoints")[-1].steps_done == done - options.steps
        began = time.perf_counter()
        zero_state.capture(loop.engine)
        copies.append(time.perf_counter() - began)
        began = time.perf_counter()
        saver.save(loop.engine, processor, steps_done=done)
        saver.close()
        writes.append(time.perf_counter() - began)
    size = sum(path.stat().st_size for path in (folder / "checkpoints").glob("step-*/*.safetensors"))
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "bytes": size,
        "with_s": statistics.median(taken["with"]),
        "without_s": statistics.median(taken["without"]),
        "copy_s": statistics.median(copies),
        "write_s": statistics.median(writes),
    }


def report(found: dict[str, Any], steps: int) -> str:
    """A table of the numbers."""
    cost = found["with_s"] / found["without_s"] - 1
    waited = found["write_s"] / (steps * found["without_s"])
    rows = [
        ["a step without a save", f"{found['without_s']:.3f} s"],
        [f"a step with a save every {steps}", f"{found['with_s']:.3f} s"],
        ["that costs", f"{100 * cost:.1f} %"],
        ["waiting for each save would cost", f"{100 * waited:.1f} %"],
        ["copy to host memory", f"{found['copy_s']:.2f} s"],
        ["the whole save", f"{found['write_s']:.2f} s"],
    ]
    return (
        table(["", ""], rows)
        + f"\n{found['parameters'] / 1e6:.1f} M parameters, {found['bytes'] / 2**20:.0f} MiB a save; a save "
        f"every {steps * found['without_s']:.0f} s of steps.\n"
    )


if __name__ == "__main__":
    main()
