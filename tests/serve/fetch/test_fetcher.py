"""Pictures by their addresses: what is fetched, and that nothing else is ever reached.

A canary listens inside the private network: no test may leave a connection there.
"""

from __future__ import annotations

import gzip
import ssl
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.serve.fakes import FakeEngine
from tests.support.serve.server import MODEL, picture, running, settings_with
from tests.support.serve.web import INSIDE, PUBLIC, Names, Web, fetcher, serving

CHAT = "/v1/chat/completions"
PARAM = "messages[0].content[0].image_url.url"


@pytest.fixture(scope="module")
def canary() -> Iterator[Web]:
    with serving(INSIDE) as web:
        web.routes["/a.png"] = (200, {}, picture("black"))
        yield web
        assert web.connections == 0, f"the canary was reached: {web.seen}"


@pytest.fixture(scope="module")
def web() -> Iterator[Web]:
    with serving(PUBLIC) as server:
        server.routes["/a.png"] = (200, {"set-cookie": "id=1; path=/"}, picture("blue"))
        yield server


def ask(fetch: Any, *urls: str, **options: Any) -> httpx.Response:
    """What a server answers to a question about pictures."""
    limits = options.pop("limits", {})
    with running(FakeEngine(), settings_with(limits=limits), fetcher=fetch) as address:
        parts: list[Any] = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
        messages = [{"role": "user", "content": [*parts, {"type": "text", "text": "ok"}]}]
        return httpx.post(
            f"{address}{CHAT}", json={"model": MODEL, "messages": messages, **options}, timeout=30
        )


def refused(answer: httpx.Response, code: str, param: str | None = PARAM) -> str:
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert (error["code"], error["param"]) == (code, param), error
    assert INSIDE not in error["message"]
    assert PUBLIC not in error["message"]
    return error["message"]


def test_pictures_of_listed_hosts_are_fetched_in_their_order_beside_data_uris(web: Web):
    web.routes["/slow.png"] = slow(picture("green"), 0.3)
    web.seen.clear()
    hosts = [f"a.example:{web.port}"]
    answer = ask(
        fetcher(hosts), f"http://a.example:{web.port}/slow.png", f"http://a.example:{web.port}/a.png?x=%20y#z"
    )
    assert answer.status_code == 400, "a query is part of the path"
    answer = ask(fetcher(hosts), *(f"http://A.example:{web.port}/{name}.png" for name in ("slow", "a")))
    assert answer.json()["choices"][0]["message"]["content"] == "green blue ok"
    path, headers = web.seen[-1]
    assert headers["host"] == f"a.example:{web.port}"
    assert headers["accept-encoding"] == "identity"
    assert "cookie" not in {name for _, seen in web.seen for name in seen}
    assert {path for path, _ in web.seen} >= {"/slow.png", "/a.png?x=%20y", path}


def slow(body: bytes, seconds: float, piece: int | None = None) -> Any:
    """An answer that comes after a while, or in pieces with a while between them."""

    def answer(handler: Any) -> None:
        handler.send_response(200)
        handler.send_header("content-length", str(len(body)))
        handler.end_headers()
        size = piece or len(body)
        for start in range(0, len(body), size):
            time.sleep(seconds)
            try:
                handler.wfile.write(body[start : start + size])
                handler.wfile.flush()
            except OSError:
                return

    return answer


def endless(handler: Any) -> None:
    """A body without length and end."""
    handler.send_response(200)
    handler.send_header("transfer-encoding", "chunked")
    handler.end_headers()
    try:
        while True:
            handler.wfile.write(b"10000\r\n" + b"x" * 0x10000 + b"\r\n")
    except OSError:
        return


def test_by_default_nothing_is_fetched(canary: Web):
    with running(FakeEngine(), settings_with()) as address:
        body = {"type": "image_url", "image_url": {"url": f"http://{INSIDE}:{canary.port}/a.png"}}
        messages = [{"role": "user", "content": [body]}]
        answer = httpx.post(f"{address}{CHAT}", json={"model": MODEL, "messages": messages})
    refused(answer, "unsupported_image_url")


def test_a_name_that_leads_inside_is_refused_also_where_only_one_of_its_addresses_does(canary: Web):
    url = f"http://a.example:{canary.port}/a.png"
    for addresses in ([INSIDE], [PUBLIC, INSIDE], ["::ffff:7f00:2"], ["169.254.169.254"], ["::1"]):
        names = Names(a_example=addresses)
        answer = ask(fetcher([f"a.example:{canary.port}"], names), url)
        assert "not public" in refused(answer, "image_host_not_allowed")
        assert names.asked == ["a.example"]


def test_with_the_real_check_this_machine_and_private_networks_are_refused(canary: Web):
    from serve.fetch.addresses import is_public
    from serve.fetch.fetcher import ImageFetcher

    for name in ("localhost", "inside.example"):
        own = ImageFetcher(
            [f"{name}:{canary.port}"],
            seconds=5,
            at_once=1,
            resolve=None if name == "localhost" else Names(inside_example=[INSIDE]),
            admits=is_public,
        )
        refused(ask(own, f"http://{name}:{canary.port}/a.png"), "image_host_not_allowed")


def test_an_answer_that_changes_after_the_check_leads_nowhere_else(web: Web, canary: Web):
    assert canary.port != web.port
    names = Names(a_example=[[PUBLIC], [INSIDE]])
    answer = ask(fetcher([f"a.example:{web.port}"], names), f"http://a.example:{web.port}/a.png")
    assert answer.status_code == 200
    assert names.asked == ["a.example"], "the connection goes to the address that was checked"
    web.routes["/again"] = (302, {"location": f"http://a.example:{canary.port}/a.png"}, b"")
    names = Names(a_example=[[PUBLIC], [INSIDE]])
    hosts = [f"a.example:{web.port}", f"a.example:{canary.port}"]
    refused(ask(fetcher(hosts, names), f"http://a.example:{web.port}/again"), "image_host_not_allowed")
    assert names.asked == ["a.example"] * 2


@pytest.mark.parametrize(
    "location",
    [
        "http://{inside}:{port}/a.png",
        "//{inside}:{port}/a.png",
        "http://inside.example:{port}/a.png",
        "http://listed.example:{port}/a.png",
        "http://169.254.169.254/latest/meta-data",
        "http://[::1]:{port}/a.png",
        "http://[::ffff:127.0.0.2]:{port}/a.png",
        "http://0x7f000002:{port}/a.png",
        "http://2130706434:{port}/a.png",
        "http://a.example@{inside}:{port}/a.png",
        "file:///etc/passwd",
        "gopher://{inside}:{port}/_GET",
        "data:image/png;base64,AAAA",
        "http://",
        "http://{inside}:99999999/",
    ],
)
def test_a_redirect_to_what_may_not_be_fetched_is_refused(web: Web, canary: Web, location: str):
    web.routes["/away"] = (302, {"location": location.format(inside=INSIDE, port=canary.port)}, b"")
    names = Names(listed_example=[INSIDE])
    hosts = [f"a.example:{web.port}", f"listed.example:{canary.port}"]
    answer = ask(fetcher(hosts, names), f"http://a.example:{web.port}/away")
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] in (
        *("image_host_not_allowed", "unsupported_image_url", "image_not_fetched"),
    )


def test_redirects_are_followed_three_times_each_with_its_own_look_up(web: Web):
    base = f"http://a.example:{web.port}"
    web.routes["/1"] = (301, {"location": "/2"}, b"")
    web.routes["/2"] = (307, {"location": f"http://b.example:{web.port}/3"}, b"")
    web.routes["/3"] = (302, {"location": "a.png"}, b"")
    web.routes["/0"] = (308, {"location": "/1"}, b"")
    web.routes["/round"] = (302, {"location": "/round"}, b"")
    names = Names()
    hosts = [f"*.example:{web.port}"]
    assert ask(fetcher(hosts, names), f"{base}/1").status_code == 200
    assert names.asked == ["a.example", "a.example", "b.example", "b.example"]
    assert "more than 3 times" in refused(ask(fetcher(hosts), f"{base}/0"), "image_not_fetched")
    assert "more than 3 times" in refused(ask(fetcher(hosts), f"{base}/round"), "image_not_fetched")


def test_what_a_host_gives_is_bounded_in_bytes_and_time(web: Web):
    hosts, base = [f"a.example:{web.port}"], f"http://a.example:{web.port}"
    limits = {"body_bytes": 100_000}
    web.routes["/large.png"] = (200, {}, b"x" * 200_000)
    web.routes["/endless.png"] = endless
    web.routes["/half.png"] = (200, {}, picture() + bytes(60_000))
    web.routes["/drip.png"] = slow(picture(), 0.2, piece=1)
    for name in ("large", "endless"):
        assert "more bytes" in refused(
            ask(fetcher(hosts), f"{base}/{name}.png", limits=limits), "image_not_fetched"
        )
    assert ask(fetcher(hosts), f"{base}/half.png", limits=limits).status_code == 200
    two = ask(fetcher(hosts), f"{base}/half.png", f"{base}/half.png", limits=limits)
    assert two.status_code == 400, "the pictures of one request share the bound"
    started = time.monotonic()
    assert "0.5 seconds" in refused(ask(fetcher(hosts, seconds=0.5), f"{base}/drip.png"), "image_not_fetched")
    assert time.monotonic() - started < 5


def test_a_packed_answer_is_not_unpacked(web: Web):
    bomb = gzip.compress(bytes(10_000_000))
    web.routes["/bomb.png"] = (200, {"content-encoding": "gzip"}, bomb)
    answer = ask(fetcher([f"a.example:{web.port}"]), f"http://a.example:{web.port}/bomb.png")
    assert "packed" in refused(answer, "image_not_fetched")


def test_what_is_no_picture_and_what_is_not_there_is_refused_by_its_place(web: Web):
    hosts, base = [f"a.example:{web.port}"], f"http://a.example:{web.port}"
    web.routes["/page"] = (200, {"content-type": "image/png"}, b"<html>secret</html>")
    web.routes["/empty"] = (200, {}, b"")
    web.routes["/moved"] = (302, {}, b"")
    assert "status 404" in refused(ask(fetcher(hosts), f"{base}/gone.png"), "image_not_fetched")
    assert "status 302" in refused(ask(fetcher(hosts), f"{base}/moved"), "image_not_fetched")
    assert "secret" not in refused(ask(fetcher(hosts), f"{base}/page"), "invalid_image")
    assert "empty" in refused(ask(fetcher(hosts), f"{base}/empty"), "invalid_image")
    second = ask(fetcher(hosts), f"{base}/a.png", f"{base}/gone.png")
    refused(second, "image_not_fetched", "messages[0].content[1].image_url.url")


def test_a_host_that_is_unknown_or_does_not_answer_is_the_clients_mistake(web: Web):
    async def unknown(host: str, port: int) -> Any:
        import socket

        raise socket.gaierror(-2, "Name or service not known")

    with serving(PUBLIC) as gone:
        port = gone.port
    hosts = [f"a.example:{port}"]
    url = f"http://a.example:{port}/a.png"
    assert "connection failed" in refused(ask(fetcher(hosts), url), "image_not_fetched")
    assert "not known" in refused(ask(fetcher(hosts, resolve=unknown), url), "image_not_fetched")
    assert "no address" in refused(ask(fetcher(hosts, Names(a_example=[])), url), "image_not_fetched")


def test_pictures_are_fetched_beside_one_another_but_not_all_at_once(web: Web):
    now, most = [0], [0]

    def counted(handler: Any) -> None:
        now[0] += 1
        most[0] = max(most[0], now[0])
        time.sleep(0.1)
        now[0] -= 1
        slow(picture("red"), 0.0)(handler)

    web.routes["/counted.png"] = counted
    urls = [f"http://a.example:{web.port}/counted.png"] * 8
    answer = ask(fetcher([f"a.example:{web.port}"], at_once=3), *urls)
    assert answer.json()["choices"][0]["message"]["content"] == "red " * 8 + "ok"
    assert most == [3]


def test_no_proxy_of_the_environment_is_used(web: Web, canary: Web, monkeypatch: pytest.MonkeyPatch):
    for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, f"http://{INSIDE}:{canary.port}")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    answer = ask(fetcher([f"a.example:{web.port}"]), f"http://a.example:{web.port}/a.png")
    assert answer.status_code == 200


def certificate(folder: Path, name: str) -> Path:
    """A self-signed certificate and its key in one file."""
    x509 = pytest.importorskip("cryptography.x509")
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    signed = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .sign(key, hashes.SHA256())
    )
    file = folder / f"{name}.pem"
    file.write_bytes(
        signed.public_bytes(serialization.Encoding.PEM)
        + key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    return file


def test_over_https_the_certificate_must_be_of_the_name_that_was_asked_for(tmp_path: Path):
    file = certificate(tmp_path, "a.example")
    own = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    own.load_cert_chain(file)
    trusted = ssl.create_default_context(cafile=str(file))
    with serving(PUBLIC, own) as secure:
        secure.routes["/a.png"] = (200, {}, picture("yellow"))
        hosts = [f"*.example:{secure.port}"]
        answer = ask(fetcher(hosts, verify=trusted), f"https://a.example:{secure.port}/a.png")
        assert answer.json()["choices"][0]["message"]["content"] == "yellow ok"
        for name, verify in (("b.example", trusted), ("a.example", True)):
            answer = ask(fetcher(hosts, verify=verify), f"https://{name}:{secure.port}/a.png")
            assert "connection failed" in refused(answer, "image_not_fetched")
        assert len(secure.seen) == 1


def test_a_live_frame_is_never_fetched(canary: Web):
    import json

    from websockets.sync.client import connect

    hosts = [f"a.example:{canary.port}"]
    with (
        running(FakeEngine(), settings_with(), fetcher=fetcher(hosts)) as address,
        connect(f"{address.replace('http', 'ws', 1)}/v1/live") as socket,
    ):
        socket.send(json.dumps({"type": "session.start"}))
        assert json.loads(socket.recv(timeout=10))["type"] == "session.started"
        frame = {"type": "frame", "timestamp": 0, "image": f"http://a.example:{canary.port}/a.png"}
        socket.send(json.dumps(frame))
        error = json.loads(socket.recv(timeout=10))
        assert error["error"]["code"] == "unsupported_image_url"
