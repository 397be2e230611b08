"""The list of hosts that pictures may be fetched from, and what an address must be to be on it."""

from __future__ import annotations

from collections.abc import Sequence

import httpx

from casa_core.errors import MediaError

_PORTS = {"http": 80, "https": 443}
_SHOWN = 100


class Hosts:
    """Hosts by name: `a.example.org`, `*.example.org` for all below it, `a.example.org:8080` for a port.

    Without a port, those of http and https are meant.

    Args:
        names: As in `infra.endpoint_settings.Access.fetch_hosts`.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self._listed = [_split(name) for name in names]

    def check(self, address: str) -> httpx.URL:
        """An address that may be fetched, as far as its text shows it.

        Raises:
            MediaError: ``unsupported_image_url`` or ``image_host_not_allowed``.
        """
        try:
            url = httpx.URL(address)
        except (httpx.InvalidURL, ValueError) as error:
            raise _unsupported("It is not a valid address.") from error
        if url.scheme not in _PORTS:
            raise _unsupported("Its scheme is neither http nor https.")
        if url.userinfo:
            raise _unsupported("It holds a user name or a password.")
        host = url.raw_host.decode("ascii").rstrip(".")
        if not self._lists(host, url.port or _PORTS[url.scheme]):
            raise MediaError(
                "image_host_not_allowed",
                f"Images are not fetched from {url.netloc.decode('ascii')[:_SHOWN]!r}.",
                "This server fetches from hosts on its list only.",
                "Send the image as a data URI, or have its host listed.",
            )
        return url

    def _lists(self, host: str, port: int) -> bool:
        for name, listed_port in self._listed:
            below = name.startswith("*.") and host.endswith(name[1:]) and len(host) >= len(name)
            if (host == name or below) and (port == listed_port if listed_port else port in _PORTS.values()):
                return True
        return False


def _split(name: str) -> tuple[str, int | None]:
    host, _, port = name.partition(":")
    return host.lower().rstrip("."), int(port) if port else None


def _unsupported(why: str) -> MediaError:
    return MediaError(
        "unsupported_image_url",
        "The image's address cannot be used.",
        why,
        "Send the image as a data URI, or by an https address.",
    )
