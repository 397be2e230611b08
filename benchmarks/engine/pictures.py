"""Requests with pictures of many megapixels beside small ones: who waits, and what memory stays.

python -m benchmarks.engine.pictures [--megapixels 40 --pictures 3 --clients 4 --rounds 2]

A real server answers small questions all the time; meanwhile clients send large pictures. Sixteen of them are
sent in one request, too, which is refused. The server's memory is read before, during and after.
"""

from __future__ import annotations

import argparse
import base64
import io
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import uvicorn
from PIL import Image

from benchmarks.engine.common import Check, Subject, conclude, load_subject, read_engine_options
from benchmarks.measure import table
from casa_core.engine.client import EngineClient
from casa_core.engine.engine import Engine
from pipelines.recipe.model import Deploy
from serve.api.settings import ServeSettings
from serve.asgi import build_app
from serve.loading import engine_settings

MODEL = "casa-pictures"
CHAT = "/v1/chat/completions"
IDLE, DURING = "small questions, alone", "small questions, beside large pictures"
LARGE, SIXTEEN = "large pictures", "sixteen pictures in one request"


def main(arguments: Sequence[str] | None = None) -> int:
    options = read_engine_options(
        __doc__,
        arguments,
        megapixels=(40, "of a large picture"),
        pictures=(3, "large pictures in a request"),
        clients=(4, "that send large pictures at a time"),
        rounds=(2, "of all of them"),
        kind=("PNG", "format of the pictures, as Pillow names it"),
        new=(4, "tokens of an answer"),
    )
    subject = load_subject(options)
    with serving(subject, options) as url:
        found = measured(url, options)
    before, peak, after = found.pop("memory")
    idle, during = np.percentile(found[IDLE], 95), np.percentile(found[DURING], 95)
    seconds = {
        name: {"calls": len(values), **{f"p{p}": float(np.percentile(values, p)) for p in (50, 95)}}
        for name, values in found.items()
    }
    rows = [[name, own["calls"], *(f"{own[p]:.2f}" for p in ("p50", "p95"))] for name, own in seconds.items()]
    checks = [
        Check(
            "small questions' P95 at most doubles, or stays below 0.5 s",
            bool(during <= max(2 * idle, 0.5)),
            f"{idle:.2f} → {during:.2f} s",
        ),
        Check(
            "sixteen pictures are refused within 2 s", max(found[SIXTEEN]) < 2, f"{max(found[SIXTEEN]):.2f} s"
        ),
        Check(
            "memory afterwards is at most 80 MB above that before",
            after <= before + 80,
            f"{before} → {peak} → {after} MB",
        ),
    ]
    text = table(["what", "calls", "P50 s", "P95 s"], rows)
    payload = {"seconds": seconds, "memory_mb": [before, peak, after]}
    return conclude("pictures", "Pictures of many megapixels", options, payload, text, checks)


@contextmanager
def serving(subject: Subject, options: argparse.Namespace) -> Iterator[str]:
    """A server over the subject's model on a free loopback port."""
    deploy = Deploy(model_name=MODEL, max_new_tokens=options.new).model_dump()
    settings = ServeSettings.model_validate({**deploy, "model_folder": "."})
    engine = Engine(subject.model, subject.processor, engine_settings(settings.limits))
    app = build_app(EngineClient(engine), settings)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.01)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        server.should_exit = True
        thread.join(10)


def measured(url: str, options: argparse.Namespace) -> dict[str, Any]:
    """Seconds of each kind of call, and resident megabytes before, at most, and afterwards."""
    side = round((options.megapixels * 1e6) ** 0.5)
    uri = flat_picture(side, options.kind)
    seconds: dict[str, Any] = {IDLE: [], DURING: [], LARGE: [], SIXTEEN: []}
    ask_small(url, [], 20)
    ask_small(url, seconds[IDLE], 60)
    before = peak = resident()
    done = threading.Event()

    def others() -> None:
        while not done.is_set():
            ask_small(url, seconds[DURING], 1)

    def large(_: int) -> None:
        seconds[LARGE].append(ask(url, [uri] * options.pictures, 200))

    def watch() -> None:
        nonlocal peak
        while not done.is_set():
            peak = max(peak, resident())
            time.sleep(0.01)

    threads = [threading.Thread(target=work) for work in (others, watch)]
    for thread in threads:
        thread.start()
    with ThreadPoolExecutor(options.clients) as pool:
        for _ in range(options.rounds):
            list(pool.map(large, range(options.clients)))
            seconds[SIXTEEN].append(ask(url, [uri] * 16, 400))
    done.set()
    for thread in threads:
        thread.join()
    time.sleep(1)
    return {**seconds, "memory": (before, peak, resident())}


def flat_picture(side: int, kind: str) -> str:
    """A square of one colour as a data URI: few bytes, many pixels."""
    file = io.BytesIO()
    Image.new("RGB", (side, side), (200, 30, 30)).save(file, kind)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(file.getvalue()).decode('ascii')}"


def ask_small(url: str, into: list[float], calls: int) -> None:
    """Small questions, one after another."""
    for _ in range(calls):
        into.append(ask(url, [], 200))


def ask(url: str, uris: Sequence[str], status: int) -> float:
    """The seconds of one call, which ends with this status."""
    parts = [{"type": "image_url", "image_url": {"url": uri}} for uri in uris]
    content = [*parts, {"type": "text", "text": "what shape is it?"}]
    body = {"model": MODEL, "messages": [{"role": "user", "content": content}]}
    started = time.perf_counter()
    answer = httpx.post(f"{url}{CHAT}", json=body, timeout=600)
    assert answer.status_code == status, answer.text[:300]
    return time.perf_counter() - started


def resident() -> int:
    """Resident memory, MB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") // 1_000_000


if __name__ == "__main__":
    sys.exit(main())
