"""The same endpoint behind the real Ray Serve: HTTP, SSE, WebSocket, errors, replacement, loopback only."""

from __future__ import annotations

import json
import socket
import time
from pathlib import Path
from typing import Any

import httpx
import openai
import psutil
import pytest
from ray.dashboard.modules.serve.sdk import ServeSubmissionClient
from websockets.sync.client import connect
from websockets.typing import Subprotocol

from casa_core.errors import ClusterError
from infra import caption_client
from infra.http_protocol import HEAD_SECONDS
from infra.local_ray import RaySession
from pipelines.deploy import ray_serve
from serve.loopback import to_loopback
from tests.support.serve.cluster import APPLICATION, replicas
from tests.support.serve.server import MODEL, binary_frame, data_uri, picture, question, write_clip


@pytest.fixture(scope="module")
def arguments(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    clips = tmp_path_factory.mktemp("demo")
    write_clip(clips / "clip-1.mp4", ["red", "blue"])
    return {
        "model_folder": str(clips),
        "model_name": MODEL,
        "fingerprint": "first",
        "checkpoint": "c",
        "max_new_tokens": 32,
        "live_query": "",
        "replicas": {"min": 1, "max": 2},
        "demo_clips": str(clips),
        "loopback_only": True,
        "engine": "tests.support.serve.fakes:FakeEngine",
        "limits": {"body_bytes": 200_000},
    }


def replica_pid(cluster: ServeSubmissionClient, deployment: str = "engine") -> int:
    [replica] = replicas(cluster, deployment)
    return replica["pid"]


def test_the_openai_client_gets_plain_and_streamed_answers(url: str):
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="unused", max_retries=0)
    messages = question("what is this", picture("red"))
    plain = client.chat.completions.create(model=MODEL, messages=messages)
    assert plain.choices[0].message.content == "red what is this"
    stream = client.chat.completions.create(
        model=MODEL, messages=messages, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    assert [c.choices[0].delta.content for c in chunks[1:-2]] == ["red", " what", " is", " this"]
    assert chunks[-1].usage == plain.usage
    assert [model.id for model in client.models.list()] == [MODEL]


def test_several_choices_of_one_call_are_all_answered_plain_and_streamed(url: str):
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="unused", max_retries=0, timeout=20)
    messages = question("what is this", picture("red"))
    for _ in range(10):  # before, a call in two never ended
        plain = client.chat.completions.create(model=MODEL, messages=messages, n=3)
        assert [choice.message.content for choice in plain.choices] == ["red what is this"] * 3
        said = ["", "", ""]
        for chunk in client.chat.completions.create(model=MODEL, messages=messages, n=3, stream=True):
            for choice in chunk.choices:
                said[choice.index] += choice.delta.content or ""
        assert said == ["red what is this"] * 3


def test_a_websocket_client_streams_a_clip_and_gets_a_caption_for_each_frame(
    url: str, arguments: dict[str, Any]
):
    clip = Path(arguments["demo_clips"]) / "clip-1.mp4"
    events = list(caption_client.caption(url, clip, query="now"))
    assert [(event["timestamp"], event["text"]) for event in events[:-1]] == [
        (0.0, "now red 1"),
        (0.5, ""),
        (1.0, "now blue 3"),
        (1.5, ""),
    ]
    assert events[-1]["frames"] == 4


def test_each_wrong_request_gets_a_4xx_and_the_replica_lives_on(url: str, cluster: ServeSubmissionClient):
    pid = replica_pid(cluster)
    chat = f"{url}/v1/chat/completions"
    bad_image = data_uri(b"no image")
    parts = [{"type": "image_url", "image_url": {"url": bad_image}}]
    answers = {
        "invalid_json": httpx.post(chat, content=b"{", headers={"content-type": "application/json"}),
        "model_not_found": httpx.post(chat, json={"model": "x", "messages": question("hi")}),
        "invalid_image": httpx.post(
            chat, json={"model": MODEL, "messages": [{"role": "user", "content": parts}]}
        ),
        "request_too_large": httpx.post(chat, json={"model": MODEL, "messages": question("x" * 200_001)}),
    }
    for code, answer in answers.items():
        assert answer.json()["error"]["code"] == code
        assert 400 <= answer.status_code < 500
        assert answer.headers["x-request-id"].count(",") == 0, "one id, though the proxy adds its own"
    chunked = httpx.post(
        chat, content=iter([b"x" * 50_000] * 5), headers={"content-type": "application/json"}
    )
    assert chunked.status_code == 413
    explode = httpx.post(chat, json={"model": MODEL, "messages": question("explode")})
    assert explode.json()["error"]["code"] == "internal_error"
    with connect(f"{url.replace('http', 'ws', 1)}/v1/live") as live:
        live.send(json.dumps({"type": "session.start"}))
        live.recv(timeout=10)
        live.send(binary_frame(0.0, b"no image"))
        assert json.loads(live.recv(timeout=10))["error"]["code"] == "invalid_image"
        live.send(binary_frame(0.5, picture("green")))
        assert json.loads(live.recv(timeout=10))["text"] == "green 1"
    ok = httpx.post(chat, json={"model": MODEL, "messages": question("ok")})
    assert ok.json()["choices"][0]["message"]["content"] == "ok"
    assert replica_pid(cluster) == pid


@pytest.mark.parametrize(
    ("offered", "kept"),
    [
        ("abc-1.2_3", True),
        ("x" * 65, False),
        ("<script>", False),
        ("a b", False),
        ("\xe9", False),
        ("", False),
    ],
)
def test_a_clients_request_id_is_echoed_only_if_it_is_harmless(url: str, offered: str, kept: bool):
    answer = httpx.get(f"{url}/healthz", headers=[(b"x-request-id", offered.encode("latin-1"))])
    [named] = answer.headers.get_list("x-request-id")
    assert (named == offered) is kept
    assert named.isascii()
    assert named


@pytest.mark.slow
def test_the_proxy_lets_half_a_head_go(url: str):
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as half:
        half.sendall(b"GET /healthz HTTP/1.1\r\n")
        half.settimeout(HEAD_SECONDS + 10)
        assert half.recv(1024).startswith(b"HTTP/1.1 408")


def test_the_proxy_keeps_pages_of_other_names_and_origins_out_and_lets_a_sockets_protocol_through(url: str):
    for header in ({"host": "evil.example"}, {"origin": "https://evil.example"}):
        assert httpx.get(f"{url}/v1/models", headers=header).status_code == 403
    protocols = [Subprotocol("casa.live"), Subprotocol("casa.key.unused")]
    with connect(f"{url.replace('http', 'ws', 1)}/v1/live", subprotocols=protocols) as live:
        assert live.subprotocol == "casa.live"


def test_a_client_that_leaves_frees_its_session(url: str):
    page = {"Origin": url}  # as a browser that shows our page says it
    with connect(f"{url.replace('http', 'ws', 1)}/v1/live", additional_headers=page) as live:
        live.send(json.dumps({"type": "session.start"}))
        assert json.loads(live.recv(timeout=10))["type"] == "session.started"
        assert httpx.get(f"{url}/healthz").json()["live_sessions"] == 1
    for _ in range(100):
        if httpx.get(f"{url}/healthz").json()["live_sessions"] == 0:
            return
        time.sleep(0.05)
    pytest.fail("the session is still counted")


def test_the_page_and_its_clips_come_through_the_proxy(url: str):
    assert httpx.get(f"{url}/").headers["content-type"].startswith("text/html")
    part = httpx.get(f"{url}/demo/clips/clip-1.mp4", headers={"range": "bytes=0-9"})
    assert (part.status_code, len(part.content)) == (206, 10)


def test_everything_listens_on_loopback_only(url: str, ray_head: RaySession, cluster: ServeSubmissionClient):
    session = [psutil.Process(ray_head.pid), *psutil.Process(ray_head.pid).children(recursive=True)]
    replicas = {replica_pid(cluster, name) for name in ("endpoint", "engine")}
    assert replicas <= {process.pid for process in session}
    listening = {
        (process.pid, connection.laddr.ip)
        for process in session
        for connection in process.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    }
    assert replicas <= {pid for pid, _ in listening}
    assert {ip for _, ip in listening} <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}


def test_wildcard_addresses_become_loopback_and_others_stay():
    assert to_loopback("[::]:0") == "127.0.0.1:0"
    assert to_loopback("0.0.0.0:81") == "127.0.0.1:81"
    assert to_loopback("10.1.2.3:81") == "10.1.2.3:81"


@pytest.mark.slow
def test_a_new_checkpoint_replaces_the_old_one_at_the_same_address(
    url: str, cluster: ServeSubmissionClient, address: dict[str, Any], arguments: dict[str, Any]
):
    before = replica_pid(cluster)
    ray_serve.start(cluster, address, {**arguments, "fingerprint": "second"}, {}, APPLICATION)
    assert httpx.get(f"{url}/healthz").json()["fingerprint"] == "second"
    assert replica_pid(cluster) != before


@pytest.mark.slow
def test_a_checkpoint_that_cannot_be_loaded_is_reported_and_a_good_one_recovers(
    url: str, cluster: ServeSubmissionClient, address: dict[str, Any], arguments: dict[str, Any]
):
    with pytest.raises(ClusterError, match="no checkpoint at /nowhere"):
        ray_serve.start(
            cluster,
            address,
            {**arguments, "model_folder": "/nowhere", "fingerprint": "third"},
            {},
            APPLICATION,
        )
    ray_serve.start(cluster, address, arguments, {}, APPLICATION)
    assert httpx.get(f"{url}/healthz").json()["fingerprint"] == "first"
