"""Which host names and origins are admitted, in every form that browsers and proxies write them."""

from __future__ import annotations

import pytest

from serve.access.refused import Refused
from serve.access.sites import Sites

OWN = Sites([], [], loopback_only=True)


@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "LocalHost:8000",
        "localhost.",
        "app.localhost:8000",
        "127.0.0.1:8000",
        "127.8.8.8",
        "[::1]:8000",
        "[::1]",
    ],
)
def test_loopback_is_always_answered(host: str):
    OWN.check_host(host)
    Sites(["vision.example.org"], [], loopback_only=False).check_host(host)


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:8000",
        "localhost.evil.example",
        "127.0.0.1.evil.example",
        "evil.example@localhost",
        "localhost@evil.example",
        "localhost:8000/x",
        "localhost, evil.example",
        "0.0.0.0:8000",
        "10.0.0.1",
        "[::]",
        "[",
        "localhost:99999999",
        "",
        "\x00",
    ],
)
def test_a_name_that_only_resolves_to_loopback_is_refused(host: str):
    with pytest.raises(Refused) as refusal:
        OWN.check_host(host)
    assert (refusal.value.status, refusal.value.code) == (403, "host_not_allowed")


def test_listed_names_are_answered_whatever_their_case_and_port():
    sites = Sites(["vision.example.org", "*.lab.example", "[fd00::1]"], [], loopback_only=True)
    for host in ("Vision.Example.ORG:443", "a.lab.example", "b.a.lab.example:1", "[fd00::1]:8000"):
        sites.check_host(host)
    for host in ("example.org", "xlab.example", "lab.example", "vision.example.org.evil"):
        with pytest.raises(Refused):
            sites.check_host(host)


def test_an_endpoint_beyond_loopback_answers_to_all_names_unless_some_are_listed():
    Sites([], [], loopback_only=False).check_host("anything.example")
    with pytest.raises(Refused):
        Sites(["a.example"], [], loopback_only=False).check_host("anything.example")


@pytest.mark.parametrize(
    ("origin", "host"),
    [
        ("http://localhost:8000", "localhost:8000"),
        ("HTTP://LocalHost:8000", "localhost:8000"),
        ("https://vision.example.org", "vision.example.org"),
        ("https://vision.example.org", "Vision.Example.org:443"),
        ("https://vision.example.org:443", "vision.example.org"),
        ("http://vision.example.org", "vision.example.org:80"),
        ("http://[::1]:8000", "[::1]:8000"),
    ],
)
def test_the_endpoints_own_page_is_admitted_in_every_spelling(origin: str, host: str):
    assert OWN.check_origin(origin, host) is False


FOREIGN = [
    "https://evil.example",
    "http://localhost:8001",
    "http://localhost",
    "https://localhost:8000.evil.example",
    "http://127.0.0.1:8000",
    "null",
    "",
    "http://",
    "http://[",
    "http://localhost:x",
    "file://",
]


@pytest.mark.parametrize("origin", FOREIGN)
def test_a_foreign_page_is_refused(origin: str):
    with pytest.raises(Refused) as refusal:
        OWN.check_origin(origin, "localhost:8000")
    assert (refusal.value.status, refusal.value.code) == (403, "origin_not_allowed")


def test_listed_origins_are_admitted_as_foreign_ones():
    sites = Sites(
        [], ["https://app.example.org", "https://*.lab.example", "app://obsidian.md"], loopback_only=True
    )
    for origin in ("https://APP.example.org:443", "https://a.lab.example", "app://obsidian.md"):
        assert sites.check_origin(origin, "localhost:8000") is True
    for origin in ("http://app.example.org", "https://app.example.org:8443", "https://lab.example"):
        with pytest.raises(Refused):
            sites.check_origin(origin, "localhost:8000")
    assert Sites([], ["*"], loopback_only=True).check_origin("https://any.example", "localhost") is True
