"""A long run of the endpoint on Ray Serve: viewers, askers, clients that misbehave, an engine that dies.

python -m benchmarks.serve_soak --model CHECKPOINT [--streams 32 --seconds 600 --kill 480]

Starts a Ray head of its own, two engines behind one endpoint, and real clients over HTTP. Afterwards every
caption of every viewer is compared with the words that the same checkpoint says about the same pictures alone
and in lockstep, up to the viewer's first move that is not exact; so are the answers.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from ray.dashboard.modules.serve.sdk import ServeSubmissionClient

from benchmarks.engine.common import Check
from benchmarks.measure import publish, read_options, slope, table
from benchmarks.plot import Line, Panel, figure
from benchmarks.soak_clients import QUERY, QUESTION, Asker, Viewer, leave_without_a_word, never_read, pictures
from casa_core.engine.engine import Engine
from casa_core.engine.requests import GenerationRequest, SamplingParams
from casa_core.processing.arrangement import arrange
from casa_core.types import Image, Sample
from infra import local_ray
from pipelines.deploy import ray_serve
from pipelines.deploy.endpoint import endpoint_url

MODEL = "casa-soak"
APPLICATION = "casa-soak"
MIB = 2**20
ON_WITHIN_S = 5.0
"""Seconds after an engine's death in which its streams must have words again."""


@dataclass(slots=True)
class Memory:
    """Resident MiB by second: of the engines and the endpoint together, and of each process by itself."""

    seconds: list[float] = field(default_factory=list)
    mib: list[float] = field(default_factory=list)
    each: dict[str, list[tuple[float, float]]] = field(default_factory=dict)


def main(arguments: Sequence[str] | None = None) -> int:
    options = read_options(
        __doc__,
        arguments,
        model=("", "folder of the checkpoint"),
        streams=(32, "viewers"),
        fps=(1.0, "pictures per second of each"),
        seconds=(600, "of the run"),
        askers=(2, "clients that ask all the time"),
        pause=(0.5, "seconds between two questions of one"),
        leavers=(10, "clients that leave without a word"),
        slow=(10, "clients that do not read"),
        kept=(256, "events that a session keeps for readers that come back"),
        settled=(420, "seconds after which text KVs and kept events have their full size"),
        kill=(480, "seconds after which an engine is killed; 0: never"),
    )
    with endpoint(options) as (url, cluster):
        run = Run(options, url, cluster)
        asyncio.run(run.go())
    return run.report(expected=Lockstep(options.model))


@contextmanager
def endpoint(options: argparse.Namespace) -> Iterator[tuple[str, ServeSubmissionClient]]:
    """Two engines behind one endpoint, on a Ray head of their own."""
    os.environ["OMP_NUM_THREADS"] = "1"
    with tempfile.TemporaryDirectory(prefix="casa-soak-") as folder, socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        free.close()
        head = local_ray.start(Path(folder), num_cpus=4, object_store_mb=512)
        cluster = ServeSubmissionClient(head.address)
        settings = {
            "model_folder": options.model,
            "model_name": MODEL,
            "fingerprint": "soak",
            "checkpoint": "soak",
            "max_new_tokens": 16,
            "live_query": QUERY,
            "replicas": {"min": 2, "max": 2},
            "num_cpus": 0.5,
            "limits": {
                "sessions": options.streams + options.slow + options.leavers,
                "answers": 8,
                "kept_events": options.kept,
            },
        }
        try:
            ray_serve.start(cluster, {"host": "127.0.0.1", "port": port}, settings, {}, APPLICATION)
            yield endpoint_url("127.0.0.1", port), cluster
        finally:
            local_ray.stop(Path(folder))


class Run:
    """The run, and what was seen of it."""

    def __init__(self, options: argparse.Namespace, url: str, cluster: ServeSubmissionClient) -> None:
        self.options, self.url, self.cluster = options, url, cluster
        self.viewers = [Viewer(number) for number in range(options.streams)]
        self.askers = [Asker(number, MODEL) for number in range(options.askers)]
        self.memory, self.seen = Memory(), dict[int, int]()
        self.began = self.killed = 0.0

    async def go(self) -> None:
        """Everything at once."""
        options = self.options
        self.began = time.monotonic()
        end = self.began + options.seconds
        leaving = [
            self.began + options.seconds * (n + 1) / (options.leavers + 2) for n in range(options.leavers)
        ]
        await asyncio.gather(
            *(viewer.watch(self.url, options.fps, end) for viewer in self.viewers),
            *(asker.ask(self.url, end, options.pause) for asker in self.askers),
            *(leave_without_a_word(self.url, number, at) for number, at in enumerate(leaving)),
            *(never_read(self.url, number, options.fps, end) for number in range(options.slow)),
            self._look(end),
            *([self._kill()] if options.kill else []),
        )

    async def _kill(self) -> None:
        await asyncio.sleep(self.options.kill)
        pid = (await asyncio.to_thread(self._pids, "engine"))[0]
        self.killed = time.monotonic()
        os.kill(pid, signal.SIGKILL)
        print(f"killed engine {pid}", flush=True)

    async def _look(self, end: float) -> None:
        while time.monotonic() < end:
            found = await asyncio.to_thread(lambda: {n: self._pids(n) for n in ("engine", "endpoint")})
            sizes = {
                f"{name} {self._number(pid)}": resident(pid) / MIB
                for name, pids in found.items()
                for pid in pids
            }
            if len(sizes) == 3:
                now = time.monotonic() - self.began
                self.memory.seconds.append(now)
                self.memory.mib.append(sum(sizes.values()))
                for name, mib in sizes.items():
                    self.memory.each.setdefault(name, []).append((now, mib))
            said = sum(caption.fate == "caption" for viewer in self.viewers for caption in viewer.captions)
            answers = sum(len(asker.answers) for asker in self.askers)
            print(f"{time.monotonic() - self.began:5.0f} s: {said} captions, {answers} answers", flush=True)
            await asyncio.sleep(5)

    def _number(self, pid: int) -> int:
        """Processes by the order in which they were seen."""
        return self.seen.setdefault(pid, len(self.seen) + 1)

    def _pids(self, deployment: str) -> list[int]:
        found = self.cluster.get_serve_details()["applications"][APPLICATION]["deployments"][deployment]
        return [one["pid"] for one in found["replicas"] if one["state"] == "RUNNING"]

    def report(self, expected: Lockstep) -> int:
        """Print and write what was found; 0 where everything holds."""
        captions = [caption for viewer in self.viewers for caption in viewer.captions]
        said = [caption for caption in captions if caption.fate == "caption"]
        waits = [caption.came - caption.shown for caption in said]
        wrong, compared = map(
            sum, zip(*(expected.differences(viewer) for viewer in self.viewers), strict=True)
        )
        asked = [(asker, answer) for asker in self.askers for answer in asker.answers]
        false = sum(expected.answer(asker, answer[0]) != answer[3] for asker, answer in asked)
        failures = [failure for asker in self.askers for failure in asker.failures]
        errors = [error for viewer in self.viewers for error in viewer.errors]
        dropped = sum(caption.fate == "dropped" for caption in captions)
        growth = self._growth()
        checks = [
            Check("no session is cut", not errors, str(errors[:3]) if errors else "none"),
            Check(
                "every picture has words or is named",
                all(c.fate != "waiting" for c in captions),
                f"{len(said)} captions, {dropped} dropped or lost of {len(captions)}",
            ),
            Check(
                "captions are those of the viewer's own pictures", wrong == 0, f"{wrong} of {compared} differ"
            ),
            Check(
                "no request fails", not failures, str(failures[:3]) if failures else f"{len(asked)} answered"
            ),
            Check("answers are those of lockstep", false == 0, f"{false} of {len(asked)} differ"),
            Check(
                "memory is flat once text KVs and kept events have their full size",
                growth.low <= 0 or growth.value < 20,
                f"{growth.value:.1f} [{growth.low:.1f}, {growth.high:.1f}] KiB/s",
            ),
        ]
        if self.killed:
            gaps = [gap for viewer in self.viewers if (gap := self._silence(viewer)) is not None]
            checks.append(
                Check(
                    f"streams of a killed engine go on within {ON_WITHIN_S:.0f} s",
                    bool(gaps) and max(gaps) <= ON_WITHIN_S,
                    f"{len(gaps)} moved, {max(gaps, default=0):.1f} s at most",
                )
            )
        late = np.mean([caption.late_ms > 0 for caption in said])
        rows = [
            [
                "frames, from shown to words (ms)",
                *(f"{np.percentile(waits, q) * 1e3:.0f}" for q in (50, 95, 99)),
            ],
            [
                "answers (ms)",
                *(f"{np.percentile([a[2] for _, a in asked], q) * 1e3:.0f}" for q in (50, 95, 99)),
            ],
        ]
        text = (
            f"{table(['', 'P50', 'P95', 'P99'], rows)}\n{late:.2%} of captions after their deadline.\n\n"
            + table(
                ["must hold", "found", "holds"],
                [[c.claim, c.found, "yes" if c.holds else "NO"] for c in checks],
            )
            + f"\n{'PASS' if all(c.holds for c in checks) else 'FAIL'}\n\n![course](serve_soak.svg)\n"
        )
        payload = {
            "checks": [[c.claim, c.found, c.holds] for c in checks],
            "rows": rows,
            "memory_mib": self.memory.each,
        }
        publish("serve_soak", "Soak of the endpoint on Ray Serve", self.options, payload, text)
        (self.options.results / "serve_soak.svg").write_text(self._picture())
        return 0 if all(check.holds for check in checks) else 1

    def _growth(self) -> Any:
        until = self.options.kill or self.options.seconds
        points = [
            (s, m * 1024)
            for s, m in zip(self.memory.seconds, self.memory.mib, strict=True)
            if self.options.settled < s < until
        ]
        return slope([s for s, _ in points], [m for _, m in points], block=5)

    def _silence(self, viewer: Viewer) -> float | None:
        """Seconds from the kill to a viewer's next words, where its stream was on that engine."""
        if all(exact or at < self.killed for at, exact, _ in viewer.moves):
            return None
        after = [
            c.came
            for c in viewer.captions
            if c.fate == "caption" and c.came > min(m[0] for m in viewer.moves)
        ]
        return min(after, default=float("inf")) - self.killed

    def _picture(self) -> str:
        captions = [c for viewer in self.viewers for c in viewer.captions if c.fate == "caption"]
        waits: dict[int, list[float]] = {}
        for caption in captions:
            waits.setdefault(int(caption.shown - self.began) // 5 * 5, []).append(
                caption.came - caption.shown
            )
        answers: dict[int, list[float]] = {}
        for asker in self.askers:
            for _, at, seconds, _ in asker.answers:
                answers.setdefault(int(at - self.began) // 5 * 5, []).append(seconds)
        p95 = lambda found: [(float(s), float(np.percentile(w, 95)) * 1e3) for s, w in sorted(found.items())]  # noqa: E731
        memory = list(zip(self.memory.seconds, self.memory.mib, strict=True))
        panels = [
            Panel(
                title="P95 of five seconds",
                x="seconds",
                y="ms",
                lines=[Line(label="frames", points=p95(waits)), Line(label="answers", points=p95(answers))],
            ),
            Panel(
                title="Memory of engines and endpoint",
                x="seconds",
                y="MiB",
                lines=[Line(label="together", points=memory)]
                + [Line(label=name, points=points) for name, points in self.memory.each.items()],
            ),
        ]
        return figure(panels, caption="Latency and memory over the soak")


class Lockstep:
    """What the checkpoint says about the same pictures, each viewer alone."""

    def __init__(self, model: str) -> None:
        self._engine = Engine.from_pretrained(model)

    def differences(self, viewer: Viewer) -> tuple[int, int]:
        """Captions that differ, and those compared: up to the first move that is not exact."""
        until = min((shown for _, exact, shown in viewer.moves if not exact), default=len(viewer.captions))
        session = self._engine.open_session(QUERY, max_tokens_per_frame=16)
        wrong = compared = 0
        for number, (caption, picture) in enumerate(
            zip(viewer.captions[:until], pictures(viewer.number), strict=False)
        ):
            if caption.fate != "caption":
                continue  # it was dropped before it was read
            compared += 1
            wrong += session.push_frame(picture, float(number)).text != caption.text
        session.close()
        return wrong, compared

    def answer(self, asker: Asker, number: int) -> str:
        """The answer to an asker's question about its picture of that number."""
        picture = next(islice(pictures(3000 + asker.number), number, None))
        parts = arrange([("user", [Image(data=picture), QUESTION])])
        request = GenerationRequest(
            sample=Sample(source="soak", sample_id="x", parts=parts),
            sampling=SamplingParams(max_new_tokens=8),
        )
        return self._engine.generate([request])[0].text


def resident(pid: int) -> int:
    """Bytes of a process, 0 where it has gone."""
    try:
        return psutil.Process(pid).memory_info().rss
    except psutil.Error:
        return 0


if __name__ == "__main__":
    sys.exit(main())
