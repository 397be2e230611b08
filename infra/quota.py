"""CPUs and memory that this process may use: by its container's or job's quota, not by the host's size."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Iterator
from pathlib import Path

CGROUP, OWN = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
"""Where the kernel shows groups of processes, and those of this process."""


def usable_cpus(cgroup: Path = CGROUP, own: Path = OWN) -> int:
    """CPUs that this process can keep busy: the fewest of the machine's, its affinity's and its quota's.

    A quota of 1.5 CPUs counts as 2.
    """
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = cpu_quota(cgroup, own)
    return affinity if quota is None else max(1, min(affinity, math.ceil(quota)))


def limit_threads() -> None:
    """Have libraries start as many threads as the quota allows, where it allows fewer than there are CPUs.

    They count the machine's CPUs otherwise. Before they are imported; a number that was given stays.
    """
    quota = cpu_quota()
    if quota is not None and quota < (os.cpu_count() or 1):
        os.environ.setdefault("OMP_NUM_THREADS", str(usable_cpus()))


def cpu_quota(cgroup: Path = CGROUP, own: Path = OWN) -> float | None:
    """CPUs that the process's groups allow; ``None`` without a quota.

    Source: ``cpu.max`` of cgroup v2 (``$MAX $PERIOD``), ``cpu.cfs_quota_us`` and ``cpu.cfs_period_us`` of v1.
    """
    found = []
    for group in _groups(cgroup, own, "cpu"):
        halves = [_words(group / f"cpu.cfs_{name}_us") for name in ("quota", "period")]
        words = _words(group / "cpu.max") or [word for half in halves for word in half]
        if len(words) == 2 and all(word.isdigit() for word in words):
            found.append(int(words[0]) / int(words[1]))
    return min(found, default=None)


def memory_limit(cgroup: Path = CGROUP, own: Path = OWN) -> int:
    """Bytes of memory that the process's groups allow, or something larger than any memory."""
    limits = [
        int(words[0])
        for group in _groups(cgroup, own, "memory")
        for name in ("memory.max", "memory.limit_in_bytes")
        if (words := _words(group / name)) and words[0].isdigit()
    ]
    return min(limits, default=sys.maxsize)


def _groups(cgroup: Path, own: Path, controller: str) -> Iterator[Path]:
    """Folders of the groups that a process is in, from its own outwards: of v2, and of a controller of v1.

    In a container the outermost is the container's, and those within may not be shown.
    """
    for line in own.read_text().splitlines() if own.is_file() else ("0::/", f"1:{controller}:/"):
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        base = cgroup / controller if controllers else cgroup
        group = base / path.lstrip("/")
        while group.is_relative_to(base):
            yield group
            group = group.parent


def _words(path: Path) -> list[str]:
    try:
        return path.read_text().split()
    except OSError:
        return []
