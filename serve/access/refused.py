"""The refusal of a client that may not use the endpoint, as a value that crosses to any transport."""

from __future__ import annotations


class Refused(Exception):
    """A request from an unknown client, or from one that has had its share.

    Args:
        status: HTTP status.
        message: What is wrong and what to do instead.
        code: Short stable slug.
        headers: What the HTTP answer carries besides.
    """

    def __init__(
        self, status: int, message: str, *, code: str, headers: dict[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.headers = status, message, code, headers
