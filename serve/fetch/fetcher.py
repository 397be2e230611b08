"""Fetches pictures over http and https; no answer of a name server and no redirect leads it inside."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from socket import AI_ADDRCONFIG, IPPROTO_TCP, SOCK_STREAM, gaierror, getaddrinfo
from ssl import SSLContext

import httpx

from casa_core.errors import MediaError
from serve.fetch.addresses import is_public
from serve.fetch.hosts import Hosts

Address = IPv4Address | IPv6Address
Resolve = Callable[[str, int], Awaitable[Sequence[Address]]]
REDIRECTS = 3
_REDIRECTED = (301, 302, 303, 307, 308)
_HEADERS = {
    "user-agent": "casa",
    "accept": "image/*",
    "accept-encoding": "identity",  # nothing is unpacked, so that nothing grows by it
    "connection": "close",
}


@dataclass(slots=True)
class Room:
    """Bytes that the pictures of one request may still have, all together."""

    left: int


class ImageFetcher:
    """Fetches pictures from the hosts of a list. Used from one event loop.

    A host's name is resolved once, every address that it has must be public, and the connection goes to one
    of these: there is no second look-up that another answer could be given to. Redirects are followed by
    hand, at most three, each checked like the first address. No proxy of the environment is used, no cookie
    kept, nothing unpacked.

    Args:
        hosts: The list.
        seconds: Longest time for one picture, everything counted.
        at_once: Pictures fetched at a time; others wait within their time.
        resolve: A name's addresses.
        admits: Whether an address may be connected to.
        verify: Whose certificates are trusted; by default those of public authorities.
    """

    def __init__(
        self,
        hosts: Sequence[str],
        *,
        seconds: float,
        at_once: int,
        resolve: Resolve | None = None,
        admits: Callable[[Address], bool] = is_public,
        verify: SSLContext | bool = True,
    ) -> None:
        self._hosts, self._seconds, self._admits = Hosts(hosts), seconds, admits
        # Look-ups cannot be cancelled: with threads of their own they keep nothing else waiting.
        self._threads = ThreadPoolExecutor(at_once, thread_name_prefix="casa-resolve")
        self._resolve = resolve or self._look_up
        self._turns = asyncio.Semaphore(at_once)
        # A connection is used once: one to an address could serve another name that has it, too.
        self._transport = httpx.AsyncHTTPTransport(
            verify=verify,
            trust_env=False,
            limits=httpx.Limits(max_connections=at_once, max_keepalive_connections=0),
        )

    async def fetch(self, address: str, room: Room) -> bytes:
        """The bytes of a picture.

        Raises:
            MediaError: ``unsupported_image_url``, ``image_host_not_allowed`` or ``image_not_fetched``.
        """
        url = self._hosts.check(address)
        try:
            async with asyncio.timeout(self._seconds), self._turns:
                for _ in range(REDIRECTS + 1):
                    found = await self._get(url, room)
                    if isinstance(found, bytes):
                        return found
                    url = self._hosts.check(found)
        except TimeoutError as error:
            raise not_fetched(url, f"It took more than {self._seconds:g} seconds.") from error
        except httpx.TransportError as error:
            raise not_fetched(url, "The connection failed.") from error
        raise not_fetched(url, f"It is redirected more than {REDIRECTS} times.")

    async def close(self) -> None:
        """End all connections."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        await self._transport.aclose()

    async def _get(self, url: httpx.URL, room: Room) -> bytes | str:
        """The body, or the address that it is redirected to."""
        request = httpx.Request(
            "GET",
            url.copy_with(host=str(await self._address_of(url)), fragment=None),
            headers={"host": url.netloc.decode("ascii"), **_HEADERS},
            # The certificate must be the name's, not the address's.
            extensions={"sni_hostname": url.raw_host.decode("ascii").rstrip("."), "timeout": self._timeouts},
        )
        response = await self._transport.handle_async_request(request)
        try:
            if response.status_code in _REDIRECTED and "location" in response.headers:
                return _joined(url, response.headers["location"])
            if response.status_code != 200:
                raise not_fetched(url, f"Its host answers with status {response.status_code}.")
            if response.headers.get("content-encoding", "identity").lower() != "identity":
                raise not_fetched(url, "Its host sends it packed, though asked not to.")
            return await _read(response, url, room)
        finally:
            await response.aclose()

    @property
    def _timeouts(self) -> dict[str, float]:
        return dict.fromkeys(("connect", "read", "write", "pool"), self._seconds)

    async def _address_of(self, url: httpx.URL) -> Address:
        """One of a host's addresses, all of which are public."""
        try:
            found = await self._resolve(url.raw_host.decode("ascii"), url.port or 0)
        except (gaierror, UnicodeError) as error:
            raise not_fetched(url, "Its host's name is not known.") from error
        if not found:
            raise not_fetched(url, "Its host's name has no address.")
        if not all(map(self._admits, found)):
            raise MediaError(
                "image_host_not_allowed",
                f"Images are not fetched from {url.host!r}.",
                "Its name leads to an address that is not public.",
                "Send the image as a data URI.",
            )
        return found[0]

    async def _look_up(self, host: str, port: int) -> Sequence[Address]:
        found = await asyncio.get_running_loop().run_in_executor(
            self._threads,
            lambda: getaddrinfo(host, port, type=SOCK_STREAM, proto=IPPROTO_TCP, flags=AI_ADDRCONFIG),
        )
        addresses = [ip_address(address[0]) for *_, address in found]
        return sorted(addresses, key=lambda one: one.version)  # IPv6 is set up, and broken, in many places


def not_fetched(url: httpx.URL, why: str) -> MediaError:
    """The refusal of a picture that its host did not give, or not in time."""
    what = f"The image at {url.host!r} could not be fetched."
    return MediaError("image_not_fetched", what, why, "Send the image as a data URI.")


def _joined(url: httpx.URL, location: str) -> str:
    try:
        return str(url.join(location))
    except (httpx.InvalidURL, ValueError) as error:
        raise not_fetched(url, "It is redirected to what is no address.") from error


async def _read(response: httpx.Response, url: httpx.URL, room: Room) -> bytes:
    declared = response.headers.get("content-length", "")
    too_large = not_fetched(url, "The request's images have more bytes than are accepted.")
    if declared.isdigit() and int(declared) > room.left:
        raise too_large
    pieces = []
    async for piece in response.aiter_raw():
        room.left -= len(piece)
        if room.left < 0:
            raise too_large
        pieces.append(piece)
    return b"".join(pieces)
