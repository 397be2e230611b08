"""What clients send: an ASGI layer that keeps it, and files of it (`recorded/`), one for each client."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "recorded"


class Recorder:
    """Passes everything on to an app and keeps the requests.

    Attributes:
        requests: Each one's path, content type and JSON body; null for a GET.
    """

    def __init__(self) -> None:
        self.requests: list[dict[str, Any]] = []

    def around(self, app: Any) -> Any:
        """The app that records."""

        async def recording(scope: Any, receive: Any, send: Any) -> None:
            if scope["type"] != "http":
                return await app(scope, receive, send)
            headers = dict(scope["headers"])
            kept: dict[str, Any] = {"path": scope["path"], "body": None}
            if b"content-type" in headers:
                kept["content_type"] = headers[b"content-type"].decode()
            is_json = kept.get("content_type", "").startswith("application/json")
            self.requests.append(kept)
            body = b""

            async def receive_and_keep() -> Any:
                nonlocal body
                message = await receive()
                body += message.get("body", b"")
                if message["type"] == "http.request" and not message.get("more_body") and body and is_json:
                    kept["body"] = json.loads(body)
                return message

            return await app(scope, receive_and_keep, send)

        return recording

    def take(self) -> list[dict[str, Any]]:
        """The requests since the last time."""
        taken, self.requests = self.requests, []
        return taken


def write(client: str, recorded: dict[str, Any]) -> None:
    """Write a client's file, one call a line.

    Args:
        recorded: `versions`, `sent` (requests by call) and `inexpressible` (reasons by call).
    """
    lines = [f"  {json.dumps(name)}: {json.dumps(sent)}" for name, sent in recorded["sent"].items()]
    rest = {name: recorded[name] for name in ("versions", "inexpressible")}
    head = json.dumps(rest, indent=1).removesuffix("\n}")
    (FOLDER / f"{client}.json").write_text(
        f'{head},\n "sent": {{\n' + ",\n".join(lines) + "\n }\n}\n", "utf-8"
    )


def read(client: str) -> dict[str, Any]:
    """A client's file."""
    return json.loads((FOLDER / f"{client}.json").read_text("utf-8"))


def recorded_clients() -> list[str]:
    """The clients that there are files of."""
    return sorted(path.stem for path in FOLDER.glob("*.json"))
