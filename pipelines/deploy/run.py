"""The deploy stage: starts the endpoint on Ray Serve. Its result is a running service, not a file to cache.

It starts Ray Serve by the import string ``serve.app:build`` with JSON settings, through the dashboard's Serve
API, so the endpoint outlives the job. ``check`` reads the ``/healthz`` of an endpoint on this machine without
Ray. Another cluster's may listen where only its head can ask: there it asks the dashboard.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic_core import to_jsonable_python

from casa_core.errors import ClusterError
from infra.endpoint_settings import Access, Limits
from infra.inside import dashboard_of
from pipelines.dag.context import StageContext
from pipelines.dag.settings import read_settings, stage_settings
from pipelines.dag.shared_names import serve_application
from pipelines.deploy.endpoint import endpoint_health, endpoint_url, is_loopback
from pipelines.deploy.ray_serve import ServeApi, start
from pipelines.storage.uri import Folder, open_folder

FETCH = "pipelines.storage.host:cached_copy"
"""What replicas copy folders with that lie on S3."""


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
    if _answers_here(context.placement, context.fingerprint):
        return _summary(context.placement, context.settings, context.fingerprint)
    from pipelines.deploy.demo import copy_demo  # late: `check` needs no Arrow

    context.progress(0, 3, "collecting held-out samples")
    clips = context.output / "demo"
    copy_demo([path for role, path in context.inputs.items() if role != "train"], clips)
    arguments = serve_arguments(context, clips)
    context.progress(1, 3, "starting the endpoint")
    cluster, runtime_env = _connect()
    name = serve_application(context.output.parent.parent)
    start(cluster, context.placement["serve"], arguments, runtime_env, name)
    context.progress(3, 3, "the endpoint answers")
    if not _answers_here(context.placement, context.fingerprint):
        raise ClusterError(
            "The endpoint started and does not answer any more.",
            "Its replica may have been ended, for lack of memory for example.",
            "Run again; `casa logs deploy` has its output.",
        )
    return _summary(context.placement, context.settings, context.fingerprint)


def check(
    placement: Mapping[str, Any], settings: Mapping[str, Any], fingerprint: str
) -> dict[str, Any] | None:
    """The endpoint's summary if it is healthy and has this fingerprint, otherwise ``None``.

    Args:
        placement: The stage's placement.
        settings: The stage's settings, see `DeploySettings`.
        fingerprint: The deploy stage's: it identifies the checkpoint and all settings of the endpoint.

    Raises:
        Unreachable: If another cluster does not answer.
    """
    local = placement["ray"]["address"] == "local"
    holds = _answers_here if local else _is_deployed
    return _summary(placement, settings, fingerprint) if holds(placement, fingerprint) else None


def _answers_here(placement: Mapping[str, Any], fingerprint: str) -> bool:
    """Whether the endpoint answers on this machine, which is its cluster's head."""
    serve = placement["serve"]
    return endpoint_health(endpoint_url(serve["host"], serve["port"]), fingerprint) == "same"


def _is_deployed(placement: Mapping[str, Any], fingerprint: str) -> bool:
    """Whether another cluster runs the endpoint, by its dashboard."""
    from infra.ray_clients import ServeClient

    details = ServeClient(dashboard_of(placement["ray"])).get_serve_details()
    own = details["applications"].get(serve_application(open_folder(placement["store"])), {})
    deployed = (own.get("deployed_app_config") or {}).get("args") or {}
    return own.get("status") == "RUNNING" and deployed.get("fingerprint") == fingerprint


def _summary(placement: Mapping[str, Any], settings: Mapping[str, Any], fingerprint: str) -> dict[str, Any]:
    serve = placement["serve"]
    url = endpoint_url(serve["host"], serve["port"], placement["ray"]["address"])
    return {
        "url": url,
        "live_page": f"{url}/",
        "chat_completions": f"{url}/v1/chat/completions",
        "live_captions": f"{url.replace('http', 'ws', 1)}/v1/live",
        "model_name": _read(settings).model_name,
        "fingerprint": fingerprint,
    }


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


def _connect() -> tuple[ServeApi, dict[str, Any]]:
    """The REST API of the cluster that this job runs on, and the runtime environment of the job.

    Replicas get the same ``working_dir`` and ``py_modules`` as the job, so that they import the same code,
    and the same ``env_vars``, so that they reach the same store.
    """
    import ray

    from infra.ray_clients import ServeClient

    session = ray.init(logging_level=logging.ERROR, log_to_driver=False, ignore_reinit_error=True)
    job = ray.get_runtime_context().runtime_env
    shipped = {key: job[key] for key in ("working_dir", "py_modules", "env_vars") if job.get(key)}
    return ServeClient(f"http://{session.dashboard_url}"), shipped
