"""Holds `casa simulate` to runs on this machine: calibrated on two short ones, it predicts two others.

python -m benchmarks.simulation [--store FOLDER]

The quickstart's stages are run in four sizes, without Ray, one after the other; the last one trains on one
worker process instead of two. From the two shortest, each stage gets the start and the rate of a line through
its two times. They describe a machine as any other, and the simulation of the longer runs stands beside what
these took. Times are processor seconds of all processes, and the machine is described as one core: so other
work on it does not count. With a store that is kept, what was measured is not run again.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import distributed
from torch.multiprocessing.spawn import start_processes

from benchmarks.measure import publish, read_options, table
from pipelines.cli.shared.run_handle import open_run
from pipelines.cost.forecast import Rate, Rates
from pipelines.cost.simulate.node import Node, read_node
from pipelines.cost.simulate.simulation import Simulation, simulate
from pipelines.cost.workload import Workload, read_rates, workload_to_simulate
from pipelines.dag.code_version import load_function
from pipelines.dag.context import StageContext
from pipelines.dag.plan import PlannedStage
from pipelines.dag.settings import read_settings
from pipelines.data.clean.run import clean_source
from pipelines.data.pack.run import pack_sources
from pipelines.data.store.shard_pipeline import run_here
from pipelines.evaluate.evaluation import Options, model_of
from pipelines.evaluate.held_out.questions import HeldOut
from pipelines.evaluate.held_out.run import EvaluateSettings
from pipelines.evaluate.kept.answers import AnswerStore
from pipelines.evaluate.runner import answer_all
from pipelines.recipe import Recipe, load_recipe
from pipelines.recipe.where import TrainWorkers
from pipelines.storage.json_files import read_json
from pipelines.train.settings import TrainJob, read_train_settings
from pipelines.train.worker import train

RECIPE = "quickstart"
KINDS = frozenset({"corpus", "clean", "pack", "train", "evaluate"})
COMMON = (
    "evaluate.baselines=[]",
    "data.max_failures=0.05",  # few clips, and the generator spoils one
    "train.warmup_steps=10",
    "train.decay_steps=10",
)
MEASURED = "measured.json"
"""In the store: run → stage → ``cpu`` and ``wall``, seconds."""
ACCEPTED = 0.2
"""Relative error that the simulation is held to."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """A size of the run.

    Attributes:
        rows, clips: To train on; a tenth as many are held out. Rows are a multiple of 240.
        workers: Training workers.
        stages: Stages that are compared.
    """

    rows: int
    clips: int
    steps: int
    workers: int = 2
    stages: tuple[str, ...] = ("clean", "pack", "train", "evaluate")

    def times(self, factor: int) -> Size:
        """The size, so many times as large."""
        return replace(self, rows=self.rows * factor, clips=self.clips * factor, steps=self.steps * factor)

    @property
    def overrides(self) -> list[str]:
        """The recipe's settings."""
        vqa, live = "data.sources.vqa.make", "data.sources.live.make"
        held_out = {f"{vqa}.test_rows": self.rows // 10, f"{live}.test_clips": self.clips // 10}
        trained = {f"{vqa}.train_rows": self.rows, f"{live}.train_clips": self.clips}
        train = {"train.steps": self.steps, "where.train.workers": self.workers}
        return [*COMMON, *(f"{key}={value}" for key, value in {**trained, **held_out, **train}.items())]

    @property
    def questions(self) -> int:
        """Held-out questions and clips."""
        return self.rows // 10 + self.clips // 10


SIZES = {
    "warm-up": Size(rows=240, clips=20, steps=20),
    "short": Size(rows=720, clips=30, steps=20),
    "medium": Size(rows=1920, clips=90, steps=50),
    "long": Size(rows=4800, clips=240, steps=120),
    "one worker": Size(rows=4800, clips=240, steps=60, workers=1, stages=("train",)),
}
"""The first does not count: what is loaded once is loaded there."""
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "GLOO_SOCKET_IFNAME": "lo"}
CALIBRATES, PREDICTED = ("short", "medium"), ("long", "one worker")


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """A run that was measured, and what the simulation has of it.

    Attributes:
        seconds: Stage → processor seconds.
        wall: Stage → seconds of the clock.
        recipe: The recipe, over the corpora that were generated.
    """

    size: Size
    seconds: dict[str, float]
    wall: dict[str, float]
    recipe: Recipe
    work: Workload


def main(arguments: Sequence[str] | None = None) -> None:
    options = read_options(
        __doc__,
        arguments,
        store=("", "folder that keeps the runs"),
        scale=(1, "factor on all sizes, at most 3; noise weighs less in larger ones"),
    )
    os.environ |= ENVIRONMENT
    with tempfile.TemporaryDirectory(prefix="casa-") as folder:
        store = Path(options.store or folder).absolute()
        store.mkdir(parents=True, exist_ok=True)
        runs = {name: measure(name, size.times(options.scale), store) for name, size in SIZES.items()}
        node, rates = calibrated(*(runs[name] for name in CALIBRATES))
        lines = [own for name in PREDICTED for own in compare(name, runs[name], node, rates)]
    del runs["warm-up"]
    payload = {
        "calibrated": node.model_dump(mode="json", exclude={"sources"}),
        "rates": {name: getattr(rates, name).value for name in Rates.__dataclass_fields__},
        "runs": {name: {"cpu": run.seconds, "wall": run.wall} for name, run in runs.items()},
        "compared": lines,
    }
    options.store = "kept" if options.store else "new"
    publish("simulation", "The simulation beside measured runs", options, payload, report(lines, runs))


def measure(name: str, size: Size, store: Path) -> Measured:
    """Run the recipe in one size, up to its evaluation, or find what it took."""
    overrides = [*size.overrides, f"where.store={store}"]
    opened = open_run(RECIPE, overrides, KINDS)
    known = read_json(store / MEASURED, dict) or {}
    taken = known.setdefault(name, {})
    for stage in opened.stages:
        if stage.name not in taken and (stage.spec.kind in size.stages or stage.spec.kind == "corpus"):
            taken[stage.name] = run_stage(stage, store)
            (store / MEASURED).write_text(json.dumps(known, indent=1))
            print(f"{name}: {stage.name} {taken[stage.name]}", flush=True)
    folders = {stage.name: stage.folder for stage in opened.stages}
    own = list(overrides)
    for source in opened.recipe.data.sources:
        made = f"data.sources.{source}.make"
        own = [override for override in own if not override.startswith(made)]
        own += [f"{made}=null", f"data.sources.{source}.path={folders[f'corpus-{source}']}"]
    recipe = load_recipe(RECIPE, own)
    return Measured(
        size=size,
        seconds={stage: times["cpu"] for stage, times in taken.items()},
        wall={stage: times["wall"] for stage, times in taken.items()},
        recipe=recipe,
        work=workload_to_simulate(recipe, own, RECIPE, None),
    )


def run_stage(stage: PlannedStage, store: Path) -> dict[str, float]:
    """Run one stage without Ray; returns ``cpu``, of this process and its children, and ``wall``, s."""
    stage.folder.mkdir(parents=True, exist_ok=True)
    context = StageContext(
        name=stage.name,
        settings={**stage.spec.settings, **stage.spec.location},
        placement=stage.spec.placement,
        inputs=stage.inputs,
        output=stage.folder,
        fingerprint=stage.fingerprint,
    )
    began = os.times()
    if stage.spec.kind == "corpus":
        load_function(stage.spec.function)(context)
    elif stage.spec.kind == "clean":
        clean_source(context, run_here)
    elif stage.spec.kind == "pack":
        pack_sources(context, run_here)
    elif stage.spec.kind == "train":
        run_training(context, store)
    else:
        run_evaluation(context, store)
    ended = os.times()
    return {"cpu": sum(ended[:4]) - sum(began[:4]), "wall": ended.elapsed - began.elapsed}


def run_training(context: StageContext, store: Path) -> None:
    """The train stage's workers, as processes that meet over gloo."""
    inputs = {role: str(folder) for role, folder in context.inputs.items()}
    placement = TrainWorkers.model_validate(context.placement["train"])
    job = TrainJob(
        settings=read_train_settings(context.settings),
        placement=placement,
        pack=inputs.pop("pack"),
        sources=inputs,
        start=None,
        start_digest="",
        output=str(context.output),
        checkpoints=str(store / "checkpoints" / context.fingerprint),
        run_name=RECIPE,
        run_key=context.fingerprint,
        track_folder=str(store / "tracking"),
    )
    with tempfile.TemporaryDirectory(prefix="casa-") as meeting:
        start_processes(work, (placement.fewest, meeting, job), placement.fewest, start_method="spawn")


def work(rank: int, workers: int, meeting: str, job: TrainJob) -> None:
    """One training worker."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(workers)}
    method = f"file://{meeting}/store"
    distributed.init_process_group("gloo", init_method=method, rank=rank, world_size=workers)
    train(job, rank=rank, world_size=workers)
    distributed.destroy_process_group()


def run_evaluation(context: StageContext, store: Path) -> None:
    """The answers of the evaluate stage, without their scores."""
    own = read_settings(EvaluateSettings, context.settings)
    sources = {source: HeldOut.of(context.inputs[source], own.evaluate) for source in own.sources}
    folder = context.inputs["train"] / "model"
    assert isinstance(folder, Path)
    model = model_of(folder, folder, Options(slots=own.evaluate.batch_size))
    answer_all(model, sources, AnswerStore(store / "answers", model.fingerprint))


def calibrated(short: Measured, medium: Measured) -> tuple[Node, Rates]:
    """This machine and its rates, from two runs."""
    both = (short, medium)
    known = read_rates(None, ())
    found = [one_core(run) for run in both]

    def fit(stage: str, units: Sequence[float], less: Sequence[float] = (0.0, 0.0)) -> tuple[float, float]:
        return line(units, [run.seconds[stage] - own for run, own in zip(both, less, strict=True)])

    still, moving = (
        [sum(s.megapixels.value for s in one.data.sources if s.video == video) for one in found]
        for video in (False, True)
    )
    vqa, live = fit("clean-vqa", still), fit("clean-live", moving)
    placing = [one.stage("pack").loads["packer"] for one in found]
    encoding = [one.stage("pack").loads["CPU encoding"] * known.encode_tokens.value for one in found]
    pack = fit("pack", encoding, placing)
    evaluate = fit("evaluate", [run.size.questions for run in both])
    train = fit("train", [one.stage("train").loads["GPU compute"] for one in found])
    node = described(
        gpu_tflops=train[1],
        clean_start_s=(vqa[0] + live[0]) / 2,
        pack_start_s=pack[0],
        train_start_s=train[0],
        evaluate_start_s=evaluate[0],
        answers=evaluate[1],
    )
    measured = {"clean_megapixels": vqa, "video_megapixels": live, "encode_tokens": pack}
    rates = {name: Rate(value=rate, source="short runs") for name, (_, rate) in measured.items()}
    return node, replace(known, **rates)


def one_core(run: Measured) -> Simulation:
    """A run on one core of 10^12 operations per second: its loads are its units."""
    return simulate(run.recipe, run.work, described(), read_rates(None, ()), 1, run.size.questions)


def line(units: Sequence[float], seconds: Sequence[float]) -> tuple[float, float]:
    """Start, s, and units per second, of a line through two points; no start where noise denies one."""
    slope = (seconds[1] - seconds[0]) / (units[1] - units[0])
    start = seconds[1] - slope * units[1]
    if slope <= 0 or start < 0:
        return 0.0, units[1] / seconds[1]
    return start, 1 / slope


def described(**changes: Any) -> Node:
    """One core of this machine, which does everything and trains as fast as its steps say.

    Its memory, the workers' traffic and the loader's threads are in that rate, and do not count once more.
    """
    values: Mapping[str, Any] = {
        "name": "this machine",
        "gpu": "core",
        "gpus": 1,
        "cpus": 1,
        "gpu_memory_gib": 1000,
        "gpu_tflops": 1.0,
        "gpu_bandwidth_gbs": 1e6,
        "mfu": 1.0,
        "gpu_link_gbs": 1e6,
        "load_megapixels": 1e6,
        "folder_gbs": 1.0,
        "store_link_gbps": 1000,
        "mtbf_hours": 1e9,
        "restart_s": 0,
        "price": 0,
        **changes,
    }
    return read_node(None, [f"{key}={value}" for key, value in values.items()])


def compare(name: str, run: Measured, node: Node, rates: Rates) -> list[dict[str, Any]]:
    """Predicted and measured seconds of each stage of a run, and of all together."""
    # Each worker has a start of its own; the calibrating runs had two.
    own = node.model_copy(update={"train_start_s": node.train_start_s * run.size.workers / 2})
    found = simulate(run.recipe, run.work, own, rates, 1, run.size.questions)
    lines = []
    for stage in run.size.stages:
        # `clean` is one stage for each source.
        measured = sum(s for key, s in run.seconds.items() if key.partition("-")[0] == stage)
        lines.append(_line(name, stage, found.stage(stage).seconds.value, measured))
    if len(lines) > 1:
        sums = (sum(own[part] for own in lines) for part in ("predicted_s", "measured_s"))
        lines.append(_line(name, "in all", *sums))
    return lines


def _line(run: str, stage: str, predicted: float, measured: float) -> dict[str, Any]:
    error = predicted / measured - 1
    return {
        "run": run,
        "stage": stage,
        "predicted_s": predicted,
        "measured_s": measured,
        "error": error,
        "within": abs(error) <= ACCEPTED,
    }


def report(lines: Sequence[dict[str, Any]], runs: Mapping[str, Measured]) -> str:
    """Tables of the sizes and of the comparison."""
    sizes = [
        [
            name,
            "calibrates" if name in CALIBRATES else "predicted",
            f"{run.size.rows:,}",
            run.size.clips,
            run.size.steps,
            run.size.workers,
            f"{sum(run.wall.values()):.0f}",
        ]
        for name, run in runs.items()
    ]
    rows = [
        [
            line["run"],
            line["stage"],
            f"{line['predicted_s']:.1f}",
            f"{line['measured_s']:.1f}",
            f"{line['error']:+.0%}",
            "yes" if line["within"] else "no",
        ]
        for line in lines
    ]
    head = ["run", "", "pictures", "clips", "steps", "training workers", "wall clock, s"]
    return (
        table(head, sizes)
        + "\n"
        + table(["run", "stage", "predicted", "measured", "error", f"within {ACCEPTED:.0%}"], rows)
        + "\nProcessor seconds of a stage's processes. Each size was run once. Evaluation takes as "
        "long as what a model says: after the few steps of the shortest run it is silent about clips.\n"
    )


if __name__ == "__main__":
    main()
