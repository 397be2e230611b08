"""A judge on loopback that speaks OpenAI's chat completions, with a mind of its own."""

from __future__ import annotations

import json
import re
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Mind = Callable[[str, str], str]
"""Commentaries A and B → reply."""
A, B = (f"Commentary {letter} is better aligned with the human commentary" for letter in "AB")


def likes_the_first(a: str, b: str) -> str:
    """Whatever stands first."""
    return A


def likes_longer(a: str, b: str) -> str:
    """The longer one; a tie where they are as long."""
    return "Tie." if len(a) == len(b) else A if len(a) > len(b) else B


@dataclass
class RunningJudge:
    """A judge that runs.

    Attributes:
        asked: How often it replied to each prompt.
        bodies: The requests it replied to.
        refusals: Status and headers of the next answers, before it replies again.
        keys: The ``Authorization`` of each request.
        most: Replies after which it refuses everything.
    """

    mind: Mind
    url: str = ""
    asked: Counter[str] = field(default_factory=Counter)
    bodies: list[dict[str, Any]] = field(default_factory=list)
    refusals: list[tuple[int, dict[str, str]]] = field(default_factory=list)
    keys: set[str | None] = field(default_factory=set)
    most: int | None = None
    lock: threading.Lock = field(default_factory=threading.Lock)

    def reply(self, body: dict[str, Any], key: str | None) -> tuple[int, dict[str, str], dict[str, Any]]:
        """Status, headers and content."""
        prompt = body["messages"][-1]["content"]
        with self.lock:
            self.keys.add(key)
            if self.refusals:
                return *self.refusals.pop(0), {"error": {"message": "busy"}}
            if self.most is not None and self.asked.total() >= self.most:
                return 401, {}, {"error": {"message": "no credit"}}
            texts = re.findall(r"---Commentary [AB]---\n(.*?)\n-----", prompt, re.DOTALL)
            if texts:
                self.asked[prompt] += 1
                self.bodies.append(body)
        text = self.mind(*texts) if texts else "A"
        usage = {"prompt_tokens": len(prompt) // 4, "completion_tokens": 9}
        choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
        return 200, {}, {"object": "chat.completion", "choices": [choice], "usage": usage}


@contextmanager
def running_judge(mind: Mind) -> Iterator[RunningJudge]:
    """Serve a judge until the block ends."""
    judge = RunningJudge(mind)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if self.path == "/v1/chat/completions":
                status, headers, content = judge.reply(body, self.headers["Authorization"])
            else:
                status, headers, content = 404, {}, {}
            data = json.dumps(content).encode()
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(data))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    judge.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    try:
        yield judge
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
