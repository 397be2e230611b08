"""Host names under which the endpoint answers, and web pages that may use it.

A browser lets any page send requests to this machine, and takes a page whose own host name resolves to
127.0.0.1 for the endpoint's own. Only the names in `Host` and `Origin` tell such a page from ours.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from urllib.parse import urlsplit

from serve.access.refused import Refused

DEFAULT_PORTS = {"http": 80, "https": 443, "ws": 80, "wss": 443}


class Sites:
    """The host names and origins that are admitted.

    Args:
        hosts: Names, `*.example.org` for all below one, `*` for all. Loopback's own are always admitted; none
            given: those only, where the endpoint listens on loopback, else all.
        origins: Pages besides the endpoint's own, likewise.
        loopback_only: Whether the endpoint listens on loopback.
    """

    def __init__(self, hosts: Sequence[str], origins: Sequence[str], *, loopback_only: bool) -> None:
        self._hosts = [name.strip("[]") for name in hosts] or ([] if loopback_only else ["*"])
        self._any_origin = "*" in origins
        self._origins = [place for origin in origins if (place := _place(origin)) is not None]

    def check_host(self, host: str) -> None:
        """Refuse a request that was sent to another name.

        Args:
            host: The header; empty where there is none.

        Raises:
            Refused: 403.
        """
        name = _host_and_port(host)[0]
        if _is_loopback(name) or any(_matches(listed, name) for listed in self._hosts):
            return
        raise Refused(
            403,
            f"This endpoint does not answer to the host name {name[:80]!r}. Use localhost, or list the name "
            "in the recipe's deploy.access.hosts.",
            code="host_not_allowed",
        )

    def check_origin(self, origin: str, host: str) -> bool:
        """Refuse a request of a foreign web page.

        Args:
            origin, host: The headers.

        Returns:
            Whether the page is another origin's that is listed, and needs CORS headers.

        Raises:
            Refused: 403.
        """
        place = _place(origin)
        if place is not None and place[1:] == _with_default_port(host, place[0]):
            return False
        if self._any_origin or (
            place is not None and any(_covers(listed, place) for listed in self._origins)
        ):
            return True
        raise Refused(
            403,
            f"Web pages of {origin[:80]!r} may not use this endpoint. List the origin in the recipe's "
            "deploy.access.origins.",
            code="origin_not_allowed",
        )


def _place(origin: str) -> tuple[str, str, int | None] | None:
    """Scheme, host name and port of an origin; `None` for what is none, such as `null`."""
    try:
        parts = urlsplit(origin)
        port = parts.port
    except ValueError:
        return None
    if not parts.scheme or not parts.hostname:
        return None
    return parts.scheme, parts.hostname.rstrip("."), port or DEFAULT_PORTS.get(parts.scheme)


def _with_default_port(host: str, scheme: str) -> tuple[str, int | None]:
    name, port = _host_and_port(host)
    return name, port or DEFAULT_PORTS.get(scheme)


def _host_and_port(host: str) -> tuple[str, int | None]:
    """A `Host` header's name, in lower case, and its port; no name where the header is malformed."""
    try:
        parts = urlsplit(f"//{host}")
        if parts.netloc != host or parts.username is not None:
            return "", None
        return (parts.hostname or "").rstrip("."), parts.port
    except ValueError:
        return "", None


def _is_loopback(name: str) -> bool:
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return name == "localhost" or name.endswith(".localhost")


def _matches(listed: str, name: str) -> bool:
    if listed == "*":
        return True
    return name.endswith(listed[1:]) if listed.startswith("*.") else name == listed


def _covers(listed: tuple[str, str, int | None], place: tuple[str, str, int | None]) -> bool:
    return listed[0] == place[0] and listed[2] == place[2] and _matches(listed[1], place[1])
