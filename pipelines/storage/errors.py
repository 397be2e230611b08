"""What goes wrong with a store, as sentences: servers, credentials, networks, and disks that take no more.

Every request to a store runs in :func:`attempt` or :func:`explained`. A missing file stays a
``FileNotFoundError`` and one that is there a ``FileExistsError``, whichever client says so.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from casa_core.errors import CasaError, StoreError, TransferError, cause
from pipelines.storage import retry

Result = TypeVar("Result")


def attempt(place: str, action: Callable[[], Result]) -> Result:
    """Calls ``action``, again after errors that may pass; what stays is raised as of :func:`explained`.

    Args:
        place: What is read or written, for the error.
        action: May be called again after it failed.
    """
    with explained(place):
        return retry.retry(action)


@contextlib.contextmanager
def explained(place: str) -> Iterator[None]:
    """Turns what any store's client raises, and what a disk does, into sentences.

    Raises:
        FileNotFoundError: Where there is nothing of that name.
        FileExistsError: Where there is something, and it was to be new.
        TransferError: Where a network or a server fails.
        StoreError: For everything else that a store answers.
    """
    try:
        yield
    except CasaError:
        raise
    except Exception as error:
        better = _explain(place, error)
        if better is None:
            raise
        raise better from error


def code_of(error: BaseException) -> str:
    """An S3 server's name for an error, as botocore or s3fs raise it; empty for any other."""
    for each in (error, error.__cause__):
        answer: Any = getattr(each, "response", None)
        if isinstance(answer, dict):
            return str(answer.get("Error", {}).get("Code", ""))
    return ""


def _explain(place: str, error: Exception) -> Exception | None:
    if "://" not in place:
        return disk_error(error, Path(place))
    if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):  # of this machine
        return disk_error(error, Path(tempfile.gettempdir()))
    signs = {code_of(error), type(error).__name__}
    if isinstance(error, OSError):  # Arrow names the cause in the text: AWS Error NO_SUCH_BUCKET …
        signs |= set(re.findall(r"[A-Z_]{4,}", str(error)))
    for known, what, remedy in _CAUSES:
        if signs & known:
            return StoreError(f"{place} cannot be used: {what}.", f"{cause(error)}.", remedy)
    if signs & {"PreconditionFailed", "412"} or isinstance(error, FileExistsError):
        return FileExistsError(place)
    if signs & {"NoSuchKey", "404", "NotFound"} or isinstance(error, FileNotFoundError):
        return FileNotFoundError(place)
    if retry.may_pass(error):
        return TransferError(
            f"{place} cannot be used: its server does not answer, or fails, however often it is asked.",
            f"{retry.ATTEMPTS} attempts failed, the last with {cause(error)}.",
            f"Check the network and the endpoint ({_endpoint(place)}), and run again: finished work is kept.",
        )
    if isinstance(error, OSError) or code_of(error):
        advice = "Run again to resume; what was finished is kept."
        return StoreError(f"{place} cannot be used.", f"{cause(error)}.", advice)
    return None


def _endpoint(place: str) -> str:
    known = {"s3": "AWS_ENDPOINT_URL, where.s3.endpoint", "hf": "HF_ENDPOINT"}
    return known.get(place.partition("://")[0], "the URI's host")


_CAUSES = (
    (
        {"NoSuchBucket", "NO_SUCH_BUCKET"},
        "its bucket does not exist",
        "Create the bucket, or correct the URI (where.store, where.data_store or a source's path).",
    ),
    (
        {"NoCredentialsError", "PartialCredentialsError", "CredentialRetrievalError"},
        "no credentials were found",
        "Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY where the job runs, or use a profile or a role.",
    ),
    (
        {"InvalidAccessKeyId", "SignatureDoesNotMatch", "AccessDenied", "403", "Forbidden", "PermissionError"}
        | {"ACCESS_DENIED", "INVALID_ACCESS_KEY_ID", "SIGNATURE_DOES_NOT_MATCH"},
        "the server refuses these credentials",
        "Check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (the hub: HF_TOKEN), and what they may do there.",
    ),
    (
        {"RequestTimeTooSkewed", "RequestExpired", "REQUEST_TIME_TOO_SKEWED"},
        "this machine's clock differs from the server's by more than it allows",
        "Set this machine's clock (NTP), and run again.",
    ),
    (
        {"RepositoryNotFoundError", "GatedRepoError", "RevisionNotFoundError", "DisabledRepoError"},
        "the hub has nothing of this name, or does not show it without leave",
        "Check the name and the revision; where its page asks for consent, give it, and set HF_TOKEN.",
    ),
    (
        {"NoSuchUpload"},
        "its upload was ended from outside, most likely by another run that makes the same artifact",
        "Run again: what either run finished is kept.",
    ),
)
"""Signs in an error's code or words, what they mean, and what to do."""

# Disks

_DISK = {
    errno.ENOSPC: ("the disk is full", "Free space there, or name a store on another disk (where.store)"),
    errno.EDQUOT: ("your quota on the disk is used up", "Free space there, or have the quota raised"),
    errno.EROFS: ("the disk is mounted read-only", "Name a store that can be written (where.store)"),
    errno.EACCES: ("permission is denied", "Change the permissions, or name another store (where.store)"),
    errno.EPERM: ("permission is denied", "Change the permissions, or name another store (where.store)"),
    errno.EIO: ("the disk fails (input/output error)", "Check the disk, and where its server is reached"),
    errno.ESTALE: ("the shared folder was remounted or moved", "Check the mount on every machine"),
}
"""What a disk's error means, and what to do about it."""


def disk_error(error: BaseException, place: object = None) -> StoreError | None:
    """A disk's error as a sentence that names the disk and what is free on it; ``None`` for any other error.

    Args:
        error: A disk's, another library's that quotes one (Arrow, torch, safetensors), or one that was caused
            by such an error, as Ray raises what a worker met.
        place: Path of what was written or read, where the error does not name it.
    """
    for each in _chain(error):
        number = getattr(each, "errno", None)
        if number not in _DISK:
            quoted = re.search(r"(?:errno|os error) (\d+)", str(each), re.IGNORECASE)
            number = int(quoted[1]) if quoted else errno.ENOSPC if "No space left" in str(each) else None
        if isinstance(each, CasaError) or number not in _DISK:
            continue
        named = getattr(each, "filename2", None) or getattr(each, "filename", None)  # copied from, and to
        place = place or (Path(os.fsdecode(named)) if isinstance(named, str | bytes) else None)
        what, remedy = _DISK[number]
        return StoreError(
            f"{place or 'The store'} cannot be used: {what}.",
            f"{cause(each)}{_free(place) if isinstance(place, Path) else ''}.",
            f"{remedy}, and run again: finished work is kept.",
        )
    return None


_NAMES = {
    errno.ENOENT: "nothing of this name is there",
    errno.ENOTDIR: "a part of its path is a file, and no folder",
    errno.EISDIR: "it is a folder, and no file",
    errno.EEXIST: "something of this name is there already",
    errno.ENOTEMPTY: "the folder is not empty",
    errno.ENAMETOOLONG: "the name is longer than this disk allows",
    errno.ELOOP: "its links lead in a circle",
}


def name_error(error: BaseException) -> StoreError | None:
    """An error about a path, as a sentence; ``None`` for any other.

    For the outermost caller only: inside, code expects ``FileNotFoundError`` and the like.
    """
    if not isinstance(error, OSError) or error.errno not in _NAMES or error.filename is None:
        return None
    named = error.filename2 or error.filename
    return StoreError(
        f"{os.fsdecode(named) if isinstance(named, str | bytes) else named} cannot be used: "
        f"{_NAMES[error.errno]}.",
        f"{cause(error)}.",
        "Correct the path, or make the folder; a store is named by where.store or --store.",
    )


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error and what it was raised from, Ray's own ways of saying so included."""
    seen: list[BaseException] = []
    waiting = [error]
    while waiting:
        each = waiting.pop(0)
        if not isinstance(each, BaseException) or each in seen:
            continue
        seen.append(each)
        yield each
        waiting += [each.__cause__, getattr(each, "cause", None), getattr(each, "controller_failure", None)]
        waiting += dict(getattr(each, "worker_failures", {})).values()


def _free(place: Path) -> str:
    """How much is free on the disk that a path lies on, or would lie on."""
    with contextlib.suppress(OSError):
        folder = next(each for each in (place, *place.absolute().parents) if each.is_dir())
        usage, mount = shutil.disk_usage(folder), folder.resolve()
        while not mount.is_mount():
            mount = mount.parent
        free, total = (f"{number / 2**20:,.0f}" for number in (usage.free, usage.total))
        return f"; {free} of {total} MiB are free on the disk at {mount}"
    return ""
