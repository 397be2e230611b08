"""Questions per second of ``casa evaluate`` and of lmms-eval with the plugin, in turns.

Both are commands as a user starts them, on one table of questions and one checkpoint: the runner with its
defaults, lmms-eval with its own (a batch size of 1) and with the runner's 16. Time is from the start of a
command to its end, with imports, loading, scoring and writing every answer. Each is run with a single
question, too, which tells its start from its answering. The answers of all must be equal. Torch has one
thread in each.

    python -m benchmarks.lmms_eval --python env/bin/python --checkpoint runs/train/4a84…/model --own easy.yaml

The YAML file describes a benchmark of one's own with one parquet file beside it. ``--python`` has lmms-eval
with its dependencies, and this package.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import yaml

from benchmarks.measure import publish, read_options, table

WANTED = 2.0
"""Runner over lmms-eval as a user starts it."""
RUNNER, DEFAULTS, BATCHED = "runner", "lmms-eval", "lmms-eval, 16"
WAYS = {
    RUNNER: "`casa evaluate`, its defaults (16 together)",
    DEFAULTS: "lmms-eval with the plugin, its defaults (1 at a time)",
    BATCHED: "lmms-eval with the plugin, `--batch_size 16`",
}
CASA = "from pipelines.cli import main; main()"
TASK = """
task: {name}
dataset_path: parquet
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: generate_until
doc_to_visual: !function utils.visual
doc_to_text: "{prompt}"
doc_to_target: {answers}
generation_kwargs: {{max_new_tokens: {max_new_tokens}, do_sample: false}}
metric_list:
  - metric: exact_match
    aggregation: mean
    higher_is_better: true
"""
UTILS = """
import io
from PIL import Image
def visual(doc):
    return [Image.open(io.BytesIO(doc["{picture}"]["bytes"])).convert("RGB")]
"""


@dataclass(frozen=True)
class Ran:
    """A command that has ended: seconds of the clock, of processors, and its answers by question."""

    wall: float
    cpu: float
    answers: Mapping[int, str]


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure in turns; 0 if the answers are equal and the runner is as much faster as is wanted."""
    own = read_options(
        __doc__,
        arguments,
        python=(sys.executable, "of the environment with lmms-eval"),
        checkpoint=("", "a checkpoint's folder"),
        own=("", "YAML file of a benchmark"),
        questions=(1000, "the first so many"),
        rounds=(2, "of all"),
    )
    rounds = []
    for number in range(own.rounds):
        ways = list(WAYS)
        first = number % len(ways)
        found: dict[str, dict[str, Ran]] = {}
        for way in (*ways[first:], *ways[:first]):
            found[way] = {"one": run(way, own, 1), "all": run(way, own, own.questions)}
            shown = ", ".join(f"{name} {one.wall:.1f} s" for name, one in found[way].items())
            print(f"round {number + 1}: {way}: {shown}", file=sys.stderr, flush=True)
        rounds.append(found)
    return report(own, rounds)


def run(way: str, own: argparse.Namespace, questions: int) -> Ran:
    """Run one command from nothing: no answer and no table of an earlier run is found by it."""
    with tempfile.TemporaryDirectory(prefix="casa-") as temporary:
        folder = Path(temporary)
        checkpoint, benchmark = Path(own.checkpoint).absolute(), Path(own.own).absolute()
        if way == RUNNER:
            given = [str(checkpoint), "--benchmarks", str(benchmark), "--limit", str(questions)]
            places = ["--store", str(folder / "store"), "--output", str(folder / "out")]
            wall, cpu = timed([sys.executable, "-c", CASA, "evaluate", *given, *places], folder)
            return Ran(wall, cpu, runner_answers(folder / "out"))
        write_task(benchmark, folder / "tasks")
        name = yaml.safe_load(benchmark.read_text())["name"]
        command = [own.python, "-m", "lmms_eval", "--model", "casa", "--model_args"]
        command += [f"pretrained={checkpoint}", "--tasks", name, "--include_path", str(folder / "tasks")]
        command += ["--limit", str(questions), "--log_samples", "--output_path", str(folder / "out")]
        command += ["--batch_size", "16"] if way == BATCHED else []
        wall, cpu = timed(command, folder)
        return Ran(wall, cpu, harness_answers(folder / "out"))


def timed(command: Sequence[str], folder: Path) -> tuple[float, float]:
    """Seconds of a command: of the clock, and of processors, its children's included.

    Raises:
        RuntimeError: If it fails; with the end of what it wrote.
    """
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(folder / "hub")}
    with (folder / "log").open("w+b") as log:
        began = time.perf_counter()
        process = subprocess.Popen(
            command, env=os.environ | offline | {"OMP_NUM_THREADS": "1"}, stdout=log, stderr=log
        )
        _, status, used = os.wait4(process.pid, 0)
        wall = time.perf_counter() - began
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            log.seek(0)
            raise RuntimeError(f"{command[:4]} failed:\n{log.read().decode(errors='replace')[-2000:]}")
    return wall, used.ru_utime + used.ru_stime


def write_task(benchmark: Path, folder: Path) -> None:
    """The same questions as a task of lmms-eval, word for word."""
    own = yaml.safe_load(benchmark.read_text())
    folder.mkdir()
    fields = own | {"data": benchmark.parent / own["data"]}
    fields["prompt"] = re.sub(r"\{(\w+)\}", r"{{\1}}", own["prompt"])
    (folder / f"{own['name']}.yaml").write_text(TASK.format(**fields))
    (folder / "utils.py").write_text(UTILS.format(**own))


def runner_answers(folder: Path) -> dict[int, str]:
    """Question → answer of an output folder of ``casa evaluate``."""
    [file] = folder.rglob("samples.parquet")
    columns = pq.read_table(file, columns=["index", "answer"]).to_pydict()
    return dict(zip(columns["index"], columns["answer"], strict=True))


def harness_answers(folder: Path) -> dict[int, Any]:
    """Question → answer of lmms-eval's samples.

    Raises:
        RuntimeError: If there are none; with the end of what it wrote.
    """
    file = next(folder.rglob("*_samples_*.jsonl"), None)
    if file is None:  # lmms-eval ends with 0 where it has failed, too
        log = (folder.parent / "log").read_text(errors="replace")
        raise RuntimeError(f"lmms-eval has written no samples:\n{log[-3000:]}")
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    return {row["doc_id"]: row["filtered_resps"] for row in rows}


def report(own: argparse.Namespace, rounds: Sequence[Mapping[str, Mapping[str, Ran]]]) -> int:
    """Publish what was found; 0 if it is as wanted."""
    asked = own.questions
    median = lambda values: statistics.median(list(values))  # noqa: E731
    rows = []
    for way, words in WAYS.items():
        whole = [one[way]["all"] for one in rounds]
        starts = [one[way]["one"] for one in rounds]
        after = median((asked - 1) / (a.wall - s.wall) for a, s in zip(whole, starts, strict=True))
        rates = [median(asked / a.wall for a in whole), median(asked / a.cpu for a in whole)]
        rows.append([words, *(f"{rate:.1f}" for rate in rates), f"{median(s.wall for s in starts):.1f}"])
        rows[-1].append(f"{after:.1f}")
    ratios = {
        way: {
            kind: median(getattr(one[way]["all"], kind) / getattr(one[RUNNER]["all"], kind) for one in rounds)
            for kind in ("wall", "cpu")
        }
        for way in (DEFAULTS, BATCHED)
    }
    runs = [one[way]["all"].answers for one in rounds for way in WAYS]
    equal = sum(len({answers.get(at) for answers in runs}) == 1 for at in range(asked))
    header = ["", "questions/s", "per processor second", "one question, s", "questions/s after the start"]
    text = table(header, rows)
    text += f"\nRunner / lmms-eval as a user starts it: {ratios[DEFAULTS]['wall']:.2f} by the clock, "
    text += f"{ratios[DEFAULTS]['cpu']:.2f} by processor time; at least {WANTED:g} wanted.\n"
    text += f"Runner / lmms-eval with `--batch_size 16`: {ratios[BATCHED]['wall']:.2f} by the clock, "
    text += f"{ratios[BATCHED]['cpu']:.2f} by processor time.\n"
    shares = [median(one[way]["one"].wall / one[way]["all"].wall for one in rounds) for way in WAYS]
    text += "Share of the clock that a command with one question takes, too: "
    text += ", ".join(f"{way} {share:.0%}" for way, share in zip(WAYS, shares, strict=True)) + ".\n"
    text += f"\nEqual in all {len(runs)} runs: the answers to {equal} of {asked} questions.\n"
    shown = argparse.Namespace(**vars(own))
    shown.checkpoint, shown.own, shown.python = "a checkpoint", Path(own.own).name, "with lmms-eval"
    found = {"questions_asked": asked, "answers_equal": equal, "ratios": ratios, "rounds": _numbers(rounds)}
    publish("lmms_eval", "The runner beside lmms-eval with the plugin", shown, found, text)
    return 0 if equal == asked and ratios[DEFAULTS]["wall"] >= WANTED else 1


def _numbers(rounds: Sequence[Mapping[str, Mapping[str, Ran]]]) -> list[dict[str, Any]]:
    """The seconds of every command."""
    return [
        {
            way: {name: {"wall": one.wall, "cpu": one.cpu} for name, one in runs.items()}
            for way, runs in each.items()
        }
        for each in rounds
    ]


if __name__ == "__main__":
    sys.exit(main())
