"""The endpoint as its clients see it: its address, and what answers there. Needs no Ray."""

from __future__ import annotations

import ipaddress
from typing import Literal
from urllib.parse import urlsplit

import httpx

from casa_core.errors import ClusterError

SERVICE = "casa"
"""Name that an endpoint of this project gives of itself."""
PROBE_TIMEOUT_S = 3.0

Health = Literal["absent", "foreign", "different", "same"]


def endpoint_url(host: str, port: int, ray_address: str = "local") -> str:
    """URL under which a client reaches the endpoint.

    Args:
        host, port: Where the recipe has it listen.
        ray_address: The address of the cluster that serves, as the client reaches it; ``local`` for a client
            on the node. An endpoint that listens on loopback is reached from its node alone.
    """
    if host in ("0.0.0.0", "::"):  # every interface: loopback is one of them, and that of the dashboard
        loopback = "127.0.0.1" if host == "0.0.0.0" else "::1"
        host = loopback if ray_address == "local" else urlsplit(ray_address).hostname or loopback
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def endpoint_health(url: str, expected_fingerprint: str) -> Health:
    """What answers at a URL: nothing, another program, another deployment of ours, or the expected one."""
    try:
        answer = httpx.get(f"{url}/healthz", timeout=PROBE_TIMEOUT_S, trust_env=False)
        health = answer.json()
    except httpx.ConnectError:
        return "absent"
    except (httpx.HTTPError, ValueError):
        return "foreign"
    if not isinstance(health, dict) or health.get("service") != SERVICE:
        return "foreign"
    same = answer.status_code == 200 and health.get("fingerprint") == expected_fingerprint
    return "same" if same else "different"


def require_free_port(host: str, port: int) -> None:
    """Refuse a port of this machine on which something answers.

    Raises:
        ClusterError: Another endpoint does, or another program.
    """
    url = endpoint_url(host, port)
    health = endpoint_health(url, "")
    if health == "absent":
        return
    what = "Another endpoint of this project" if health in ("same", "different") else "Another program"
    raise ClusterError(
        f"Port {port} on {host} is taken.",
        f"{what} answers at {url}.",
        f"Stop it, or choose another port: `--set where.serve.port={port + 1}`.",
    )


def is_loopback(host: str) -> bool:
    """Whether an address to listen on can be reached from this machine only."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
