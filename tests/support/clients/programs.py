"""The client programs: each makes a call of the list in its own way and says what it shows of the outcome.

A program is a function (URL, call) → outcome that raises `InexpressibleError` where the client has no such
call. Packages are imported when it is looked up, so that those that are missing can be skipped.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from types import MappingProxyType
from typing import Any

from tests.support.clients.calls import CALLS, Call
from tests.support.clients.documents import DOCUMENTS
from tests.support.clients.outcomes import InexpressibleError, Outcome
from tests.support.clients.recorder import Recorder

Program = Callable[[str, Call], Outcome]

PROGRAMS: Mapping[str, tuple[str, str, tuple[str, ...]]] = MappingProxyType(
    {
        "curl": ("run_curl", "ask", ()),
        "openai": ("run_openai", "ask", ("openai",)),
        "openai-async": ("run_openai", "ask_async", ("openai",)),
        "langchain": ("run_langchain", "ask", ("langchain-openai", "langchain-core", "openai")),
        "litellm": ("run_litellm", "ask", ("litellm", "openai")),
        "lmms-eval": ("run_lmms_eval", "ask", ("lmms-eval", "openai")),
    }
)
"""The module and function of each client, and the packages it needs."""


def program(client: str) -> Program:
    """A client's program.

    Raises:
        ImportError: One of its packages is missing.
    """
    module, function, _ = PROGRAMS[client]
    return getattr(import_module(f"tests.support.clients.{module}"), function)


def versions(client: str) -> dict[str, str]:
    """The versions of a client's packages."""
    if client == "curl":
        return {"curl": import_module("tests.support.clients.run_curl").version()}
    return {package: importlib.metadata.version(package) for package in PROGRAMS[client][2]}


def calls_of(client: str) -> dict[str, Call]:
    """The list, and for a harness what documents add to it."""
    return {**CALLS, **(DOCUMENTS if client == "lmms-eval" else {})}


@dataclass
class Made:
    """All calls of the list by one client, each in one of the first two.

    Attributes:
        outcomes: What the client shows of each.
        inexpressible: Why a call was not made.
        sent: The requests of each that was.
    """

    outcomes: dict[str, Outcome] = field(default_factory=dict)
    inexpressible: dict[str, str] = field(default_factory=dict)
    sent: dict[str, list[dict[str, Any]]] = field(default_factory=dict)


def make_all(client: str, url: str, recorder: Recorder) -> Made:
    """Make the calls of the list, one after another."""
    ask, made = program(client), Made()
    recorder.take()
    for name, call in calls_of(client).items():
        try:
            made.outcomes[name] = ask(url, call)
            made.sent[name] = recorder.take()
        except (InexpressibleError, UnicodeEncodeError) as error:
            made.inexpressible[name] = str(error)
            assert not recorder.take(), f"{client}, {name}: something was sent"
    return made
