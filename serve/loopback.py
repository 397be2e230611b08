"""Keep a Ray Serve replica's internal port on loopback.

Ray's own processes follow the node's address, and the HTTP proxy the `host` it is given, but every replica
opens its gRPC port for the proxy on all interfaces and offers no setting for it (Ray 2.60). The call that
binds it goes through one module-level name, looked up once the replica has built its application, so
replacing that name in the replica's own process is enough and touches nothing else.
"""

from __future__ import annotations

from typing import Any

from casa_core.errors import ClusterError

WILDCARD_PREFIXES = ("[::]:", "0.0.0.0:")


def to_loopback(address: str) -> str:
    """`[::]:0` → `127.0.0.1:0`; an address that names a host already is left alone."""
    for prefix in WILDCARD_PREFIXES:
        if address.startswith(prefix):
            return f"127.0.0.1:{address.removeprefix(prefix)}"
    return address


def keep_replica_on_loopback() -> None:
    """Rewrite the address this replica's gRPC server is about to bind. Call it in the replica's constructor.

    Raises:
        ClusterError: This version of Ray binds the port in another way.
    """
    from ray.serve._private import replica

    name = "add_port_to_grpc_server"
    bind = getattr(replica, name, None)
    if bind is None:
        raise ClusterError(
            "The replica's internal port cannot be kept on loopback.",
            "This version of Ray Serve binds it in another way than this project expects.",
            "Install the Ray version that pyproject.toml names, or serve on an address that is not loopback.",
        )

    def bind_on_loopback(server: Any, address: str) -> int:
        return bind(server, to_loopback(address))

    setattr(replica, name, bind_on_loopback)
