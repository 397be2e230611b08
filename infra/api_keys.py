"""API keys of an endpoint: how one is made, and the file that holds their hashes.

The file has one JSON object per line. It never holds a key itself: a key has 256 random bits, so that its
SHA-256 can neither be reversed nor guessed, and needs no salt.
"""

from __future__ import annotations

import hashlib
import json
import secrets
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from casa_core.errors import ConfigError

PREFIX = "casa-"


class ApiKey(BaseModel):
    """One client's key, as it is stored."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    created: str
    requests_per_minute: Annotated[int, Field(ge=1)] | None = None
    live_sessions: Annotated[int, Field(ge=0)] | None = None


def make_key(
    name: str, *, requests_per_minute: int | None = None, live_sessions: int | None = None
) -> tuple[str, ApiKey]:
    """A new key, which is to be shown once, and what is stored of it.

    Raises:
        ConfigError: The name is not usable.
    """
    secret = PREFIX + secrets.token_urlsafe(32)
    try:
        stored = ApiKey(
            name=name,
            sha256=hash_of(secret),
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            requests_per_minute=requests_per_minute,
            live_sessions=live_sessions,
        )
    except ValidationError as error:
        problem = error.errors()[0]
        raise ConfigError(
            f"The key cannot have this {problem['loc'][0]}.",
            f"{problem['msg']}.",
            "A name has up to 64 letters, digits, dots, dashes and underscores.",
        ) from error
    return secret, stored


def hash_of(key: str) -> str:
    """What is stored of a key: its SHA-256, hexadecimal."""
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()


def read_keys(path: Path) -> list[ApiKey]:
    """The keys of a file, in its order.

    Raises:
        ConfigError: The file cannot be read, a line is no key, or a name stands twice.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"The file of API keys {path} cannot be read.",
            getattr(error, "strerror", None) or "It is no text.",
            "Make it with `casa keys add NAME --file FILE`.",
        ) from error
    keys: list[ApiKey] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            keys.append(ApiKey.model_validate_json(line))
        except ValidationError as error:
            problem = error.errors()[0]
            field = ".".join(map(str, problem["loc"])) or "the line"
            raise ConfigError(
                f"Line {number} of the API keys {path} is no key.",
                f"{field}: {problem['msg']}.",
                "Remove the line, and make the key anew with `casa keys add`.",
            ) from error
    names = [key.name for key in keys]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ConfigError(
            f"The file of API keys {path} has a name twice.", f"It is {twice[0]}.", "Remove one of the lines."
        )
    return keys


def as_text(keys: list[ApiKey]) -> str:
    """The file's content for some keys."""
    return "".join(json.dumps(key.model_dump(exclude_none=True)) + "\n" for key in keys)
