"""The deploy stage finds out over HTTP what runs, and starts, replaces or refuses accordingly."""

from __future__ import annotations

import http.server
import json
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from casa_core.errors import ClusterError
from pipelines.dag.context import StageContext
from pipelines.dag.shared_names import serve_application
from pipelines.deploy import endpoint, ray_serve
from pipelines.deploy import run as deploy
from pipelines.recipe.model import Deploy, Replicas
from pipelines.recipe.stages import MODEL_FOLDERS
from serve.api.settings import ServeSettings
from serve.loading import with_local_folders
from tests.support.http_servers import VERSION, answering
from tests.support.serve.fakes import FakeEngine
from tests.support.serve.server import MODEL, running, settings_with

REPLICAS = Replicas(max=2)
SETTINGS = {"deploy": Deploy(model_name=MODEL, max_new_tokens=32, replicas=REPLICAS).model_dump(mode="json")}
FINGERPRINT = "f" * 16
APPLICATION = "casa-ours"


def where(url: str) -> dict[str, Any]:
    host, port = url.removeprefix("http://").split(":")
    return {"serve": {"host": host, "port": int(port)}, "ray": {"address": "local"}}


@pytest.fixture
def free_url() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}"


@contextmanager
def foreign_server(status: int = 200, body: bytes = b"<html>hello</html>") -> Iterator[str]:
    """A web server that is not ours."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


class FakeServe:
    """Serve's REST API in memory: what is deployed gets `outcome` as its status."""

    def __init__(
        self, applications: dict[str, Any] | None = None, http_options: dict[str, Any] | None = None
    ):
        self.applications = applications or {}
        self.http_options = http_options
        self.outcome: dict[str, Any] = {"status": "RUNNING", "message": ""}
        self.deployed: list[dict[str, Any]] = []
        self.deleted = 0

    def get_serve_details(self) -> dict[str, Any]:
        proxies = {"node": {}} if self.http_options else {}
        return {"applications": self.applications, "proxies": proxies, "http_options": self.http_options}

    def deploy_applications(self, config: dict[str, Any]) -> None:
        self.deployed.append(config)
        self.http_options = config["http_options"]
        self.applications = {
            app["name"]: {**self.outcome, "deployed_app_config": app} for app in config["applications"]
        }

    def delete_applications(self) -> None:
        self.deleted += 1
        self.applications, self.http_options = {}, None


def arguments(tmp_path: Path, what: dict[str, Any] = SETTINGS) -> dict[str, Any]:
    context = StageContext(
        name="deploy",
        settings=what,
        placement={"serve": {"host": "127.0.0.1", "port": 8000, "log": "json"}},
        output=tmp_path / "out",
        inputs={"train": tmp_path / "train"},
        manifests={"train": {"fingerprint": "c" * 16}},
        fingerprint=FINGERPRINT,
    )
    return deploy.serve_arguments(context, tmp_path / "clips")


def test_what_the_stage_sends_is_what_serving_accepts(tmp_path: Path):
    settings = ServeSettings.model_validate(arguments(tmp_path))
    assert settings.model_folder == tmp_path / "train" / "model"
    assert (settings.fingerprint, settings.checkpoint) == (FINGERPRINT, "c" * 16)
    assert (settings.replicas.min, settings.replicas.max) == (1, 2)
    assert settings.loopback_only
    assert settings.log == "json"


def test_the_recipes_limits_and_access_reach_the_endpoint(tmp_path: Path):
    deploy_section = {
        **SETTINGS["deploy"],
        "limits": {**SETTINGS["deploy"]["limits"], "sessions": 3, "body_seconds": 2},
        "access": {"keys": "/etc/casa/keys", "hosts": ["a.example"], "origins": ["https://b.example"]},
    }
    settings = ServeSettings.model_validate(arguments(tmp_path, {"deploy": deploy_section}))
    assert (settings.limits.sessions, settings.limits.body_seconds) == (3, 2.0)
    assert settings.access.keys == "/etc/casa/keys"
    assert (settings.access.hosts, settings.access.origins) == (["a.example"], ["https://b.example"])


def test_further_models_of_the_recipe_reach_the_endpoint_with_what_identifies_them(tmp_path: Path):
    known = {"fingerprint": "a" * 16, "digest": "d" * 64}
    deploy_section = {**SETTINGS["deploy"], "models": {"other": known}, "models_per_engine": 1}
    what = {"deploy": deploy_section, MODEL_FOLDERS: json.dumps({"other": "s3://bucket/model"})}
    settings = ServeSettings.model_validate(arguments(tmp_path, what))
    assert settings.checkpoints["other"].model_dump() == {**known, "folder": "s3://bucket/model"}
    assert (settings.models_per_engine, list(settings.checkpoints)) == (1, [MODEL, "other"])


def test_a_replica_copies_a_model_and_clips_that_lie_on_s3(s3_folder):
    model, clips = s3_folder / "train" / "model", s3_folder / "deploy" / "demo"
    (model / "config.json").write_text("{}")
    (clips / "clip-1.mp4").write_bytes(b"mp4")
    context = StageContext(
        name="deploy",
        settings=SETTINGS,
        placement={"serve": {"host": "127.0.0.1", "port": 8000, "log": "json"}},
        output=s3_folder / "deploy",
        inputs={"train": s3_folder / "train"},
        manifests={"train": {"fingerprint": "c" * 16, "content_digest": "d" * 64}},
        fingerprint=FINGERPRINT,
    )
    sent = json.loads(json.dumps(deploy.serve_arguments(context, clips)))
    with ExitStack() as copies:
        settings = ServeSettings.model_validate(with_local_folders(sent, copies))
        assert (settings.model_folder / "config.json").read_text() == "{}"
        assert settings.demo_clips is not None
        assert (settings.demo_clips / "clip-1.mp4").read_bytes() == b"mp4"


def test_health_tells_nothing_something_else_another_and_the_same_apart(free_url: str):
    assert endpoint.endpoint_health(free_url, FINGERPRINT) == "absent"
    with foreign_server() as url:
        assert endpoint.endpoint_health(url, FINGERPRINT) == "foreign"
    with foreign_server(body=b'{"status": "ok"}') as url:
        assert endpoint.endpoint_health(url, FINGERPRINT) == "foreign"
    with foreign_server(status=404, body=b"null") as url:
        assert endpoint.endpoint_health(url, FINGERPRINT) == "foreign"
    with running(FakeEngine(), settings_with()) as url:
        assert endpoint.endpoint_health(url, FINGERPRINT) == "same"
        assert endpoint.endpoint_health(url, "other") == "different"


def test_check_gives_the_summary_of_a_healthy_identical_endpoint_only(free_url: str):
    assert deploy.check(where(free_url), SETTINGS, FINGERPRINT) is None
    with running(FakeEngine(), settings_with()) as url:
        summary = deploy.check(where(url), SETTINGS, FINGERPRINT)
        assert summary is not None
        assert summary["url"] == url
        assert summary["model_name"] == MODEL
        assert summary["live_captions"] == f"{url.replace('http', 'ws')}/v1/live"
        assert deploy.check(where(url), SETTINGS, "other") is None


def test_an_endpoint_that_runs_already_is_left_alone(tmp_path: Path):
    with running(FakeEngine(), settings_with()) as url:
        context = StageContext(
            name="deploy", settings=SETTINGS, placement=where(url), output=tmp_path, fingerprint=FINGERPRINT
        )
        assert deploy.run_stage(context)["url"] == url


def test_a_port_that_something_else_holds_is_named_with_the_way_out(tmp_path: Path):
    cluster = FakeServe()
    with (
        foreign_server() as url,
        pytest.raises(ClusterError, match=r"Another program.*\n.*where\.serve\.port"),
    ):
        ray_serve.start(cluster, where(url)["serve"], arguments(tmp_path), {}, APPLICATION)
    with (
        running(FakeEngine(), settings_with()) as url,
        pytest.raises(ClusterError, match="Another endpoint of this project"),
    ):
        ray_serve.start(cluster, where(url)["serve"], arguments(tmp_path), {}, APPLICATION)
    assert cluster.deployed == []


def test_our_own_endpoint_is_replaced_in_place_and_others_are_kept(tmp_path: Path):
    with running(FakeEngine(), settings_with()) as url:
        address = where(url)["serve"]
        other = {"name": "theirs", "import_path": "theirs:app", "route_prefix": "/theirs"}
        cluster = FakeServe(
            {APPLICATION: {"deployed_app_config": {}}, "theirs": {"deployed_app_config": other}}, address
        )
        ray_serve.start(cluster, address, arguments(tmp_path), {"working_dir": "gcs://code.zip"}, APPLICATION)
    [config] = cluster.deployed
    assert config["http_options"] == address
    assert config["proxy_location"] == "HeadOnly"
    assert config["applications"][0] == other
    ours = config["applications"][1]
    assert (ours["name"], ours["import_path"]) == (APPLICATION, "serve.app:build")
    assert ours["runtime_env"] == {"working_dir": "gcs://code.zip"}
    assert json.loads(json.dumps(ours["args"])) == arguments(tmp_path)
    assert cluster.deleted == 0


def test_moving_to_another_port_ends_the_old_server_unless_others_use_it(tmp_path: Path, free_url: str):
    address, old = where(free_url)["serve"], {"host": "127.0.0.1", "port": 9}
    theirs = {"theirs": {"deployed_app_config": {"name": "theirs", "route_prefix": "/theirs"}}}
    with pytest.raises(ClusterError, match="other applications: theirs"):
        ray_serve.start(FakeServe(theirs, old), address, arguments(tmp_path), {}, APPLICATION)
    cluster = FakeServe({APPLICATION: {"deployed_app_config": {}}}, old)
    cluster.outcome = {"status": "DEPLOY_FAILED", "message": "no such checkpoint"}
    with pytest.raises(ClusterError, match="DEPLOY_FAILED: no such checkpoint"):
        ray_serve.start(cluster, address, arguments(tmp_path), {}, APPLICATION)
    assert cluster.deleted == 1


def test_another_stores_endpoint_is_not_replaced(tmp_path: Path, free_url: str):
    address = where(free_url)["serve"]
    theirs = {"casa-theirs": {"deployed_app_config": {"name": "casa-theirs", "route_prefix": "/"}}}
    cluster = FakeServe(theirs, address)
    with pytest.raises(ClusterError, match=r"casa-theirs.*\n.*\n.*casa stop --store"):
        ray_serve.start(cluster, address, arguments(tmp_path), {}, APPLICATION)
    assert (cluster.deployed, cluster.deleted) == ([], 0)


def test_addresses_are_understood():
    assert [endpoint.is_loopback(h) for h in ("127.0.0.1", "::1", "localhost", "127.3.2.1")] == [True] * 4
    assert [endpoint.is_loopback(h) for h in ("0.0.0.0", "::", "10.0.0.1", "example.org")] == [False] * 4
    for host, url in {
        "127.0.0.1": "http://127.0.0.1:8000",
        "0.0.0.0": "http://127.0.0.1:8000",
        "::1": "http://[::1]:8000",
    }.items():
        assert endpoint.endpoint_url(host, 8000) == url


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("0.0.0.0", "http://head.example:8000"),
        ("10.0.0.7", "http://10.0.0.7:8000"),
        ("127.0.0.1", "http://127.0.0.1:8000"),
    ],
)
def test_another_clusters_endpoint_is_at_its_head(host: str, url: str):
    assert endpoint.endpoint_url(host, 8000, "https://head.example:8265") == url


@pytest.mark.parametrize(
    ("status", "fingerprint", "holds"),
    [("RUNNING", FINGERPRINT, True), ("DEPLOYING", FINGERPRINT, False), ("RUNNING", "e" * 16, False)],
)
def test_another_clusters_endpoint_is_known_by_its_dashboard_and_this_machines_does_not_pass_for_it(
    tmp_path: Path, status: str, fingerprint: str, holds: bool
):
    own = {"status": status, "deployed_app_config": {"args": {"fingerprint": fingerprint}}}
    details = json.dumps({"applications": {serve_application(tmp_path): own}})
    with (
        running(FakeEngine(), settings_with(fingerprint=FINGERPRINT)) as here,
        answering(lambda method, path: (200, VERSION if "version" in path else details)) as (cluster, _),
    ):
        placement = where(here) | {"ray": {"address": cluster}, "store": str(tmp_path)}
        found = deploy.check(placement, SETTINGS, FINGERPRINT)
        assert (found is not None) == holds
        assert deploy.check(placement | {"store": str(tmp_path / "other")}, SETTINGS, FINGERPRINT) is None


def test_an_endpoint_that_still_holds_live_sessions_does_not_keep_its_successor_from_being_ready():
    def application(**states: list[str]) -> dict[str, Any]:
        """Deployments of so many replicas as are not leaving, in these states."""
        deployments = {
            name: {
                "target_num_replicas": sum(state != "STOPPING" for state in of),
                "replicas": [{"state": state} for state in of],
            }
            for name, of in states.items()
        }
        return {"status": "DEPLOYING", "deployments": deployments}

    assert ray_serve._is_settled(application(endpoint=["RUNNING", "STOPPING"], engine=["RUNNING", "RUNNING"]))
    assert not ray_serve._is_settled(application(endpoint=["RUNNING"], engine=["RUNNING", "STARTING"]))
    short = application(endpoint=["RUNNING"], engine=["RUNNING", "STOPPING"])
    short["deployments"]["engine"]["target_num_replicas"] = 2
    assert not ray_serve._is_settled(short), "the replica that replaces the one that stops is not there yet"
    assert not ray_serve._is_settled({})
