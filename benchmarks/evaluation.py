"""What the runner costs: questions per second of ``casa evaluate`` beside a plain loop over the same engine.

The plain loop reads all questions into memory and hands them to ``Engine.generate`` in one call, as a script
would: it keeps no answer and computes no key. ``generate`` submits as many as there are slots, while the
runner's next chunk is read and its pictures prepared ahead. Both load the model, and run on the same cores,
in turns; processor time is compared, so that other work on the machine changes less.

    python -m benchmarks.evaluation --checkpoint runs/train/4a84…/model --own easy.yaml --questions 2000
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.measure import publish, read_options, table
from casa_core.engine.engine import Engine
from casa_core.engine.requests import GenerationRequest, SamplingParams
from casa_core.engine.settings import EngineSettings
from pipelines.evaluate.benchmarks.layout.benchmark import Question
from pipelines.evaluate.benchmarks.own import own_benchmark
from pipelines.evaluate.kept.answers import AnswerStore, model_fingerprint
from pipelines.evaluate.model_engine import Model
from pipelines.evaluate.results import judged
from pipelines.evaluate.runner import answer_all
from pipelines.evaluate.tables import TableQuestions, open_tables

LEAST_RATIO = 0.95
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
    )
    folder = Path(own.checkpoint)
    source = open_tables(own_benchmark(own.own), most=own.questions)
    rows = []
    for number in range(own.rounds):
        times = {}
        for name in ("plain", "runner") if number % 2 == 0 else ("runner", "plain"):
            times[name] = plain(folder, source) if name == "plain" else runner(folder, source)
            print(f"round {number + 1}: {name} {times[name]:.1f} s", file=sys.stderr, flush=True)
        rows.append(times)
    ratio = statistics.median(one["plain"] / one["runner"] for one in rows)
    rates = {name: len(source) / statistics.median(one[name] for one in rows) for name in ("plain", "runner")}
    text = table(["", "questions per second"], [[name, f"{rate:.1f}"] for name, rate in rates.items()])
    text += f"\nRunner / plain loop: {ratio:.3f}, at least {LEAST_RATIO} wanted.\n"
    found = {"questions_asked": len(source), "rounds_s": rows, "ratio": ratio}
    publish("evaluation", "The runner beside a plain loop", own, found, text)
    return 0 if ratio >= LEAST_RATIO else 1


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


if __name__ == "__main__":
    sys.exit(main())
