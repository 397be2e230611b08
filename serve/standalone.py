"""Checkpoints served by this process alone: no Ray cluster, no run. `casa serve` starts it by its name."""

from __future__ import annotations

import asyncio
import logging
import socket
import sys
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import uvicorn
from transformers.utils.logging import disable_progress_bar

from casa_core.errors import ClusterError
from infra.http_protocol import BoundedHttpProtocol
from serve.api.settings import ServeSettings
from serve.asgi import build_app
from serve.loading import load_pool
from serve.observe.logs import configure_logs

logger = logging.getLogger("casa.serve")
SHUTDOWN_S = 5
"""Seconds that answers in progress have to end once the process is asked to stop."""
BACKLOG = 2048


def open_port(host: str, port: int) -> socket.socket:
    """A socket for the address, before minutes go into loading; it does not listen yet.

    Args:
        port: 0 takes a free one.

    Raises:
        ClusterError: The address cannot be had.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        raise _taken(host, port, error) from error
    return listener


def serve(settings: dict[str, Any], listener: socket.socket, ready: Callable[[], None]) -> None:
    """Load the first checkpoint and answer until the process is interrupted.

    Args:
        settings: `ServeSettings` as JSON.
        listener: Of :func:`open_port`.
        ready: Called once clients are answered.

    Raises:
        ConfigError, StoreError: As `load_engine`.
        ClusterError: Something else listens at the address by now.
        KeyboardInterrupt: Interrupted from the keyboard; everything has ended.
    """
    own = ServeSettings.model_validate(settings)
    configure_logs(own.log, "uvicorn")
    if not sys.stderr.isatty():
        disable_progress_bar()  # it would stand among the log's lines
    app = build_app(load_pool(own, ExitStack()), own)
    host, port = listener.getsockname()[:2]
    try:
        listener.listen(BACKLOG)
    except OSError as error:
        raise _taken(host, port, error) from error
    config = uvicorn.Config(
        app,
        log_config=None,  # its warnings have the form of ours
        access_log=False,  # the app logs its requests itself
        server_header=False,
        http=BoundedHttpProtocol,
        ws="websockets-sansio",
        timeout_graceful_shutdown=SHUTDOWN_S,
    )
    _Server(config, ready).run(sockets=[listener])


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """As uvicorn's, and then the call of ``ready``."""
        await super().startup(sockets)
        if self.started:
            await asyncio.to_thread(self._ready)


def _taken(host: str, port: int, error: OSError) -> ClusterError:
    return ClusterError(
        f"Port {port} on {host} cannot be opened.",
        f"{error.strerror or error}.",
        "Stop what listens there, or choose another: `--port 8001`; `--port 0` takes a free one.",
    )
