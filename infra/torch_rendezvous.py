"""A Ray Train process group whose rendezvous store listens on the node's own address only.

``torch.distributed``'s store opens its port on all interfaces, and neither torch nor Ray (2.60) has a setting
for it. It does take a socket that is bound already: the first worker binds one to its node's address, which
is loopback for a local head, and keeps the store; every worker then joins as a client, as under torchelastic.
"""

from __future__ import annotations

import os
import socket
from datetime import timedelta
from typing import Any

import ray
from ray.train.torch import TorchConfig
from ray.train.torch.config import (
    _set_torch_distributed_env_vars,
    _setup_torch_process_group,
    _TorchBackend,
)
from torch.distributed import TCPStore  # pyright: ignore[reportPrivateImportUsage]

_hosted: list[TCPStore] = []
"""Stores that this process hosts for the other workers until it ends."""


class BoundTorchConfig(TorchConfig):
    """Ray Train's ``TorchConfig``, with the rendezvous store bound to one address.

    Args:
        backend: ``gloo`` or ``nccl``; by default nccl where workers have GPUs.
        timeout_s: Timeout of joining and of collective operations, seconds.
    """

    @property
    def backend_cls(self) -> type[_BoundBackend]:
        """The backend that Ray Train starts."""
        return _BoundBackend


class _BoundBackend(_TorchBackend):
    def on_start(self, worker_group: Any, backend_config: TorchConfig) -> None:
        has_gpus = worker_group.get_resources_per_worker().get("GPU", 0) > 0
        backend = backend_config.backend or ("nccl" if has_gpus else "gloo")
        address, port = worker_group.execute_single(0, host_store, backend_config.timeout_s)
        worker_group.execute(_point_to, address, port)
        worker_group.execute(_set_torch_distributed_env_vars)
        joined = [
            worker_group.execute_single_async(
                rank,
                _setup_torch_process_group,
                backend=backend,
                world_rank=rank,
                world_size=len(worker_group),
                init_method="env://",
                timeout_s=backend_config.timeout_s,
            )
            for rank in range(len(worker_group))
        ]
        ray.get(joined)


def host_store(timeout_s: float) -> tuple[str, int]:
    """Open a store on this node's address and a free port, and keep it; returns both."""
    address = ray.util.get_node_ip_address()
    listener = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET)
    listener.bind((address, 0))
    listener.listen(1024)
    port = listener.getsockname()[1]
    store = TCPStore(
        address,
        port,
        is_master=True,
        wait_for_workers=False,
        timeout=timedelta(seconds=timeout_s),
        master_listen_fd=listener.detach(),
    )
    _hosted.append(store)
    return address, port


def _point_to(address: str, port: int) -> None:
    """Have ``env://`` join the store at an address instead of opening one there."""
    os.environ.update(MASTER_ADDR=address, MASTER_PORT=str(port), TORCHELASTIC_USE_AGENT_STORE="True")
