"""Measures how long a step waits for its data, by the ratio of decoding time to step time.

python -m benchmarks.loader [--pictures 240 --threads 1,2 --steps 40]

Rendered pictures of 300 to 1200 pixels per side are cleaned and packed by `casa prepare`, up to 448 pixels.
The real loader reads, decodes, resizes and patchifies them ahead of steps that take a given time and no CPU,
as on a GPU. The ratio is one thread's seconds of work on a step's data, over the step's seconds.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.clean_corpus import encoded_picture, picture_paths
from benchmarks.measure import publish, read_options, table
from casa_core.processing.processor import CasaProcessor
from pipelines.train.loader import SequenceReader, Share, iterate_steps, micro_batch
from pipelines.train.sampler import StepSampler

RATIOS = (0.25, 0.5, 0.8, 1.0, 1.2, 1.5, 1.7, 1.8, 1.9, 2.0, 2.5)
WARM_UP = 5
"""Steps that do not count."""
BATCH = 2
"""Packed sequences per step."""
HELD = 0.01

RECIPE = """
name: loader
data: {sources: {pictures: {reader: image_text, path: %s}}}
model:
  backbone: tiny
  fusion: {kind: cross_attention}
  tokenizer: {train_bpe: {vocab_size: 320}}
  template: casa-1
pack: {text_tokens: 512, image_tokens: 4096, max_side: 448}
train: {steps: 10, sequences_per_step: 2, image_video_ratio: [1, 0], learning_rate: 0.001}
deploy: {model_name: loader}
where: {store: %s, ray: {num_cpus: 2, object_store_mb: 256}}
"""


def main(arguments: Sequence[str] | None = None) -> None:
    steps = (40, "of each ratio, after the warm-up")
    options = read_options(__doc__, arguments, pictures=240, threads="1,2", steps=steps)
    with tempfile.TemporaryDirectory(prefix="casa-") as folder:
        reader = prepare(Path(folder), options.pictures)
        work = decode_seconds(reader)
        runs = [
            measure(reader, int(threads), ratio, work, options.steps)
            for threads in options.threads.split(",")
            for ratio in RATIOS
        ]
    found = {"decode_seconds": work, "runs": runs}
    publish("loader", "Waiting for data", options, found, report(runs, work))


def prepare(folder: Path, pictures: int) -> SequenceReader:
    """Pictures → packed sequences, as `casa prepare` makes them."""
    raw = folder / "raw"
    (raw / "files").mkdir(parents=True)
    for number, path in enumerate(picture_paths(raw, pictures)):
        path.write_bytes(encoded_picture(number))
    lines = [
        {"image": f"files/{path.name}", "texts": [{"user": f"what is in {n}?", "assistant": "twelve discs"}]}
        for n, path in enumerate(picture_paths(raw, pictures))
    ]
    (raw / "data.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    recipe = folder / "recipe.yaml"
    recipe.write_text(RECIPE % (raw, folder / "runs"))
    command = [str(Path(sys.executable).with_name("casa"))]
    try:
        subprocess.run([*command, "prepare", str(recipe), "--json"], check=True, stdout=subprocess.DEVNULL)
    finally:
        subprocess.run([*command, "stop", "--store", str(folder / "runs")], stdout=subprocess.DEVNULL)
    (pack,), (clean,) = ((folder / "runs" / kind).iterdir() for kind in ("pack", "clean"))
    processor = CasaProcessor.from_pretrained(pack / "tokenizer")
    assert isinstance(processor, CasaProcessor)
    return SequenceReader(pack, {"pictures": clean}, processor)


def decode_seconds(reader: SequenceReader) -> float:
    """Median seconds of one thread's work on a step's data."""
    numbers = reader.pack.by_kind["image"].tolist()
    taken = []
    for start in range(0, len(numbers) - 1, BATCH):
        own = numbers[start : start + BATCH]
        began = time.perf_counter()
        micro_batch(reader, [reader.read(number) for number in own])
        taken.append(time.perf_counter() - began)
    return statistics.median(taken)


def measure(reader: SequenceReader, threads: int, ratio: float, work: float, steps: int) -> dict[str, Any]:
    """Take steps of ``work / ratio`` seconds, and measure the share of time that they wait."""
    order = StepSampler(reader.pack.by_kind, ratio=(1, 0), sequences_per_step={"image": BATCH}, seed=0)
    loaded = iterate_steps(reader, order, start=0, stop=WARM_UP + steps, share=Share(), threads=threads)
    waited = total = 0.0
    for number in range(WARM_UP + steps):
        began = time.perf_counter()
        next(loaded)
        ready = time.perf_counter()
        time.sleep(work / ratio)
        if number >= WARM_UP:
            waited += ready - began
            total += time.perf_counter() - began
    return {"threads": threads, "ratio": ratio, "step_s": work / ratio, "wait_share": waited / total}


def report(runs: Sequence[dict[str, Any]], work: float) -> str:
    """A table with one row per ratio and one column per number of threads."""
    threads = sorted({run["threads"] for run in runs})
    shares = {(run["threads"], run["ratio"]): run["wait_share"] for run in runs}
    rows = [
        [
            f"{ratio:g}",
            f"{1000 * work / ratio:.0f}",
            *(f"{100 * shares[own, ratio]:.2f} %" for own in threads),
        ]
        for ratio in RATIOS
    ]
    holds = {own: _held(own, shares) for own in threads}
    head = ["decode s / step s", "step, ms", *(f"waiting, {own} thread{'s' * (own > 1)}" for own in threads)]
    held = ", ".join(f"{ratio:g} with {own} thread{'s' * (own > 1)}" for own, ratio in holds.items())
    return (
        table(head, rows)
        + f"\nOne thread works {1000 * work:.0f} ms on a step's data. Waiting stays under 1 % up to a ratio "
        f"of {held}, of {os.cpu_count()} CPUs.\n"
    )


def _held(threads: int, shares: dict[tuple[int, float], float]) -> float:
    """The largest ratio up to which waiting is below the limit at every one."""
    held = 0.0
    for ratio in RATIOS:
        if shares[threads, ratio] >= HELD:
            break
        held = ratio
    return held


if __name__ == "__main__":
    main()
