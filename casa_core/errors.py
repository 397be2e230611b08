"""Errors for users: each names what happened, why, and what to do about it.

They pickle, so that they survive a Ray task boundary unchanged, and inherit the standard library type a
caller would expect to catch.
"""

from __future__ import annotations

import re


class CasaError(Exception):
    """Base of every error this project raises on purpose.

    Args:
        what: What went wrong, in one sentence that names the thing (path, key, id).
        why: The cause, or what was expected instead.
        remedy: What the reader can do now.
    """

    def __init__(self, what: str, why: str = "", remedy: str = "") -> None:
        self.what = what
        self.why = why
        self.remedy = remedy
        super().__init__(what, why, remedy)

    def __str__(self) -> str:
        lines = [self.what]
        if self.why:
            lines.append(f"  why: {self.why}")
        if self.remedy:
            lines.append(f"  try: {self.remedy}")
        return "\n".join(lines)


_ADDRESS = re.compile(r"\s*<[^<>]* at 0x[0-9a-fA-F]+>")


def cause(error: BaseException) -> str:
    """Another library's error as a cause: its type and its own words.

    Without objects' addresses: they mean nothing to a reader, and differ from run to run.
    """
    return f"{type(error).__name__}: {without_addresses(str(error))}"


def without_addresses(text: str) -> str:
    """A text without the objects it names by their place in memory, as ``<_io.BytesIO object at 0x…>``."""
    return _ADDRESS.sub("", text)


class ConfigError(CasaError, ValueError):
    """A setting, or a combination of settings, that cannot work."""


class MediaError(CasaError, ValueError):
    """An image or video that cannot be used. ``reason`` is a short stable slug for quarantine tables.

    Args:
        reason: For example ``truncated_image``, ``empty_file``, ``not_an_image``, ``decompression_bomb``.

    Attributes:
        image: Which of a conversation's images it is, from 0 on, once that is known.
    """

    def __init__(self, reason: str, what: str, why: str = "", remedy: str = "") -> None:
        super().__init__(what, why, remedy)
        self.reason = reason
        self.image: int | None = None
        self.args = (reason, what, why, remedy)


class DataError(CasaError, ValueError):
    """A record or a file of records that does not follow its documented layout."""


class StoreError(CasaError, RuntimeError):
    """An artifact that is missing, incomplete, or not what its manifest says."""


class TransferError(StoreError):
    """A store that cannot be reached, after several attempts. Never an ``OSError``: readers take those for
    broken records, and a run that loses its network must stop."""


class TrainingError(CasaError, RuntimeError):
    """A training run that cannot continue: a loss that is not finite, or that has jumped."""


class ClusterError(CasaError, RuntimeError):
    """Ray, a job, or an endpoint that cannot be reached or has failed."""
