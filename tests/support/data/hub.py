"""The few routes of the Hugging Face hub that reading a dataset needs, on loopback, over a local folder."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

REPO = "org/pictures"
REVISIONS = ("main", "v1")
COMMIT = "0" * 40


@dataclass
class Hub:
    """A running hub with one dataset, ``hf://datasets/org/pictures``.

    Attributes:
        endpoint: Its URL, for ``HF_ENDPOINT``.
        folder: The dataset's files.
        fail_every: Every n-th request is answered with an error; 0 for none.
        requests: Method, path, ``Range`` and ``Authorization`` of each request.
    """

    folder: Path
    endpoint: str = ""
    fail_every: int = 0
    requests: list[tuple[str, str, str, str]] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def entry(self, path: Path) -> dict[str, Any]:
        """A file or folder as listings describe it."""
        name = path.relative_to(self.folder).as_posix()
        if path.is_dir():
            return {"type": "directory", "path": name, "oid": hashlib.sha1(name.encode()).hexdigest()}
        data = path.read_bytes()
        return {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}


@contextlib.contextmanager
def running_hub(folder: Path) -> Iterator[Hub]:
    """Serves ``folder`` as a dataset until the block ends."""
    hub = Hub(folder)
    listener = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    listener.daemon_threads = True
    hub.endpoint = f"http://127.0.0.1:{listener.server_address[1]}"
    thread = threading.Thread(target=listener.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        listener.shutdown()
        listener.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def do_GET(self) -> None:
        hub = self.hub
        path = unquote(urlsplit(self.path).path)
        with hub.lock:
            sent = (self.headers.get("Range", ""), self.headers.get("Authorization", ""))
            hub.requests.append((self.command, path, *sent))
            if hub.fail_every and len(hub.requests) % hub.fail_every == 0:
                self._answer(503, b"busy")
                return
        revisions = "|".join(REVISIONS)
        if match := re.fullmatch(rf"/api/datasets/{REPO}(/revision/({revisions}))?", path):
            self._json({"id": REPO, "sha": COMMIT, "private": False, "tags": [], "downloads": 0, "likes": 0})
        elif match := re.fullmatch(rf"/api/datasets/{REPO}/tree/({revisions})/?(.*)", path):
            self._tree(match[2], recursive="recursive=true" in self.path.lower())
        elif match := re.fullmatch(rf"/datasets/{REPO}/resolve/({revisions})/(.+)", path):
            self._file(hub.folder / match[2])
        else:
            self._missing("RevisionNotFound" if f"/datasets/{REPO}" in path else "RepoNotFound")

    do_HEAD = do_GET

    def _tree(self, inner: str, *, recursive: bool) -> None:
        folder = self.hub.folder / inner
        if not folder.is_dir():
            self._missing("EntryNotFound")
            return
        found = sorted(folder.rglob("*") if recursive else folder.glob("*"))
        self._json([self.hub.entry(path) for path in found])

    def _file(self, path: Path) -> None:
        if not path.is_file():
            self._missing("EntryNotFound")
            return
        data = path.read_bytes()
        if match := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            first, last = int(match[1]), min(int(match[2] or len(data)), len(data) - 1)
            self._answer(206, data[first : last + 1], {"Content-Range": f"bytes {first}-{last}/{len(data)}"})
        else:
            self._answer(200, data)

    def _json(self, value: Any) -> None:
        self._answer(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _missing(self, code: str) -> None:
        self._answer(404, b"{}", {"X-Error-Code": code, "Content-Type": "application/json"})

    def _answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response_only(status)
        for name, value in {**(headers or {}), "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Silence."""
