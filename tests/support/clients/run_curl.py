"""The calls as curl makes them: the JSON written by hand, `-d @-`."""

from __future__ import annotations

import json
import shutil
import subprocess

from tests.support.clients.calls import CHAT, Call
from tests.support.clients.outcomes import Outcome, outcome_of

CURL = shutil.which("curl")
if CURL is None:
    raise ImportError("there is no curl")


def version() -> str:
    """The program's own version."""
    return subprocess.run(
        [CURL or "", "--version"], capture_output=True, text=True, check=True
    ).stdout.split()[1]


def ask(url: str, call: Call) -> Outcome:
    """A call, and after it the one that sends its answer back."""
    messages = list(call.messages)
    status, text = _curl(url, call, messages)
    if call.then:
        messages += [json.loads(text)["choices"][0]["message"], *call.then]
        status, text = _curl(url, call, messages)
    return outcome_of(status, text)


def _curl(url: str, call: Call, messages: list[dict[str, object]]) -> tuple[int, str]:
    command = [CURL or "", "-sN", "-w", "\n%{http_code}", f"{url}{call.path}"]
    body = json.dumps({**call.fields, "messages": messages})
    if call.path == CHAT:
        command += ["-H", "content-type: application/json", "-d", "@-"]
    done = subprocess.run(command, input=body, capture_output=True, check=True, encoding="utf-8", timeout=30)
    text, _, status = done.stdout.rpartition("\n")
    return int(status), text
