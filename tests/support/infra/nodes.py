"""Machines of a cluster, each a network namespace with an address of its own, which can be lost and replaced.

Use it in a slow test, as root on Linux::

    with machines(3) as nodes:
        nodes.start_head(cpus=2)
        nodes.start_worker(1, cpus=2)
        nodes.lose(1)                    # all of its processes at once, as when its power is cut

The test itself sits outside, on ``nodes.outside``: the laptop that submits, and where a store's server is.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from infra.local_ray import answers
from tests.support.serve.cluster import wait_until

NETWORK = "10.77.0"
RAY_PORT, DASHBOARD_PORT = 6379, 8265


@dataclass(slots=True)
class Machines:
    """Machines that can be switched on and off.

    Attributes:
        outside: Address of this process on their network.
        folder: Ray's temporary folder on all of them.
        environment: Of everything that runs on them.
    """

    count: int
    folder: Path
    environment: dict[str, str]
    outside: str = f"{NETWORK}.254"
    _started: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def dashboard(self) -> str:
        """URL of the head's dashboard, from anywhere on the network."""
        return f"http://{self.address(0)}:{DASHBOARD_PORT}"

    def address(self, node: int) -> str:
        """Address of a machine."""
        return f"{NETWORK}.{node + 1}"

    def start_head(self, cpus: int) -> None:
        """Start Ray's head on the first machine, and wait until its dashboard answers."""
        for node in range(self.count):
            shutil.rmtree(self.folder.parent / f"disk-{node}", ignore_errors=True)
        self._start(
            0,
            "--head",
            f"--port={RAY_PORT}",
            "--dashboard-host=0.0.0.0",
            f"--dashboard-port={DASHBOARD_PORT}",
            f"--temp-dir={self.folder}",
            f"--num-cpus={cpus}",
        )
        wait_until(lambda: answers(f"{self.dashboard}/api/version", 2.0), 90, "the head")

    def start_worker(self, node: int, cpus: int) -> None:
        """Let a machine join."""
        self._start(node, f"--address={self.address(0)}:{RAY_PORT}", f"--num-cpus={cpus}")

    def lose(self, node: int) -> None:
        """End everything on a machine at once."""
        for pid in self.pids(node):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        wait_until(lambda: not self.pids(node), 30, "the machine's end")

    def pids(self, node: int) -> list[int]:
        """Ids of a machine's processes."""
        return [int(pid) for pid in _ip("netns", "pids", _name(node)).split()]

    def run(self, node: int, *command: str) -> subprocess.Popen[bytes]:
        """Start a command on a machine, with a temporary folder of that machine's own."""
        base = self.folder.parent
        own, log = base / f"disk-{node}", (base / f"node-{node}.log").open("ab")
        own.mkdir(exist_ok=True)
        mounted = 'mount --bind "$0" "$1" && shift && exec "$@"'
        process = subprocess.Popen(
            [
                *("ip", "netns", "exec", _name(node), "unshare", "-m"),
                *("sh", "-c", mounted, str(own), str(self.folder), *command),
            ],
            env=self.environment,
            cwd=base,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        self._started.append(process)
        return process

    def _start(self, node: int, *options: str) -> None:
        command = [sys.executable, "-c", "from ray.scripts.scripts import main; main()", "start", "--block"]
        common = [f"--node-ip-address={self.address(node)}", "--object-store-memory=268435456"]
        self.run(node, *command, *common, "--disable-usage-stats", *options)

    def end(self) -> None:
        """End all machines."""
        for node in range(self.count):
            self.lose(node)
        for process in self._started:
            process.wait(timeout=30)


@contextlib.contextmanager
def machines(count: int) -> Iterator[Machines]:
    """Machines without any Ray yet; their network and all of their processes end with the block.

    Skips the test where this process may not make network namespaces.
    """
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("needs root and the command ip, for network namespaces")
    base = Path("/tmp") / f"casa-{uuid.uuid4().hex[:6]}"  # Ray's sockets need a short path
    (base / "ray").mkdir(mode=0o700, parents=True)
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "PYTHONPATH"))},
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "GLOO_SOCKET_IFNAME": "eth0",
        "RAY_AUTH_MODE": "disabled",
        "OMP_NUM_THREADS": "1",
    }
    nodes = Machines(count, base / "ray", environment)
    try:
        _connect(count)
        yield nodes
    finally:
        with contextlib.suppress(subprocess.CalledProcessError):
            nodes.end()
        for node in range(count):
            _ip("netns", "del", _name(node), check=False)
        _ip("link", "del", BRIDGE, check=False)
        time.sleep(0.5)
        shutil.rmtree(base, ignore_errors=True)


BRIDGE = "casa-test"


def _name(node: int) -> str:
    return f"casa-test-{node}"


def _connect(count: int) -> None:
    _ip("link", "add", BRIDGE, "type", "bridge")
    _ip("addr", "add", f"{NETWORK}.254/24", "dev", BRIDGE)
    _ip("link", "set", BRIDGE, "up")
    for node in range(count):
        here, name = f"casa-t{node}", _name(node)
        _ip("netns", "add", name)
        _ip("link", "add", here, "type", "veth", "peer", "name", "eth0", "netns", name)
        _ip("link", "set", here, "master", BRIDGE, "up")
        _ip("-n", name, "addr", "add", f"{NETWORK}.{node + 1}/24", "dev", "eth0")
        _ip("-n", name, "link", "set", "eth0", "up")
        _ip("-n", name, "link", "set", "lo", "up")


def _ip(*arguments: str, check: bool = True) -> str:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=check, timeout=30)
    return done.stdout
