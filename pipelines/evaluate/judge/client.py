"""A judge behind any endpoint that speaks OpenAI's chat completions."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import httpx

from casa_core.errors import ConfigError, cause
from pipelines.evaluate.kept.answers import Answer
from pipelines.storage.retry import retry

KEY = "CASA_JUDGE_KEY"
"""Environment variable of the endpoint's key; there is no other way to give it."""
TIMEOUT_S = 120.0
ATTEMPTS = 8
SETTINGS: dict[str, Any] = {"temperature": 0, "seed": 42}


@dataclass(frozen=True)
class Judge:
    """A model that is asked about commentaries.

    Attributes:
        url: The endpoint's base, such as ``https://api.openai.com/v1``.
        model: Its model's name there.
        at_once: Requests in flight.
    """

    url: str
    model: str
    at_once: int = 8

    def body(self, prompt: str) -> dict[str, Any]:
        """The request about a prompt."""
        return {"model": self.model, "messages": [{"role": "user", "content": prompt}], **SETTINGS}

    def key(self, prompt: str) -> str:
        """Identity of a reply: all that it depends on but the endpoint."""
        return hashlib.sha256(json.dumps(self.body(prompt), sort_keys=True).encode()).hexdigest()

    @property
    def identity(self) -> str:
        """Identity of all its replies, as a folder's name."""
        return hashlib.sha256(self.model.encode()).hexdigest()

    def ask(self, prompt: str) -> Answer:
        """Its reply; a busy or failing endpoint is asked again, after as long as it says.

        Raises:
            ConfigError: Where it cannot be reached, refuses, or does not speak the protocol.
        """
        try:
            response = retry(lambda: self._post(prompt), attempts=ATTEMPTS)
            answer = response.json()
            [choice, *_] = answer["choices"]
            usage = answer.get("usage") or {}
            return Answer(
                text=choice["message"]["content"] or "",
                finish_reason=choice.get("finish_reason") or "",
                prompt_tokens=usage.get("prompt_tokens") or 0,
                image_tokens=0,
                completion_tokens=usage.get("completion_tokens") or 0,
            )
        except httpx.HTTPStatusError as error:
            said = error.response.text.strip()[:300]
            raise self._refused(f"It answers {error.response.status_code}: {said}") from error
        except httpx.HTTPError as error:
            raise self._refused(f"{cause(error)}.") from error
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise self._refused("What it answers is no chat completion.") from error

    def check(self) -> None:
        """Ask one short question: its address, its key and its model's name are right.

        Raises:
            ConfigError: As :meth:`ask`.
        """
        self.ask("Answer with the letter A.")

    def _post(self, prompt: str) -> httpx.Response:
        response = self._client.post("/chat/completions", json=self.body(prompt))
        response.raise_for_status()
        return response

    @cached_property
    def _client(self) -> httpx.Client:
        key = os.environ.get(KEY)
        try:
            return httpx.Client(
                base_url=self.url,
                headers={"Authorization": f"Bearer {key}"} if key else {},
                timeout=TIMEOUT_S,
                limits=httpx.Limits(max_connections=self.at_once),
            )
        except (httpx.InvalidURL, ValueError) as error:
            raise self._refused(f"{cause(error)}.") from error

    def _refused(self, why: str) -> ConfigError:
        return ConfigError(
            f"The judge {self.model} at {self.url} cannot be asked.",
            why,
            f"Correct --judge, --judge-model or the key in {KEY}; the same command then goes on.",
        )
