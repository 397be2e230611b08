"""Starting, replacing and watching a store's application of Ray Serve, through the dashboard's Serve API."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from casa_core.errors import ClusterError
from infra.ray_errors import Busy
from pipelines.deploy.endpoint import endpoint_health, endpoint_url, is_loopback, require_free_port

IMPORT_PATH = "serve.app:build"
START_TIMEOUT_S = 180.0
COMPILED_START_TIMEOUT_S = 1800.0
"""The same where decode steps are compiled before the endpoint is ready."""
SETTLED_S = 3.0
"""Seconds for which all replicas must run: between two steps of a rolling update they do, for a moment."""


class ServeApi(Protocol):
    """The part of Ray's Serve REST client that is used here."""

    def get_serve_details(self) -> dict[str, Any]:
        """Serve's state: ``applications``, ``proxies`` and ``http_options``."""
        ...

    def deploy_applications(self, config: dict[str, Any]) -> None:
        """Replace all applications by those of ``config``."""
        ...

    def delete_applications(self) -> None:
        """Shut Serve down."""
        ...


def start(
    cluster: ServeApi,
    address: dict[str, Any],
    arguments: dict[str, Any],
    runtime_env: dict[str, Any],
    name: str,
) -> None:
    """Start or replace our application and wait until every replica of it runs.

    Args:
        cluster: Serve's REST API.
        address: ``{"host": …, "port": …}`` to listen on.
        arguments: Settings of the application.
        runtime_env: Ray's runtime environment, from which replicas import it.
        name: Our application's, see `serve_application`.

    Raises:
        ClusterError: As ``run_stage``.
    """
    url = endpoint_url(address["host"], address["port"])
    details = cluster.get_serve_details()
    others = _other_applications(details, name)
    _require_free_root(others, url)
    listening = details.get("http_options") if details["applications"] or details["proxies"] else None
    ours = listening is not None and (listening["host"], listening["port"]) == (
        address["host"],
        address["port"],
    )
    if not ours:
        require_free_port(address["host"], address["port"])
        if listening is not None:
            _stop_serve(cluster, listening, others)
    application = {
        "name": name,
        "route_prefix": "/",
        "import_path": IMPORT_PATH,
        "args": arguments,
        "runtime_env": runtime_env,
    }
    cluster.deploy_applications(
        {
            # One proxy suffices on loopback; elsewhere each node with a replica answers.
            "proxy_location": "HeadOnly" if is_loopback(address["host"]) else "EveryNode",
            "http_options": {"host": address["host"], "port": address["port"]},
            "applications": [*others, application],
        }
    )
    timeout_s = COMPILED_START_TIMEOUT_S if arguments.get("compile") else START_TIMEOUT_S
    _await_running(lambda: _details_of(cluster, name), url, arguments["fingerprint"], timeout_s)


def _details_of(cluster: ServeApi, name: str) -> dict[str, Any]:
    """Serve's details of an application; empty while Serve has none, or is too busy to answer."""
    try:
        return cluster.get_serve_details()["applications"].get(name, {})
    except Busy:  # as while its replicas load: it is asked again until the deadline
        return {}


def _await_running(
    details: Callable[[], dict[str, Any]], url: str, fingerprint: str, timeout_s: float
) -> None:
    deadline = time.monotonic() + timeout_s
    status, reason, settled_since = "NOT_STARTED", "", None
    while time.monotonic() < deadline:
        application = details()
        status = application.get("status", "NOT_STARTED")
        messages = [application, *application.get("deployments", {}).values()]
        reason = "; ".join(entry["message"] for entry in messages if entry.get("message"))
        settled_since = (settled_since or time.monotonic()) if _is_settled(application) else None
        settled = settled_since is not None and time.monotonic() > settled_since + SETTLED_S
        if (status == "RUNNING" or settled) and endpoint_health(url, fingerprint) == "same":
            return
        if status == "DEPLOY_FAILED":
            break
        time.sleep(0.25)
    raise ClusterError(
        "The endpoint did not start.",
        f"Ray Serve reports {status}: {reason or 'no reason given'}.",
        "`casa logs deploy` and the Serve page of Ray's dashboard have the replica's own output.",
    )


def _is_settled(application: Mapping[str, Any]) -> bool:
    """Whether every replica that is to be there runs. Serve reports an application as deploying for as long
    as one that was replaced still drains, which for an endpoint is until its last live session ends."""
    deployments = application.get("deployments", {}).values()
    for deployment in deployments:
        states = [one["state"] for one in deployment["replicas"] if one["state"] != "STOPPING"]
        if states != ["RUNNING"] * deployment["target_num_replicas"]:
            return False
    return bool(deployments)


def _require_free_root(others: list[dict[str, Any]], url: str) -> None:
    """Serve has one port, and an endpoint of ours takes all of its paths."""
    at_root = [application["name"] for application in others if application.get("route_prefix", "/") == "/"]
    if at_root:
        raise ClusterError(
            f"Another application of this cluster has the address {url}/: {at_root[0]}.",
            "It may be another store's endpoint; Ray Serve has one port, and both would answer there.",
            "End it (`casa stop --store …` for another store's), or deploy on another cluster.",
        )


def _stop_serve(cluster: ServeApi, listening: dict[str, Any], others: list[dict[str, Any]]) -> None:
    """Shut Serve down, since it cannot change its address while it runs, unless other applications use it."""
    if others:
        names = ", ".join(application["name"] for application in others)
        raise ClusterError(
            f"Ray Serve already listens on {listening['host']}:{listening['port']} of this cluster.",
            f"Its address cannot change while it serves other applications: {names}.",
            f"Use where.serve.host={listening['host']} and where.serve.port={listening['port']} (`--set`).",
        )
    cluster.delete_applications()
    deadline = time.monotonic() + START_TIMEOUT_S
    while (details := cluster.get_serve_details())["applications"] or details["proxies"]:
        if time.monotonic() > deadline:
            raise ClusterError(
                "Ray Serve did not shut down.", "Its old address is still in use.", "Run `casa stop`."
            )
        time.sleep(0.25)


def _other_applications(details: dict[str, Any], name: str) -> list[dict[str, Any]]:
    """Configurations of other applications, to be sent along unchanged: deploying replaces all."""
    configs = [app.get("deployed_app_config") for n, app in details["applications"].items() if n != name]
    return [config for config in configs if config]
