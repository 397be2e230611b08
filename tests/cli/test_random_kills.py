"""Whatever of a run is killed, whenever, one command ends it, and with the same results."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest

from infra import local_ray
from infra.processes import session_processes
from pipelines.dag import artifact
from tests.support.dag import quickstart

pytestmark = [pytest.mark.slow, pytest.mark.timeout(6000)]
KILLS = int(os.environ.get("CASA_TEST_KILLS", "60"))
KILLS_OF_A_STORE = 6
BETWEEN_S = (0.0, 40.0)
"""Seconds from one kill to the next: six of them reach from the first stage to the last."""
FIND_S = 30.0
SERVED = {"where.serve.port": "18235"}
MARKS = {
    "job": "pipelines.dag.job_main",
    "worker": "ray::",
    "agent": "ray::DashboardAgent",
    "raylet": "/raylet/raylet",
    "gcs": "gcs_server",
    "dashboard": "dashboard/dashboard.py",
}
"""What the command line of a session's process has, by what it is."""
KINDS = ("runner", *MARKS, "head", "everything")


@dataclass
class Run:
    """A store, and the command that runs on it, which is called again when it has ended."""

    store: Path
    log: Path
    runner: subprocess.Popen[bytes] | None = None
    commands: int = 0
    killed: list[str] = field(default_factory=list)

    def start(self) -> None:
        with self.log.open("ab") as log:
            self.runner = subprocess.Popen(
                quickstart.command(self.store, "run", SERVED), stdout=log, stderr=log
            )
        self.commands += 1

    def ended(self) -> int | None:
        """Exit code of the command, once it has ended."""
        assert self.runner is not None
        return self.runner.poll()

    def wait(self) -> int:
        assert self.runner is not None
        return self.runner.wait(timeout=900)

    def say(self, line: str) -> None:
        with self.log.open("a") as log:
            log.write(f"--- {time.strftime('%H:%M:%S')} {line}\n")

    def victims(self, kind: str) -> list[psutil.Process]:
        """Processes of a kind, as of now."""
        assert self.runner is not None
        own = [] if self.ended() is not None else [psutil.Process(self.runner.pid)]
        if kind == "runner":
            return own
        session = local_ray.read_session(self.store / "session")
        if session is None:
            return own if kind == "everything" else []
        if kind == "head":
            alive = psutil.pid_exists(session.pid)
            return [psutil.Process(session.pid)] if alive else []
        processes = session_processes(session.session_id, Path(session.folder))
        if kind == "everything":
            return [*own, *processes]
        return [process for process in processes if MARKS[kind] in _command_line(process)]

    def kill(self, kind: str, chosen: random.Random) -> bool:
        """Kill one process of a kind, or everything, as soon as there is one; whether there was."""
        deadline = time.monotonic() + FIND_S
        while not (found := self.victims(kind)):
            if self.ended() is not None or time.monotonic() > deadline:
                return False
            time.sleep(0.05)
        for process in found if kind == "everything" else [chosen.choice(found)]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGKILL)
        self.killed.append(kind)
        return True


def _command_line(process: psutil.Process) -> str:
    with contextlib.suppress(psutil.NoSuchProcess):
        return " ".join(process.cmdline())
    return ""


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store of a run that nothing disturbed."""
    store = tmp_path_factory.mktemp("undisturbed")
    quickstart.run(store, SERVED)
    local_ray.stop(store / "session")
    return store


@pytest.fixture
def runs(tmp_path: Path) -> Iterator[list[Run]]:
    """Runs that are ended at the end, whatever came of them."""
    made: list[Run] = []
    yield made
    for run in made:
        if run.runner is not None and run.ended() is None:
            run.runner.kill()
            run.wait()
        local_ray.stop(run.store / "session")


def disturb(run: Run, kills: int, kinds: Iterator[str], chosen: random.Random) -> None:
    """Run, and kill at random instants; then let one command end it."""
    run.start()
    while len(run.killed) < kills:
        time.sleep(chosen.uniform(*BETWEEN_S))
        if run.ended() == 0:
            break
        if run.ended() is not None:
            run.start()
            continue
        if run.kill(kind := next(kinds), chosen):
            run.say(f"killed: {kind}")
    code = run.wait()
    if code != 0:  # it was the runner that was killed, or what it could not do without
        run.start()
        code = run.wait()
    assert code == 0, run.log.read_text()[-4000:]


def assert_same(store: Path, undisturbed: Path) -> None:
    ours, theirs = quickstart.manifests(store), quickstart.manifests(undisturbed)
    assert ours.keys() == theirs.keys()
    for stage, manifest in ours.items():
        assert artifact.verify(store / manifest["kind"] / manifest["fingerprint"]) == []
        if stage != "deploy":  # its summary has an address
            assert manifest["content_digest"] == theirs[stage]["content_digest"], stage
    left = [path for path in store.rglob("*.partial") if path.is_file()]
    assert left == []


def test_one_command_ends_a_run_whatever_of_it_was_killed_and_all_it_made_is_the_same(
    undisturbed: Path, runs: list[Run], tmp_path: Path
):
    chosen = random.Random(19)
    print(f"seed 19, {KILLS} kills")

    def shuffled() -> Iterator[str]:
        while True:
            yield from chosen.sample(KINDS, len(KINDS))

    kinds, killed, commands = shuffled(), Counter[str](), 0
    while killed.total() < KILLS:
        store = tmp_path / f"store-{len(runs)}"
        run = Run(store, tmp_path / f"store-{len(runs)}.log")
        runs.append(run)
        disturb(run, min(KILLS_OF_A_STORE, KILLS - killed.total()), kinds, chosen)
        assert local_ray.answers(f"http://127.0.0.1:{SERVED['where.serve.port']}/healthz", 5.0)
        local_ray.stop(store / "session")
        assert_same(store, undisturbed)
        killed.update(run.killed)
        commands += run.commands
        assert run.commands <= 1 + len(run.killed), "one command for each kill, at most"
        print(f"{store.name}: {run.commands} commands, killed {', '.join(run.killed)}", flush=True)
    print(f"{commands} commands for {len(runs)} runs; killed {dict(killed)}")
    assert killed.keys() == set(KINDS) or KILLS < 60
