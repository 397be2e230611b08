"""Toy stages that real Ray jobs run in the tests: they behave like real ones and take no time."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

from casa_core.errors import ClusterError, ConfigError
from pipelines.dag.context import StageContext
from pipelines.storage.atomic import write_whole


def write_number(context: StageContext) -> dict[str, Any]:
    """Writes ``what.number``, plus whatever the inputs hold."""
    total = context.settings["number"] + sum(
        int((p / "number.txt").read_text()) for p in context.inputs.values()
    )
    (context.output / "number.txt").write_text(str(total))
    context.progress(1, 1, "written")
    print(f"the number is {total}")
    return {"number": total}


def meet(context: StageContext) -> dict[str, Any]:
    """Ends only once the stage ``what.other`` has begun too: proof that both run at the same time."""
    meeting = context.output.parent.parent / "meeting"
    meeting.mkdir(exist_ok=True)
    (meeting / context.name).touch()
    deadline = time.monotonic() + 60
    while not (meeting / context.settings["other"]).exists():
        if time.monotonic() > deadline:
            raise TimeoutError("the other stage never began")
        time.sleep(0.05)
    return {}


def wait_for_gate(context: StageContext) -> dict[str, Any]:
    """Counts its starts, then waits for the file ``where.gate``; what it writes does not depend on either."""
    with (context.output.parent.parent / "starts.txt").open("a") as starts:
        starts.write(f"{os.getpid()}\n")
    context.progress(0, 1, "waiting")
    (context.output / "half.txt").write_text("half")
    while not os.path.exists(context.placement["gate"]):
        time.sleep(0.05)
    (context.output / "whole.txt").write_text("whole")
    return {"ended": True}


def fail(context: StageContext) -> dict[str, Any]:
    """Fails as a bug does."""
    print("about to divide")
    return {"never": 1 / context.settings["zero"]}


def refuse(context: StageContext) -> dict[str, Any]:
    """Fails as a wrong setting does."""
    raise ConfigError("The number is odd.", "it is 3", "use 4")


def die_once(context: StageContext) -> dict[str, Any]:
    """Is killed at its first attempt, like a process out of memory; a later attempt finds its files."""
    mark = context.output / "progress.txt"
    if mark.exists():
        return {"resumed_from": mark.read_text()}
    mark.write_text("step 7")
    os.kill(os.getpid(), signal.SIGKILL)
    return {}


def die_often(context: StageContext) -> dict[str, Any]:
    """Is killed at its first ``what.times`` attempts."""
    with (context.output / "attempts.txt").open("a+") as attempts:
        attempts.write("x")
        attempts.seek(0)
        before = len(attempts.read()) - 1
    if before < context.settings["times"]:
        os.kill(os.getpid(), signal.SIGKILL)
    return {"killed": before}


def lose_connection(context: StageContext) -> dict[str, Any]:
    """Asks by ``what.library`` a server that is lost at the first attempt, and needs none at the second."""
    import httpx
    import requests

    mark = context.output / "attempted.txt"
    if not mark.exists():
        mark.touch()
        {"requests": requests, "httpx": httpx}[context.settings["library"]].get("http://127.0.0.1:9")
    return {"attempts": 2}


def miss_cluster(context: StageContext) -> dict[str, Any]:
    """Fails as a deployment does, with as many different errors as ``what.errors`` has."""
    mark = context.output / "attempts.txt"
    attempt = len(mark.read_text()) if mark.exists() else 0
    mark.write_text("x" * (attempt + 1))
    errors = context.settings["errors"]
    raise ClusterError(errors[min(attempt, len(errors) - 1)], "", "Look at the cluster.")


def answer(context: StageContext) -> dict[str, Any]:
    """A state: leaves an HTTP server running that answers on ``where.port``."""
    import subprocess
    import sys

    if (held := check_answer(context.placement, context.settings, context.fingerprint)) is not None:
        return held
    (context.output / context.fingerprint).write_text("here")
    server = [sys.executable, "-m", "http.server", "--bind", "127.0.0.1", str(context.placement["port"])]
    process = subprocess.Popen(server, start_new_session=True, cwd=context.output)
    while check_answer(context.placement, context.settings, context.fingerprint) is None:
        time.sleep(0.05)
    return {"pid": process.pid}


def check_answer(where: dict[str, Any], what: dict[str, Any], fingerprint: str) -> dict[str, Any] | None:
    """Whether the server of ``answer`` runs and serves this fingerprint's folder."""
    import urllib.error
    import urllib.request

    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{where['port']}/{fingerprint}", timeout=2):
            return {"port": where["port"]}
    except (urllib.error.URLError, ConnectionError):
        return None


def count_inputs(context: StageContext) -> dict[str, Any]:
    """Counts the files of its inputs."""
    return {"files": sum(len(manifest["files"]) for manifest in context.manifests.values())}


def fill_disk(context: StageContext) -> dict[str, Any]:
    """Writes more than the store's disk holds, by the library that the setting names."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq
    import torch
    from safetensors.torch import save_file

    numbers, file = np.random.default_rng(0).random(1_000_000), Path(str(context.output)) / "numbers"
    writers = {
        "store": lambda: write_whole(file, numbers.tobytes()),
        "plain": lambda: file.write_bytes(numbers.tobytes()),
        "arrow": lambda: pq.write_table(pa.table({"a": numbers}), file),
        "safetensors": lambda: save_file({"a": torch.from_numpy(numbers)}, file),
    }
    writers[context.settings["writer"]]()
    return {}


def hang(context: StageContext) -> dict[str, Any]:
    """Hangs with Python's lock held, beside a process of its own, until ``where.gate`` is there."""
    import re
    import subprocess

    if os.path.exists(context.placement["gate"]):
        return {}
    child = subprocess.Popen(["sleep", "600"])
    Path(context.placement["pids"]).write_text(f"{os.getpid()} {child.pid}")
    re.match("(a+)+$", "a" * 60 + "b")  # ends in some thousand years
    return {}


def eat_memory(context: StageContext) -> dict[str, Any]:
    """Takes 500 MB."""
    return {"bytes": len(b"x" * 500_000_000)}
