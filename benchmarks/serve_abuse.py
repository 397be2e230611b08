"""What other clients feel while an endpoint is abused: half-open connections, endless bodies, long texts,
deep JSON, huge pictures.

Well-behaved clients ask a short question about a small picture over and over, from a process of their own,
each time over a new connection. Their P95 is taken before and during each abuse; it may double at most, and
none of their requests may fail.

    python -m benchmarks.serve_abuse http://127.0.0.1:8000 --scale 0.05
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import resource
import sys
import time
from collections import Counter
from collections.abc import Callable, Coroutine
from dataclasses import asdict, dataclass
from multiprocessing.pool import Pool
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import numpy as np
import psutil

from benchmarks.abuse_kinds import KINDS, Target, exchange, small_picture
from benchmarks.measure import table

WORST_RATIO = 2.0
CLIENTS = 4
PAUSE_S = 0.05
SLACK_MS = 20.0
"""A P95 that grows by less than this is no harm: two cores that also run the abuser are not quieter."""


@dataclass(frozen=True, slots=True)
class Felt:
    """What the well-behaved clients felt during some seconds.

    Attributes:
        answers, failures: Requests that were answered with 200, and those that were not.
        p50_ms, p95_ms, worst_ms: Times to the whole answer.
    """

    answers: int
    failures: int
    p50_ms: float
    p95_ms: float
    worst_ms: float


@dataclass(frozen=True, slots=True)
class Outcome:
    """One abuse and what came of it.

    Attributes:
        asked: Connections or requests that were to be made.
        got: What the abuser got, counted: statuses, `held`, `closed`, `refused`.
        memory_mb: Resident memory of the watched processes afterwards, megabytes.
    """

    name: str
    asked: int
    got: dict[str, int]
    before: Felt
    during: Felt
    memory_mb: float | None
    passed: bool


def main(arguments: list[str] | None = None) -> int:
    """Run the abuses that were asked for; 0 if all passed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("url")
    parser.add_argument("--scale", type=float, default=1.0, help="share of the full number of connections")
    parser.add_argument("--seconds", type=float, default=15.0, help="how long each abuse is held")
    parser.add_argument(
        "--nice",
        type=int,
        default=19,
        help="the abuser's priority, by default the lowest: here it shares the server's machine",
    )
    parser.add_argument("--kinds", nargs="*", choices=sorted(KINDS), default=list(KINDS))
    parser.add_argument("--pids", nargs="*", type=int, default=[], help="processes whose memory is watched")
    parser.add_argument("--output", type=Path, help="JSON file of the outcomes")
    own = parser.parse_args(arguments)
    _allow_files()
    target = _target(own.url)
    with multiprocessing.get_context("spawn").Pool(1) as clients:
        clients.apply(os.getpid)  # started, at the usual priority
        os.nice(own.nice)
        outcomes = [abuse(clients, kind, target, own.scale, own.seconds, own.pids) for kind in own.kinds]
    _print(outcomes)
    if own.output is not None:
        own.output.write_text(json.dumps([asdict(one) for one in outcomes], indent=2) + "\n")
    passed = all(outcome.passed for outcome in outcomes)
    print("PASS" if passed else "FAIL")
    return 0 if passed else 1


def abuse(clients: Pool, kind: str, target: Target, scale: float, seconds: float, pids: list[int]) -> Outcome:
    """Measure, abuse while measuring, and judge; ``clients`` is the process of the well-behaved ones."""
    own = KINDS[kind]
    count = max(1, round(own.count * scale))
    before = felt(clients, target, seconds / 2)
    got, during = asyncio.run(_during(clients, own.run, target, count, seconds))
    memory = sum(psutil.Process(pid).memory_info().rss for pid in pids) / 2**20 if pids else None
    passed = during.failures == 0 and during.p95_ms <= max(
        WORST_RATIO * before.p95_ms, before.p95_ms + SLACK_MS
    )
    outcome = Outcome(kind, count, dict(got), before, during, memory, passed)
    print(f"{kind}: P95 {before.p95_ms:.0f} → {during.p95_ms:.0f} ms, {dict(got)}", file=sys.stderr)
    return outcome


async def _during(
    clients: Pool,
    run: Callable[[Target, int, asyncio.Event], Coroutine[Any, Any, Counter[str]]],
    target: Target,
    count: int,
    seconds: float,
) -> tuple[Counter[str], Felt]:
    stop = asyncio.Event()
    abuser = asyncio.create_task(run(target, count, stop))
    await asyncio.sleep(min(2.0, seconds / 4))  # until it is under way
    during = await asyncio.to_thread(felt, clients, target, seconds)
    stop.set()
    return await abuser, during


def felt(clients: Pool, target: Target, seconds: float) -> Felt:
    """Let well-behaved clients ask for some seconds, in a process of their own."""
    times, failures = clients.apply(_ask_for, (target, seconds))
    if not times:
        return Felt(0, failures, float("inf"), float("inf"), float("inf"))
    p50, p95 = np.percentile(times, [50, 95])
    return Felt(len(times), failures, float(p50), float(p95), max(times))


def _ask_for(target: Target, seconds: float) -> tuple[list[float], int]:
    return asyncio.run(_ask_all(target, seconds))


async def _ask_all(target: Target, seconds: float) -> tuple[list[float], int]:
    times: list[float] = []
    failures = 0
    body = json.dumps(target.chat("what is it?", [small_picture()], max_tokens=8)).encode()
    request = target.head(len(body)) + body
    deadline = time.monotonic() + seconds

    async def ask() -> None:
        nonlocal failures
        while time.monotonic() < deadline:
            began = time.perf_counter()
            failures += await exchange(target, request) != "200"
            times.append((time.perf_counter() - began) * 1000)
            await asyncio.sleep(PAUSE_S)

    await asyncio.gather(*(ask() for _ in range(CLIENTS)))
    return times, failures


def _target(url: str) -> Target:
    key = os.environ.get("CASA_API_KEY", "")
    headers = {"authorization": f"Bearer {key}"} if key else {}
    answer = httpx.get(f"{url}/v1/models", headers=headers, trust_env=False).raise_for_status()
    parts = urlsplit(url)
    model = answer.json()["data"][0]["id"]
    return Target(url.rstrip("/"), parts.hostname or "127.0.0.1", parts.port or 80, model, headers)


def _allow_files() -> None:
    """As many open connections as the system lets this process have."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _print(outcomes: list[Outcome]) -> None:
    def row(one: Outcome) -> list[Any]:
        got = ", ".join(f"{count} {what}" for what, count in sorted(one.got.items()))
        memory = "" if one.memory_mb is None else f"{one.memory_mb:.0f}"
        ratio = f"{one.during.p95_ms / one.before.p95_ms:.1f}"
        p95 = (f"{one.before.p95_ms:.0f}", f"{one.during.p95_ms:.0f}", ratio, f"{one.during.worst_ms:.0f}")
        return [one.name, one.asked, got, *p95, one.during.failures, memory, "pass" if one.passed else "FAIL"]

    head = [
        "abuse",
        "count",
        "the abuser got",
        "P95 before, ms",
        "during",
        "ratio",
        "worst",
        "failed",
        "MB",
        "",
    ]
    print(table(head, [row(one) for one in outcomes]))


if __name__ == "__main__":
    sys.exit(main())
