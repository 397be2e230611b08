"""What the runner costs: questions per second of ``casa evaluate`` beside a plain loop over the same engine.

The plain loop reads all questions into memory and hands them to ``Engine.generate`` in one call, as a script
would: it keeps no answer and computes no key. ``generate`` submits as many as there are slots, while the
runner's next chunk is read and its pictures prepared ahead. Both load the model, and run on the same cores,
in turns; processor time is compared, so that other work on the machine changes less.

    python -m benchmarks.evaluation --checkpoint runs/train/4a84…/model --own easy.yaml --questions 2000

``--workers 2`` measures what a second worker brings instead: answers per second by the clock from the first
that comes to the last, of one worker and of two on Ray, each with one thread.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from benchmarks.measure import publish, read_options, table
from casa_core.engine.engine import Engine
from casa_core.engine.requests import GenerationRequest, SamplingParams
from casa_core.engine.settings import EngineSettings
from pipelines.evaluate.benchmarks.layout.benchmark import Question
from pipelines.evaluate.benchmarks.own import own_benchmark
from pipelines.evaluate.cluster import joined_cluster
from pipelines.evaluate.kept.answers import AnswerStore, model_fingerprint
from pipelines.evaluate.model_engine import Model
from pipelines.evaluate.results import judged
from pipelines.evaluate.runner import answer_all
from pipelines.evaluate.tables import TableQuestions, open_tables

LEAST_RATIO = 0.95
LEAST_SCALING = 0.9
SLOTS = 16


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure in turns; 0 if the runner reaches its share."""
    own = read_options(
        __doc__,
        arguments,
        checkpoint=("", "a checkpoint's folder"),
        own=("", "YAML file of a benchmark"),
        questions=(2000, "the first so many"),
        rounds=(3, "of both"),
        workers=(1, "more than one: measure so many beside one"),
    )
    folder = Path(own.checkpoint)
    source = open_tables(own_benchmark(own.own), most=own.questions)
    return scaling(own, folder, source) if own.workers > 1 else beside_plain(own, folder, source)


def beside_plain(own: argparse.Namespace, folder: Path, source: TableQuestions) -> int:
    """The runner beside a plain loop; 0 if it reaches its share."""
    ways = {"plain": lambda: plain(folder, source), "runner": lambda: runner(folder, source)}
    rounds = in_turns(ways, own.rounds)
    ratio = statistics.median(one["plain"] / one["runner"] for one in rounds)
    text = rates_table(rounds, len(source))
    text += f"\nRunner / plain loop: {ratio:.3f}, at least {LEAST_RATIO} wanted.\n"
    found = {"questions_asked": len(source), "rounds_s": rounds, "ratio": ratio}
    publish("evaluation", "The runner beside a plain loop", own, found, text)
    return 0 if ratio >= LEAST_RATIO else 1


def scaling(own: argparse.Namespace, folder: Path, source: TableQuestions) -> int:
    """One worker beside more; 0 if these are faster by ``LEAST_SCALING`` of their number."""
    names = ["1 worker", f"{own.workers} workers"]
    with joined_cluster(None, own.workers):
        ways = {
            name: partial(on_ray, folder, source, workers)
            for name, workers in zip(names, (1, own.workers), strict=True)
        }
        rounds = in_turns(ways, own.rounds)
    ratio = statistics.median(one[names[0]] / one[names[1]] for one in rounds)
    least = LEAST_SCALING * own.workers
    text = rates_table(rounds, len(source))
    text += f"\n{names[1]} / {names[0]}: {ratio:.2f}, at least {least:.1f} wanted.\n"
    found = {"questions_asked": len(source), "rounds_s": rounds, "ratio": ratio}
    publish("evaluation_workers", "Evaluation by more workers", own, found, text, "evaluation")
    return 0 if ratio >= least else 1


def in_turns(ways: dict[str, Callable[[], float]], rounds: int) -> list[dict[str, float]]:
    """Seconds of each way in each round; every second round in the other order."""
    found = []
    for number in range(rounds):
        times = {}
        for name in list(ways) if number % 2 == 0 else reversed(list(ways)):
            times[name] = ways[name]()
            print(f"round {number + 1}: {name} {times[name]:.1f} s", file=sys.stderr, flush=True)
        found.append(times)
    return found


def rates_table(rounds: Sequence[dict[str, float]], questions: int) -> str:
    """Questions per second of each way, the median of its rounds."""
    rates = {name: questions / statistics.median(one[name] for one in rounds) for name in rounds[0]}
    return table(["", "questions per second"], [[name, f"{rate:.1f}"] for name, rate in rates.items()])


def plain(folder: Path, source: TableQuestions) -> float:
    """Seconds of a plain loop: load the model, read the questions, answer them."""
    began = time.process_time()
    settings = EngineSettings(slots=SLOTS, answer_slots=SLOTS // 2, threads=True)
    engine = Engine.from_pretrained(folder, settings=settings)
    sampling = SamplingParams(max_new_tokens=source.max_new_tokens)
    questions = [one for one in source.read(0, len(source)) if isinstance(one, Question)]
    engine.generate([GenerationRequest(sample=one.sample, sampling=sampling) for one in questions])
    engine.close()
    return time.process_time() - began


def runner(folder: Path, source: TableQuestions) -> float:
    """Seconds of the runner: the same, and every answer kept and scored."""
    with tempfile.TemporaryDirectory() as store:
        began = time.process_time()
        fingerprint = model_fingerprint(folder)
        model = Model(folder=folder, digest="", fingerprint=fingerprint, slots=SLOTS)
        rows = answer_all(model, {source.benchmark.name: source}, AnswerStore(Path(store), fingerprint))
        judged(source.benchmark, rows)
        return time.process_time() - began


def on_ray(folder: Path, source: TableQuestions, workers: int) -> float:
    """Seconds by the clock that all questions take ``workers`` engines, from the first answers to the last:
    scaled by the share that the first ones were, as they are there when the clock starts."""
    with tempfile.TemporaryDirectory() as store:
        fingerprint = model_fingerprint(folder)
        model = Model(folder=folder, digest="", fingerprint=fingerprint, slots=SLOTS, threads=1)
        came: list[tuple[float, int]] = []
        answer_all(
            model,
            {source.benchmark.name: source},
            AnswerStore(Path(store), fingerprint),
            workers=workers,
            on_ray=True,
            on_rows=lambda rows: came.append((time.perf_counter(), len(rows))),
        )
    answered = sum(count for _, count in came[1:])
    return (came[-1][0] - came[0][0]) * len(source) / answered


if __name__ == "__main__":
    sys.exit(main())
