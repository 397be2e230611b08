"""Measures what the DAG engine adds to a stage beside what Ray takes to start its process.

python -m benchmarks.dag_overhead [--stages 100 --rounds 4 --parallel 2]

The stages of a DAG do nothing; each needs one of the two before it, so that as many run side by side as may.
Beside them, in the same rounds, on the same head and with the same parallelism, Ray's own client submits as
many jobs: once a Python process that only leaves a sign that it ran (Ray's part: submission and the start of
a process), once our job's process without the runner above it. A job counts as ended at its sign, an instant
before Ray notices its end: what remains is all that the engine adds. Also measured: the same DAG when all of
it is done.
"""

from __future__ import annotations

import argparse
import shlex
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.measure import publish, read_options, table
from infra import local_ray
from pipelines.cli.show.watch import Watcher
from pipelines.dag.jobs import ROOT, Cluster
from pipelines.dag.plan import PlannedStage, StageSpec, plan
from pipelines.dag.records import JobSpec, Records
from pipelines.dag.run import Runner

RAY = {"address": "local", "num_cpus": 4, "object_store_mb": 128}
SIGN_S = 0.005
LONGEST_S = 120.0


def specs(names: str, count: int, parallel: int) -> list[StageSpec]:
    """Stages in ``parallel`` chains."""
    return [
        StageSpec(
            name=f"{names}-{number}",
            kind="trivial",
            settings={"number": number, "of": names},
            function="benchmarks.trivial_stage:trivial",
            inputs={"before": f"{names}-{number - parallel}"} if number >= parallel else {},
        )
        for number in range(count)
    ]


class Bench:
    """A store and a head in a temporary folder."""

    def __init__(self, folder: Path, parallel: int) -> None:
        from ray.job_submission import JobSubmissionClient

        self.folder, self.store, self.parallel = folder, folder / "store", parallel
        self.records = Records(self.store)
        self.records.prepare()
        head = local_ray.start(
            self.records.session, num_cpus=RAY["num_cpus"], object_store_mb=RAY["object_store_mb"],
            python_path=ROOT,
        )  # fmt: skip
        self.client = JobSubmissionClient(head.address)

    def planned(self, stages: Sequence[StageSpec]) -> list[PlannedStage]:
        return plan(stages, self.store, {"trivial": "1"})

    def engine(self, names: str, count: int) -> None:
        """The DAG, by the runner."""
        stages = self.planned(specs(names, count, self.parallel))
        self.run(stages)

    def run(self, stages: Sequence[PlannedStage]) -> None:
        cluster = Cluster(RAY, self.records.session, self.store)
        Runner(stages, self.records, cluster, Watcher(stages), parallel=self.parallel).run()

    def ray(self, names: str, count: int) -> None:
        """As many processes that leave a sign, by Ray's client."""

        def job(number: int) -> tuple[str, Path]:
            sign = self.folder / f"{names}-{number}.sign"
            code = f"open({str(sign)!r}, 'w')"
            return f"exec {shlex.quote(sys.executable)} -c {shlex.quote(code)}", sign

        self._submit_all(job, count)

    def jobs(self, names: str, count: int) -> None:
        """The same stages' jobs, by Ray's client."""
        stages = self.planned(specs(names, count, self.parallel))

        def job(number: int) -> tuple[str, Path]:
            spec = JobSpec.of(stages[number], self.store, 1)
            path = self.records.write_spec(spec)
            sign = self.records.outcome_path(spec.job_id)
            assert isinstance(sign, Path)
            words = [sys.executable, "-m", "pipelines.dag.job_main", str(path)]
            return f"exec {shlex.join(words)}", sign

        self._submit_all(job, count)

    def _submit_all(self, job: Callable[[int], tuple[str, Path]], count: int) -> None:
        def lane(first: int) -> None:
            for number in range(first, count, self.parallel):
                entrypoint, sign = job(number)
                self.client.submit_job(entrypoint=entrypoint)
                deadline = time.monotonic() + LONGEST_S
                while not sign.exists():
                    assert time.monotonic() < deadline, f"{sign} never appeared"
                    time.sleep(SIGN_S)

        lanes = [threading.Thread(target=lane, args=(first,)) for first in range(self.parallel)]
        for thread in lanes:
            thread.start()
        for thread in lanes:
            thread.join()


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Rounds of each in turns; seconds."""
    count = options.stages // options.rounds
    with tempfile.TemporaryDirectory(prefix="casa-") as name:
        bench = Bench(Path(name), options.parallel)
        commands = {"ray": bench.ray, "jobs": bench.jobs, "engine": bench.engine}
        try:
            taken: dict[str, list[float]] = {arm: [] for arm in commands}
            for number in range(options.rounds + 1):
                size = count if number else options.parallel  # the first warms up
                names = list(commands)
                for arm in (*names[number % 3 :], *names[: number % 3]):
                    began = time.perf_counter()
                    commands[arm](f"{arm}{number}", size)
                    if number:
                        taken[arm].append(time.perf_counter() - began)
            every = [
                spec
                for number in range(1, options.rounds + 1)
                for spec in specs(f"engine{number}", count, options.parallel)
            ]
            again = []
            for _ in range(5):
                began = time.perf_counter()
                bench.run(bench.planned(every))
                again.append(time.perf_counter() - began)
        finally:
            local_ray.stop(bench.records.session)
    return {"count": count, "seconds": taken, "done_again": again, "stages_again": len(every)}


def report(found: dict[str, Any]) -> str:
    """Tables of the rounds and of what the engine adds."""
    count, seconds = found["count"], found["seconds"]
    rows = [
        [number, *(f"{seconds[arm][number - 1]:.2f}" for arm in seconds), *_added(seconds, number - 1, count)]
        for number in range(1, len(seconds["ray"]) + 1)
    ]
    means = {arm: statistics.mean(values) for arm, values in seconds.items()}
    rows.append(["mean", *(f"{means[arm]:.2f}" for arm in means), *_added_by(means, count)])
    head = ["round", "Ray alone, s", "our jobs, s", "engine, s", "job adds, ms a stage"]
    again = statistics.median(found["done_again"]) * 1e3
    return (
        table([*head, "runner adds, ms a stage", "engine adds, ms a stage"], rows)
        + f"\n{count} stages in a round. A second run of all {found['stages_again']} stages, planned and "
        f"found done: {again:.0f} ms (median of {len(found['done_again'])}).\n"
    )


def _added(seconds: dict[str, list[float]], number: int, count: int) -> list[str]:
    return _added_by({arm: values[number] for arm, values in seconds.items()}, count)


def _added_by(seconds: dict[str, float], count: int) -> list[str]:
    ray, jobs, engine = (seconds[arm] / count * 1e3 for arm in ("ray", "jobs", "engine"))
    return [f"{jobs - ray:.0f}", f"{engine - jobs:.0f}", f"{engine - ray:.0f}"]


def main(arguments: Sequence[str] | None = None) -> None:
    options = read_options(__doc__, arguments, stages=100, rounds=4, parallel=2)
    found = measure(options)
    publish("dag_overhead", "What the DAG engine adds to a stage", options, found, report(found))


if __name__ == "__main__":
    main()
