"""Heads that run the jobs of random DAGs, and runners' processes: the light stand-in, and a real Ray head."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from typing import Protocol

import psutil

from tests.support.dag.job_server import ask
from tests.support.paths import ROOT


class Head(Protocol):
    """What runs jobs, and from where runs are started."""

    address: str

    def start(self, file: str) -> Run: ...

    def kill_jobs(self, store: str) -> None: ...

    def restart(self) -> None: ...


class Run(Protocol):
    """A runner's process."""

    def code(self) -> int | None: ...

    def kill(self) -> None: ...


@dataclass(frozen=True)
class LightHead:
    """The stand-in; ``address`` is its socket."""

    address: str

    def start(self, file: str) -> LightRun:
        return LightRun(self.address, ask(self.address, "run", [file, self.address]))

    def kill_jobs(self, store: str) -> None:
        ask(self.address, "kill_supervisors")

    def restart(self) -> None:
        ask(self.address, "restart")


@dataclass(frozen=True)
class LightRun:
    server: str
    pid: int

    def code(self) -> int | None:
        return ask(self.server, "exit_code", self.pid)

    def kill(self) -> None:
        if self.code() is None:
            os.kill(self.pid, signal.SIGKILL)


@dataclass(frozen=True)
class RayHead:
    """A real local head; ``address`` is its session folder."""

    address: str

    def start(self, file: str) -> RayRun:
        words = [sys.executable, "-m", "tests.support.dag.random_dag", file, self.address]
        return RayRun(subprocess.Popen(words, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}))

    def kill_jobs(self, store: str) -> None:
        for process in psutil.process_iter(["cmdline"]):
            words = process.info["cmdline"] or []
            if "pipelines.dag.job_main" in words and any(word.startswith(store) for word in words):
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()

    def restart(self) -> None:
        raise AssertionError("other tests use this head")


@dataclass(frozen=True)
class RayRun:
    process: subprocess.Popen[bytes]

    def code(self) -> int | None:
        return self.process.poll()

    def kill(self) -> None:
        self.process.kill()
