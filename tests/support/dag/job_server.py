"""A light stand-in for a Ray head's job API: real processes, forked from one that has imported all they need.

    python -m tests.support.dag.job_server <socket>

It outlives the runners that use it, as a head does, and takes some ten milliseconds for a job where Ray takes
seconds: enough for hundreds of runs. Waits and leases are short in its processes.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from pipelines.dag import job_main
from pipelines.dag.attempts.kinds import RETRIES
from pipelines.dag.jobs import Cluster, JobExists, JobState
from pipelines.dag.records import JobSpec
from pipelines.storage import lock
from pipelines.storage.uri import Folder
from tests.support.paths import ROOT


class StandIn(Cluster):
    """A cluster whose jobs the server runs.

    Args:
        server: Its socket.
        store: Whose jobs these are.
    """

    def __init__(self, server: str, store: Folder) -> None:
        super().__init__({"address": "stand-in"}, Path(server).parent, store)
        self._server = server

    def submit(self, spec: JobSpec, spec_path: Folder) -> None:
        words = [str(spec_path)] + ([str(spec.timeout_s)] if spec.timeout_s else [])
        if not ask(self._server, "submit", self._ray_id(spec.job_id), words):
            raise JobExists("Ray refused the request.", "A job of that id already exists.")

    def state(self, job_id: str) -> JobState | None:
        return ask(self._server, "state", self._ray_id(job_id))

    def waits_for(self, job_id: str) -> str:
        return ""  # it starts at once

    def message(self, job_id: str) -> str:
        return ""

    def driver_log(self, job_id: str) -> str:
        return ask(self._server, "output", self._ray_id(job_id))

    def stop(self, job_id: str) -> None:
        ask(self._server, "stop", self._ray_id(job_id))

    def was_stopped(self) -> bool:
        return False

    def forget(self) -> None:
        """There is no connection to drop."""


def ask(server: str, *request: Any) -> Any:
    """The server's answer to a request: the name of one of its methods, and its arguments."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(server)
        with connection.makefile("rw") as stream:
            stream.write(json.dumps(request) + "\n")
            stream.flush()
            return json.loads(stream.readline())


@contextlib.contextmanager
def job_server() -> Iterator[str]:
    """A running server; its socket. Everything that it started ends with it."""
    with tempfile.TemporaryDirectory(prefix="casa-") as folder:
        path = f"{folder}/jobs"
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-m", "tests.support.dag.job_server", path]
        with open(f"{folder}/output", "wb") as output:
            process = subprocess.Popen(
                command, cwd=folder, env=environment, stdout=output, stderr=output, start_new_session=True
            )
        try:
            while not os.path.exists(path):
                assert process.poll() is None, Path(f"{folder}/output").read_text()
                time.sleep(0.02)
            yield path
            ask(path, "end_all")
        except BaseException:
            print(Path(f"{folder}/output").read_text()[-20_000:])
            raise
        finally:
            process.kill()
            process.wait()


class Server:
    """The processes: jobs by id, and the pids of runners.

    Args:
        folder: For the jobs' output.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._jobs: dict[str, int] = {}
        self._codes: dict[int, int] = {}
        self._stopped: set[str] = set()

    def submit(self, job_id: str, words: list[str]) -> bool:
        if job_id in self._jobs:
            return False
        output = self._folder / f"{job_id}.out"
        output.touch()  # before its process, which may be killed at once
        self._jobs[job_id] = self._fork(job_main.main, words, output)
        return True

    def output(self, job_id: str) -> str:
        return (self._folder / f"{job_id}.out").read_text(errors="replace")

    def state(self, job_id: str) -> str | None:
        pid = self._jobs.get(job_id)
        if pid is None:
            return None
        code = self.exit_code(pid)
        if job_id in self._stopped and code is not None:
            return "stopped"
        return "active" if code is None else "failed" if code else "succeeded"

    def stop(self, job_id: str) -> None:
        self._stopped.add(job_id)
        self._signal_group(self._jobs[job_id], signal.SIGTERM)

    def kill_supervisors(self) -> None:
        """As a node's kill of what looks large: only the processes that Ray knows."""
        for pid in self._active():
            os.kill(pid, signal.SIGKILL)

    def restart(self) -> None:
        """As a head that is lost with its node, and comes back with no memory."""
        for pid in self._active():
            self._signal_group(pid, signal.SIGKILL)
        self._jobs.clear()

    def run(self, words: list[str]) -> int:
        """Start a runner; its pid."""
        from tests.support.dag import random_dag

        return self._fork(random_dag.main, words)

    def exit_code(self, pid: int) -> int | None:
        """Exit code of a process, negative for a signal; ``None`` while it runs."""
        if pid not in self._codes:
            ended, status = os.waitpid(pid, os.WNOHANG)
            if not ended:
                return None
            self._codes[pid] = os.waitstatus_to_exitcode(status)
        return self._codes[pid]

    def end_all(self) -> None:
        for pid in self._active():
            self._signal_group(pid, signal.SIGKILL)

    def _active(self) -> list[int]:
        return [pid for pid in self._jobs.values() if self.exit_code(pid) is None]

    @staticmethod
    def _signal_group(pid: int, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, number)

    @staticmethod
    def _fork(main: Callable[[], int], words: list[str], output: Path | None = None) -> int:
        """A process of its own session, as Ray's and a terminal's are."""
        ready = os.pipe()
        pid = os.fork()
        if pid:
            os.close(ready[1])
            os.read(ready[0], 1)
            os.close(ready[0])
            return pid
        os.setsid()
        os.close(ready[0])
        os.close(ready[1])
        if output is not None:
            descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(descriptor, 1)
            os.dup2(descriptor, 2)
        sys.argv = [main.__module__, *words]
        code = 1
        try:
            code = main()
        except SystemExit as end:
            code = int(end.code or 0)
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)


def main() -> None:
    """Serve, one request after the other."""
    lock.BEAT_S, lock.STALE_S = 0.2, 2.0
    RETRIES.update({kind: replace(each, first_s=0.02, longest_s=0.1) for kind, each in RETRIES.items()})
    server, listener = Server(Path(sys.argv[1]).parent), socket.socket(socket.AF_UNIX)
    listener.bind(sys.argv[1] + ".new")
    listener.listen(64)
    os.rename(sys.argv[1] + ".new", sys.argv[1])
    listener.settimeout(1.0)
    tests = os.getppid()
    while os.getppid() == tests:
        with contextlib.suppress(TimeoutError, BrokenPipeError):
            connection, _ = listener.accept()
            with connection, connection.makefile("rw") as stream:
                name, *arguments = json.loads(stream.readline())
                stream.write(json.dumps(getattr(server, name)(*arguments)) + "\n")
                stream.flush()
    server.end_all()


if __name__ == "__main__":
    main()
