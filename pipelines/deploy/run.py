"""The deploy stage: starts the endpoint on Ray Serve. Its result is a running service, not a file to cache.

It starts Ray Serve by the import string ``serve.app:build`` with JSON settings, through the dashboard's Serve
API, so the endpoint outlives the job. ``check`` needs no Ray: it reads the endpoint's ``/healthz``.
"""

from __future__ import annotations

import ipaddress
import json
import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Protocol

import httpx
from pydantic_core import to_jsonable_python

from casa_core.errors import ClusterError
from infra.endpoint_settings import Access, Limits
from pipelines.dag.context import StageContext
from pipelines.dag.settings import read_settings, stage_settings
from pipelines.storage.uri import Folder

APP = "casa"
IMPORT_PATH = "serve.app:build"
FETCH = "pipelines.storage.host:cached_copy"
"""What replicas copy folders with that lie on S3."""
START_TIMEOUT_S = 180.0
COMPILED_START_TIMEOUT_S = 1800.0
"""The same where decode steps are compiled before the endpoint is ready."""
PROBE_TIMEOUT_S = 3.0
SETTLED_S = 3.0
"""Seconds for which all replicas must run: between two steps of a rolling update they do, for a moment."""

Health = Literal["absent", "foreign", "different", "same"]


@stage_settings
class Replicas:
    """Bounds of the endpoint's autoscaling, replicas."""

    min: int
    max: int


@stage_settings
class Endpoint:
    """The recipe's ``deploy`` section.

    Attributes:
        model_name: Name that clients put in ``model``.
        models: ``fingerprint`` and ``digest`` of further checkpoints, by their names.
        models_per_engine: How many a replica holds at a time.
        max_new_tokens: Longest answer, tokens.
        live_query: Query of a live session whose client names none.
        dtype, compile, graphs, quantize: How the engine computes.
        replicas: Bounds of autoscaling.
        endpoints: Processes that clients connect to.
        access, limits: As `infra.endpoint_settings` has them.
    """

    model_name: str
    models: dict[str, dict[str, str]]
    models_per_engine: int
    max_new_tokens: int
    live_query: str
    dtype: str
    compile: bool
    graphs: bool
    quantize: str
    replicas: Replicas
    endpoints: int
    access: Access
    limits: Limits


@stage_settings
class DeploySettings:
    """Settings of the stage: the recipe's section."""

    deploy: Endpoint


def run_stage(context: StageContext) -> dict[str, Any]:
    """Bring the endpoint into the state that the recipe describes.

    Inputs: ``train`` (a train artifact), and any clean artifacts: the live page offers held-out samples.

    Returns:
        The summary of ``check``.

    Raises:
        ClusterError: If something else listens on the port, or the endpoint does not start.
    """
    running = check(context.placement, context.settings, context.fingerprint)
    if running is not None:
        return running
    from pipelines.deploy.demo import copy_demo  # late: `check` needs no Arrow

    context.progress(0, 3, "collecting held-out samples")
    clips = context.output / "demo"
    copy_demo([path for role, path in context.inputs.items() if role != "train"], clips)
    arguments = serve_arguments(context, clips)
    context.progress(1, 3, "starting the endpoint")
    cluster, runtime_env = _connect()
    start(cluster, context.placement["serve"], arguments, runtime_env)
    context.progress(3, 3, "the endpoint answers")
    summary = check(context.placement, context.settings, context.fingerprint)
    if summary is None:
        raise ClusterError(
            f"The endpoint at {endpoint_url(context.placement)} started and does not answer any more.",
            "Its replica may have been ended, for lack of memory for example.",
            "Run again; `casa logs deploy` has its output.",
        )
    return summary


def check(
    placement: Mapping[str, Any], settings: Mapping[str, Any], fingerprint: str
) -> dict[str, Any] | None:
    """The endpoint's summary if it is healthy and has this fingerprint, otherwise ``None``. Plain HTTP.

    Args:
        placement: The stage's placement.
        settings: The stage's settings, see `DeploySettings`.
        fingerprint: The deploy stage's: it identifies the checkpoint and all settings of the endpoint.
    """
    url = endpoint_url(placement)
    if endpoint_health(url, fingerprint) != "same":
        return None
    return {
        "url": url,
        "live_page": f"{url}/",
        "chat_completions": f"{url}/v1/chat/completions",
        "live_captions": f"{url.replace('http', 'ws', 1)}/v1/live",
        "model_name": _read(settings).model_name,
        "fingerprint": fingerprint,
    }


def endpoint_url(placement: Mapping[str, Any]) -> str:
    """URL under which a client on this machine reaches the endpoint."""
    host, port = placement["serve"]["host"], placement["serve"]["port"]
    if host in ("0.0.0.0", "::"):  # every interface: loopback is one of them
        host = "127.0.0.1" if host == "0.0.0.0" else "::1"
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
    if not isinstance(health, dict) or health.get("service") != APP:
        return "foreign"
    same = answer.status_code == 200 and health["fingerprint"] == expected_fingerprint
    return "same" if same else "different"


def serve_arguments(context: StageContext, clips: Folder) -> dict[str, Any]:
    """The JSON settings of ``serve.app:build``."""
    own = _read(context.settings)
    model = context.inputs["train"] / "model"
    digests = {}
    if not isinstance(model, Path):
        digests["model_folder"] = context.content_digest("train")
    if not isinstance(clips, Path):
        digests["demo_clips"] = context.fingerprint
    folders = json.loads(context.settings["model_folders"]) if own.models else {}
    return {
        "model_folder": str(model),
        **to_jsonable_python(own),
        "models": {name: {**known, "folder": folders[name]} for name, known in own.models.items()},
        "fingerprint": context.fingerprint,
        "checkpoint": context.manifests["train"]["fingerprint"],
        "demo_clips": str(clips),
        "fetch": FETCH,
        "digests": digests,
        "log": context.placement["serve"]["log"],
        "loopback_only": is_loopback(context.placement["serve"]["host"]),
    }


def _read(settings: Mapping[str, Any]) -> Endpoint:
    """The settings, without the folders of further checkpoints, which lie beside them."""
    return read_settings(DeploySettings, {"deploy": settings["deploy"]}).deploy


def is_loopback(host: str) -> bool:
    """Whether an address to listen on can be reached from this machine only."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class ServeClient(Protocol):
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
    cluster: ServeClient, address: dict[str, Any], arguments: dict[str, Any], runtime_env: dict[str, Any]
) -> None:
    """Start or replace our application and wait until every replica of it runs.

    Args:
        cluster: Serve's REST API.
        address: ``{"host": …, "port": …}`` to listen on.
        arguments: Settings of the application.
        runtime_env: Ray's runtime environment, from which replicas import it.

    Raises:
        ClusterError: As ``run_stage``.
    """
    url = endpoint_url({"serve": address})
    details = cluster.get_serve_details()
    others = _other_applications(details)
    listening = details.get("http_options") if details["applications"] or details["proxies"] else None
    ours = listening is not None and (listening["host"], listening["port"]) == (
        address["host"],
        address["port"],
    )
    if not ours:
        _require_free_port(url, address)
        if listening is not None:
            _stop_serve(cluster, listening, others)
    application = {
        "name": APP,
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
    _await_running(cluster, url, arguments["fingerprint"], timeout_s)


def _await_running(cluster: ServeClient, url: str, fingerprint: str, timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    status, reason, settled_since = "NOT_STARTED", "", None
    while time.monotonic() < deadline:
        application = cluster.get_serve_details()["applications"].get(APP, {})
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


def _require_free_port(url: str, address: dict[str, Any]) -> None:
    health = endpoint_health(url, "")
    if health == "absent":
        return
    what = "Another endpoint of this project" if health in ("same", "different") else "Another program"
    raise ClusterError(
        f"Port {address['port']} on {address['host']} is taken.",
        f"{what} answers at {url}.",
        "Stop it, or choose another port: `--set where.serve.port=8001`.",
    )


def _stop_serve(cluster: ServeClient, listening: dict[str, Any], others: list[dict[str, Any]]) -> None:
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


def _other_applications(details: dict[str, Any]) -> list[dict[str, Any]]:
    """Configurations of other applications, to be sent along unchanged: deploying replaces all."""
    configs = {
        name: app.get("deployed_app_config") for name, app in details["applications"].items() if name != APP
    }
    return [config for config in configs.values() if config]


def _connect() -> tuple[ServeClient, dict[str, Any]]:
    """The REST API of the cluster that this job runs on, and the runtime environment of the job.

    Replicas get the same ``working_dir`` and ``py_modules`` as the job, so that they import the same code,
    and the same ``env_vars``, so that they reach the same store.
    """
    import ray
    from ray.dashboard.modules.serve.sdk import ServeSubmissionClient

    session = ray.init(logging_level=logging.ERROR, log_to_driver=False, ignore_reinit_error=True)
    job = ray.get_runtime_context().runtime_env
    shipped = {key: job[key] for key in ("working_dir", "py_modules", "env_vars") if job.get(key)}
    return ServeSubmissionClient(f"http://{session.dashboard_url}"), shipped
