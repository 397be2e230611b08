"""Every command of ``casa``, run under one adverse condition, in a process of its own:

python -m tests.support.cli.walk CONDITION STORE FOLDER CHECKPOINT

prints a line of JSON per command: its words, its exit code, what it printed, and the error that escaped, if
any. STORE is a small finished store, of which FOLDER gets a copy.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socketserver
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer
from PIL import Image
from typer.testing import CliRunner

from infra import caption_client, endpoint_client, ray_clients
from pipelines.cli.app import app
from pipelines.storage import retry

SECONDS = 90
"""A command without an end after so long has failed: its users would have given up."""
CLOSED = "http://127.0.0.1:9"


@dataclass(frozen=True, kw_only=True)
class Place:
    """What the commands are given.

    Attributes:
        store: The store, as an option names it.
        ports: Of a URL that stands for the endpoint, and for Ray's dashboard.
    """

    store: str
    folder: Path
    checkpoint: str
    url: str = CLOSED
    charset: str = "utf-8"


def commands(place: Place) -> dict[str, list[str]]:
    """Every command, in ways that a newcomer types it; by name, so that one may be picked.

    Commands that would start Ray are asked for what they can say without it.
    """
    at, here = ["--store", place.store], ["--set", f"where.store={place.store}"]
    picture, clip = str(place.folder / "picture.png"), str(place.folder / "clip.mp4")
    port = place.url.rpartition(":")[2]
    remote = ["--set", f"where.ray.address={place.url}"]
    written = str(place.folder / "new" / "folder")
    return {
        "plan": ["plan", "quickstart", *here],
        "plan, of a model on the hub": ["plan", "casa-qwen-video", *here],
        "plan, drawn": ["plan", "quickstart", *here, "--svg", f"{written}/plan.svg"],
        "run": ["run", "quickstart", "--plain", *here, *remote],
        "submit": ["submit", "quickstart", "--address", place.url, *at],
        "prepare": ["prepare", "quickstart", "--plain", *here, *remote],
        "train": ["train", "quickstart", "--plain", *here, *remote],
        "train, on the hub's data": ["train", "casa-helium1-before", "--plain", *here],
        "export": ["export", place.checkpoint, f"{written}/export"],
        "export, of a recipe": ["export", "quickstart", f"{written}/export", *here],
        "export-dag": ["export-dag", "quickstart", f"{written}/dag", "--to", "argo"],
        "sweep": ["sweep", "quickstart", "--over", "train.learning_rate=[1e-3,2e-3]", "--plan", *here],
        "simulate": ["simulate", "casa-helium1-before", "--plot", f"{written}/plot.svg"],
        "status": ["status", *at],
        "logs": ["logs", "clean-vqa", *at],
        "logs, of no stage": ["logs", "nothing", *at],
        "verify": ["verify", *at],
        "lineage": ["lineage", "pack", *at],
        "diff": ["diff", "clean-vqa", "clean-live", *at],
        "reproduce": ["reproduce", "quickstart", "--check", *at],
        "adopt": ["adopt", place.checkpoint, "--as", "train", *at],
        "gc": ["gc", *at],
        "gc, in earnest": ["gc", "--delete", "--days", "0", *at],
        "report": ["report", *at],
        "serve": ["serve", f"{place.checkpoint}/nowhere", "--port", port, *at],
        "ask": ["ask", picture, "what colour is it?", "--url", place.url],
        "ask, by the store": ["ask", picture, "what colour is it?", *at],
        "caption": ["caption", clip, "--url", place.url, "--subtitles", f"{written}/clip.srt"],
        "evaluate": ["evaluate", place.checkpoint, "--benchmarks", "ai2d", "--data", "ai2d=nowhere", *at],
        "compare": ["compare", "one", "another"],
        "score": ["score", "nowhere"],
        "inspect": ["inspect", place.checkpoint, "--image", picture, "--page", f"{written}/page.html"],
        "bench serve": ["bench", "serve", place.url, "--seconds", "1", *at],
        "data inspect": ["data", "inspect", "pack", "--sequence", "1", *at],
        "data plan": ["data", "plan", "quickstart", *here],
        "data plan, of the hub": ["data", "plan", "paper_data"],
        "data card": ["data", "card", "pack", "--output", f"{written}/card.html", *at],
        "data hash": ["data", "hash", str(place.folder), f"{written}/hashes.parquet"],
        "keys add": ["keys", "add", "me", "--file", f"{written}/keys.jsonl"],
        "keys list": ["keys", "list", "--file", f"{written}/keys.jsonl"],
        "keys remove": ["keys", "remove", "nobody", "--file", f"{written}/keys.jsonl"],
        "doctor": ["doctor", *at],
        "doctor, of a cluster": ["doctor", "--cluster", "--address", place.url, *at],
        "stop": ["stop", *at],
    }


def leaves() -> list[str]:
    """Every command that ``casa`` has."""

    def below(command: Any, words: tuple[str, ...]) -> Iterator[str]:
        if hasattr(command, "commands"):
            for name, each in command.commands.items():
                yield from below(each, (*words, name))
        else:
            yield " ".join(words)

    return list(below(typer.main.get_command(app), ()))


# Conditions: each changes the place, or the machine as this process sees it.


def off_the_network(place: Place) -> Place:
    os.environ |= {"HF_ENDPOINT": CLOSED}
    return place


def store_on_a_full_disk(place: Place) -> Place:
    _mount("-t", "tmpfs", "-o", "size=32m", "tmpfs", on=place.folder / "full")
    shutil.copytree(place.store, place.folder / "full" / "store")
    with (place.folder / "full" / "rest").open("wb", buffering=0) as rest, contextlib.suppress(OSError):
        while rest.write(bytes(4096)):
            pass
    return _elsewhere(place, place.folder / "full" / "store")


def store_that_cannot_be_written(place: Place) -> Place:
    _mount("--bind", place.store, on=Path(place.store))
    subprocess.run(["mount", "-o", "remount,ro,bind", place.store], check=True)
    return place


def store_below_a_file(place: Place) -> Place:
    (place.folder / "file").touch()
    return _elsewhere(place, place.folder / "file" / "store")


def store_of_a_server_that_is_gone(place: Place) -> Place:
    os.environ |= {"AWS_ENDPOINT_URL": CLOSED, "AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"}
    os.environ |= dict.fromkeys(("XDG_STATE_HOME", "XDG_CACHE_HOME"), str(place.folder))
    return _elsewhere(place, "s3://bucket/store")


def no_store(place: Place) -> Place:
    return _elsewhere(place, place.folder / "none")


def files_cut_in_half(place: Place) -> Place:
    for path in Path(place.store).rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    for name in ("picture.png", "clip.mp4"):
        path = place.folder / name
        path.write_bytes(path.read_bytes()[:30])
    return place


def temporary_folder_that_is_full(place: Place) -> Place:
    folder = place.folder / "tmp"
    _mount("-t", "tmpfs", "-o", "size=4k", "tmpfs", on=folder)
    (folder / "rest").write_bytes(b"\0" * 4096)
    os.environ["TMPDIR"] = str(folder)
    tempfile.tempdir = None
    return place


def server_that_never_answers(place: Place) -> Place:
    return _serving(place, lambda connection: time.sleep(3600))


def server_that_hangs_up(place: Place) -> Place:
    return _serving(place, lambda connection: None)


def server_of_something_else(place: Place) -> Place:
    def answer(connection: Any) -> None:
        connection.recv(65536)
        page = b"<html>Hello</html>"
        head = f"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: {len(page)}\r\n"
        connection.sendall(f"{head}Connection: close\r\n\r\n".encode() + page)

    return _serving(place, answer)


def terminal_of_ascii(place: Place) -> Place:
    return Place(**{**vars(place), "charset": "ascii"})


def token_that_is_missing(place: Place) -> Place:
    os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(place.folder / "no-token")}
    return place


CONDITIONS: dict[str, Callable[[Place], Place]] = {
    condition.__name__: condition
    for condition in (
        off_the_network,
        store_on_a_full_disk,
        store_that_cannot_be_written,
        store_below_a_file,
        store_of_a_server_that_is_gone,
        no_store,
        files_cut_in_half,
        temporary_folder_that_is_full,
        server_that_never_answers,
        server_that_hangs_up,
        server_of_something_else,
        terminal_of_ascii,
        token_that_is_missing,
    )
}


def _elsewhere(place: Place, store: Path | str) -> Place:
    return Place(**{**vars(place), "store": str(store)})


def _mount(*words: str, on: Path) -> None:
    """Seen by this process and its children only: it runs in a mount namespace of its own."""
    on.mkdir(exist_ok=True)
    subprocess.run(["mount", *words, on], check=True)


def _serving(place: Place, answer: Callable[[Any], None]) -> Place:
    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            answer(self.request)

    server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return Place(**{**vars(place), "url": f"http://127.0.0.1:{server.server_address[1]}"})


def run(words: list[str], charset: str) -> dict[str, Any]:
    """One command: ``exit``, ``output``, and ``escaped``: a traceback of what no sentence was made of."""

    def late(*_: object) -> None:
        raise TimeoutError(f"no end within {SECONDS} s")

    signal.signal(signal.SIGALRM, late)
    signal.alarm(SECONDS)
    began = time.monotonic()
    result = CliRunner(charset=charset).invoke(app, words)
    signal.alarm(0)
    escaped = ""
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        escaped = "".join(traceback.format_exception(result.exception)[-12:])
    seconds = round(time.monotonic() - began, 1)
    return {"exit": result.exit_code, "seconds": seconds, "output": result.output, "escaped": escaped}


def main(condition: str, store: str, folder: str, checkpoint: str) -> None:
    """Walk all commands."""
    root = Path(folder)
    shutil.copytree(store, root / "store")
    Image.new("RGB", (64, 64), "red").save(root / "picture.png")
    shutil.copy(next((root / "store").rglob("*.mp4")), root / "clip.mp4")
    os.chdir(root)
    place = Place(store=str(root / "store"), folder=root, checkpoint=checkpoint)
    retry.FIRST_WAIT_S = 0.01  # the number of attempts stays
    ray_clients.ANSWER_S = endpoint_client.START_S = caption_client.START_S = 2.0
    place = CONDITIONS[condition](place)
    for name, words in commands(place).items():
        print(json.dumps({"name": name, "words": words, **run(words, place.charset)}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
    os._exit(0)  # threads of what was walked may still wait for a server that never answers
