"""Addresses of the internet are told from all others, in every form that these can take."""

from __future__ import annotations

from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from casa_core.errors import MediaError
from infra.endpoint_settings import Access
from serve.fetch.addresses import is_public
from serve.fetch.hosts import Hosts

PRIVATE_V4 = (
    *("0.0.0.0", "0.1.2.3", "10.0.0.1", "10.255.255.255", "100.64.0.1", "100.100.100.200", "127.0.0.1"),
    *("127.9.9.9", "169.254.169.254", "172.16.0.1", "172.31.255.255", "192.0.0.192", "192.0.2.1"),
    *("192.168.1.1", "198.18.0.1", "198.51.100.1", "203.0.113.1", "224.0.0.1", "239.255.255.255"),
    *("240.0.0.1", "255.255.255.255", "168.63.129.16", "192.88.99.1"),
)
PUBLIC_V4 = (
    "8.8.8.8",
    "1.1.1.1",
    "172.15.0.1",
    "172.32.0.1",
    "100.63.255.255",
    "100.128.0.1",
    "223.255.255.1",
)
PRIVATE_V6 = (
    *("::", "::1", "fe80::1", "fe80::1%1", "fc00::1", "fd00:ec2::254", "fec0::1", "ff02::1", "2001:db8::1"),
    *("3fff::1", "100::1", "5f00::1", "2001::1", "2001:20::1", "2002:7f00:1::", "2002:808:808::1"),
    *("::8.8.8.8", "::ffff:8.8.8.8", "::ffff:0:127.0.0.1", "64:ff9b:1::808:808"),
)


@pytest.mark.parametrize("address", [*PRIVATE_V4, *PRIVATE_V6])
def test_addresses_of_no_one_or_of_private_networks_are_not_public(address: str):
    assert not is_public(ip_address(address))


@pytest.mark.parametrize("address", [*PUBLIC_V4, "2606:4700::1111", "2a00:1450:4001::1", "64:ff9b::8.8.8.8"])
def test_addresses_of_the_internet_are_public(address: str):
    assert is_public(ip_address(address))


@pytest.mark.parametrize("address", PRIVATE_V4)
@pytest.mark.parametrize("form", ["::{}", "::ffff:{}", "64:ff9b::{}", "::ffff:0:{}"])
def test_a_private_address_inside_an_ipv6_one_is_not_public(address: str, form: str):
    assert not is_public(ip_address(form.format(address)))


@given(st.ip_addresses())
def test_no_address_is_public_that_python_knows_to_be_none_of_the_internets(address):
    known = not address.is_global or address.is_multicast or address.is_reserved or address.is_loopback
    assert not (known and is_public(address) and address not in ip_network("64:ff9b::/96"))


HOSTS = Hosts(["images.example.org", "*.pictures.example", "odd.example:8080", "UPPER.example."])


@pytest.mark.parametrize(
    "url",
    [
        "https://images.example.org/a.png?x=1#y",
        "HTTP://IMAGES.Example.org./a.png",
        "https://images.example.org:443/",
        "http://images.example.org:443/",
        "https://a.pictures.example/",
        "https://a.b.pictures.example/",
        "http://odd.example:8080/",
        "http://upper.example/",
    ],
)
def test_listed_hosts_may_be_fetched_from(url: str):
    assert HOSTS.check(url).host


REFUSED = {
    "another host": "https://example.org/",
    "the listed name inside another": "https://images.example.org.evil.example/",
    "the listed name as an end": "https://evilimages.example.org/",
    "the name above": "https://pictures.example/",
    "an empty label": "https://.pictures.example/",
    "another port": "https://images.example.org:22/",
    "the port of another": "http://odd.example/",
    "a user": "https://images.example.org@evil.example/",
    "a user of a listed host": "https://me:secret@images.example.org/",
    "an empty user": "https://@images.example.org:80@evil.example/",
    "a backslash": "https://images.example.org\\@evil.example/",
    "a line break": "https://images.example.org\r\nx: y/",
    "a blank": "https://images.example.org /",
    "a zero byte": "https://images.example.org\x00.evil.example/",
    "no host": "https:///a.png",
    "a path alone": "https:images.example.org/a.png",
    "a file": "file:///etc/passwd",
    "gopher": "gopher://images.example.org/",
    "ftp": "ftp://images.example.org/",
    "a data URI": "data:image/png;base64,AAAA",
    "an address": "http://8.8.8.8/",
    "a decimal address": "http://2130706433/",
    "a hexadecimal address": "http://0x7f000001/",
    "an octal address": "http://0177.0.0.1/",
    "a short address": "http://127.1/",
    "an IPv6 address": "http://[::1]/",
    "a mapped address": "http://[::ffff:127.0.0.1]/",
    "wide digits": "http://\uff11\uff12\uff17.\uff10.\uff10.\uff11/",
    "a wide dot": "http://images\u3002example\u3002org.evil.example/",
    "a bad port": "http://images.example.org:99999/",
    "a negative port": "http://images.example.org:-1/",
    "nothing": "https://",
    "very long": "https://images.example.org/" + "a" * 100_000,
}


@pytest.mark.parametrize("case", REFUSED)
def test_other_addresses_are_refused_by_their_text(case: str):
    with pytest.raises(MediaError) as caught:
        HOSTS.check(REFUSED[case])
    assert caught.value.reason in ("unsupported_image_url", "image_host_not_allowed")
    assert len(str(caught.value)) < 500


NO_NAMES = (
    *("*", "*.", "", "a b", "https://a.example", "a.example/x", "a.example:0", "a.example:http"),
    *("127.0.0.1", "2130706433", "0x7f000001", "a.0x7f", "[::1]", "a.*.example", "me@a.example"),
    *("a..example", "ä.example"),
)


@pytest.mark.parametrize("name", NO_NAMES)
def test_a_list_of_hosts_holds_names_only(name: str):
    with pytest.raises(ValidationError, match=r"images\.example\.org"):
        Access(fetch_hosts=[name])


def test_names_on_the_list_may_have_any_letters_case_and_a_port():
    assert Access(fetch_hosts=["A.Example", "*.b.example:8443", "localhost"]).fetch_hosts == [
        "a.example",
        "*.b.example:8443",
        "localhost",
    ]
