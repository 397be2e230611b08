"""Paths on an object store under pathlib's names, as far as fsspec and the store can keep what they promise.

A folder is nothing but a common start of names: it needs no making, and is there when something is in it. An
object appears whole, in one step, when its writing ends; there is no renaming, so there is no ``replace``,
and no ``__fspath__``: what only works on a disk (``os``, ``shutil``) fails at once, not somewhere else.

Tested on a real server: ``s3://``; in one process: ``memory://``. Written after the code of gcsfs 2026.10 and
adlfs 2026.8, and not run: ``gs://`` (creates if absent by ``ifGenerationMatch=0``) and ``abfs://`` (by
``overwrite=False``). What else fsspec knows can be read from.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from fnmatch import fnmatchcase
from functools import total_ordering
from pathlib import PurePosixPath
from typing import Any, TypeVar
from urllib.parse import parse_qsl, urlsplit

from casa_core.errors import ConfigError, StoreError
from pipelines.storage import filesystems, s3
from pipelines.storage.errors import attempt, code_of

STORES = ("s3", "gs", "gcs", "abfs", "abfss", "az", "memory")
"""Where an object can be created only if there is none, so that of two writers one wins."""

_memory = threading.Lock()  # fsspec's memory looks first, and creates then
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Listed:
    """An object's size in bytes, and a tag that changes with its contents."""

    size: int
    etag: str


@total_ordering
@dataclass(frozen=True, slots=True, repr=False)
class RemotePath:
    """An object of a bucket by its key, without slashes at its ends, or the folder that the key begins.

    ``str(path)`` is its URI, settings included: it leads to the same place from any process, and holds no
    credentials. ``scheme`` is the URI's: ``s3``, ``gs``, ``hf``, ``memory``, …
    """

    bucket: str
    key: str
    settings: s3.S3Settings = s3.S3Settings()  # noqa: RUF009 - frozen
    scheme: str = "s3"

    @classmethod
    def from_uri(cls, uri: str) -> RemotePath:
        """Reads ``scheme://bucket/key``; on S3 with ``?endpoint_override=…&region=…``.

        Raises:
            ConfigError: If it is not such a URI, or holds credentials.
        """
        parts = urlsplit(uri)
        scheme = "s3" if parts.scheme == "s3a" else parts.scheme
        if parts.password is not None or (scheme == "s3" and "@" in parts.netloc):
            raise ConfigError(
                f"The address of {parts.netloc.rpartition('@')[2]!r} holds credentials.",
                "It is written into manifests and logs, where others can read them.",
                "Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or use a profile or a role.",
            )
        options = dict(parse_qsl(parts.query, keep_blank_values=True))
        known = {"endpoint_override", "region", "scheme"} if scheme == "s3" else set()
        unknown = sorted(options.keys() - known)
        if not (parts.netloc or scheme == "memory") or parts.fragment or unknown:
            raise ConfigError(
                f"{uri!r} is not the address of a folder.",
                f"Unknown options: {', '.join(unknown)}." if unknown else "It has no bucket, or a # in it.",
                "Write s3://bucket/prefix, with ?endpoint_override=http://host:port if it is not Amazon's.",
            )
        return cls(parts.netloc, parts.path.strip("/"), s3.S3Settings.of(options), scheme)

    # What a path is called

    def __str__(self) -> str:
        query = self.settings.query()
        return self.place + (f"?{query}" if query else "")

    def __repr__(self) -> str:
        return f"RemotePath({str(self)!r})"

    @property
    def place(self) -> str:
        """The URI without settings, for messages."""
        return f"{self.scheme}://{self.bucket}/{self.key}"

    def __lt__(self, other: RemotePath) -> bool:
        return (self.bucket, self.key.split("/")) < (other.bucket, other.key.split("/"))

    @property
    def _pure(self) -> PurePosixPath:
        return PurePosixPath(self.key)

    @property
    def name(self) -> str:
        return self._pure.name

    @property
    def stem(self) -> str:
        return self._pure.stem

    @property
    def suffix(self) -> str:
        return self._pure.suffix

    @property
    def parent(self) -> RemotePath:
        return self._at(self._pure.parent)

    def __truediv__(self, name: str | PurePosixPath) -> RemotePath:
        return self._at(self._pure / name)

    def with_name(self, name: str) -> RemotePath:
        return self._at(self._pure.with_name(name))

    def relative_to(self, other: RemotePath) -> PurePosixPath:
        return self._pure.relative_to(other._pure)

    def absolute(self) -> RemotePath:
        return self

    def _at(self, key: PurePosixPath) -> RemotePath:
        text = str(key).strip("/") if str(key) != "." else ""
        return RemotePath(self.bucket, text, self.settings, self.scheme)

    def _call(self, action: Callable[[Any, str], Result]) -> Result:
        """A function of the filesystem and of this path's name there, retried and its errors explained."""
        return attempt(self.place, lambda: action(*filesystems.open_filesystem(self.place, self.settings)))

    # What is there

    def exists(self) -> bool:
        """Whether there is an object of this key, or any below it."""
        return bool(self._kind())

    def is_file(self) -> bool:
        return self._kind() == "file"

    def is_dir(self) -> bool:
        """Whether there are objects below, and none of this very key."""
        return self._kind() == "directory"

    def _kind(self) -> str:
        try:
            return self._call(lambda store, path: store.info(path)["type"])
        except FileNotFoundError:
            return ""

    def listed(self) -> Listed:
        """Size and tag of the object; raises FileNotFoundError."""
        info = self._call(lambda store, path: store.info(path))
        if info["type"] != "file":
            raise FileNotFoundError(self.place)
        return _listed(info)

    def listing(self) -> dict[str, Listed]:
        """Every object below this folder: its name relative to the folder, sorted, with its size and tag."""

        def find(store: Any, path: str) -> dict[str, Listed]:
            start = f"{path}/" if path else ""
            found = store.find(path, detail=True).items()
            return {
                name.removeprefix(start): _listed(info)
                for name, info in sorted(found)
                if name.startswith(start) and not name.endswith("/")  # a folder's own mark
            }

        try:
            return self._call(find)
        except FileNotFoundError:
            return {}

    def iterdir(self) -> Iterator[RemotePath]:
        """The objects and folders directly below."""
        try:
            path, found = self._call(lambda store, path: (path, store.ls(path, detail=True)))
        except FileNotFoundError:
            return
        start = f"{path}/" if path else ""
        names = sorted({info["name"].rstrip("/") for info in found})
        yield from (self / name.removeprefix(start) for name in names if name.startswith(start))

    def glob(self, pattern: str) -> Iterator[RemotePath]:
        """The objects directly below whose names match; of pathlib's patterns, those without a slash."""
        return (path for path in self.rglob(pattern) if path.parent == self)

    def rglob(self, pattern: str) -> Iterator[RemotePath]:
        """The objects anywhere below whose names match. Folders are none of them."""
        assert "/" not in pattern, "expected a pattern of names, without a slash"
        return (self / name for name in self.listing() if fnmatchcase(name.rpartition("/")[2], pattern))

    # Reading and writing

    def read_bytes(self) -> bytes:
        return self._call(lambda store, path: store.cat_file(path))

    def read_text(self, encoding: str = "utf-8") -> str:
        return self.read_bytes().decode(encoding)

    def read_range(self, start: int, end: int) -> bytes:
        """The bytes from ``start`` up to ``end``.

        Raises:
            StoreError: If the object is shorter.
        """
        if start == end:
            return b""
        data = self._call(lambda store, path: _part(store, path, start, end))
        if len(data) != end - start:
            raise StoreError(
                f"{self.place} ends early.",
                f"Bytes {start} to {end} were asked for, {len(data)} came.",
                "Remove its folder and run again.",
            )
        return data

    def read_tail(self, size: int) -> bytes:
        """The last ``size`` bytes, or all where there are fewer."""
        return self._call(lambda store, path: _part(store, path, -size, None))

    def write_bytes(self, data: bytes, *, only_new: bool = False) -> str:
        """Puts an object in one step, and returns its tag.

        Raises:
            FileExistsError: If ``only_new`` is set and there is one. Of many that try at once, one succeeds.
        """
        put = self._call(_put_new(data) if only_new else lambda store, path: store.pipe_file(path, data))
        return put["ETag"].strip('"') if isinstance(put, dict) and "ETag" in put else self.listed().etag

    def upload(self, local: str) -> str:
        """Puts a local file in one step, and returns its tag."""
        self._call(lambda store, path: store.put_file(local, path))
        return self.listed().etag

    def write_text(self, text: str, encoding: str = "utf-8") -> str:
        return self.write_bytes(text.encode(encoding))

    def unlink(self, missing_ok: bool = True) -> None:
        """Removes the object, if there is one; ``missing_ok=False`` is refused, as S3 does not report it."""
        assert missing_ok, "S3 does not report a missing object"
        try:
            self._call(lambda store, path: store.rm_file(path))
        except FileNotFoundError:
            return

    def mkdir(self, parents: bool = True, exist_ok: bool = True) -> None:
        """Nothing: a folder is there when something is in it."""

    def remove_tree(self) -> None:
        """Removes every object below this folder."""
        for name in self.listing():
            (self / name).unlink()

    def abort_uploads(self, older_than: timedelta = timedelta(0)) -> int:
        """Ends unfinished uploads below this folder, whose parts are stored and paid for; how many.

        On S3 alone: other stores drop what was not finished by themselves.
        """
        if self.scheme != "s3":
            return 0
        latest = datetime.now(UTC) - older_than
        listed = s3.list_uploads(self.settings, self.bucket, f"{self.key}/".lstrip("/"))
        uploads = [(key, upload) for key, upload, begun in listed if begun <= latest or not older_than]
        for key, upload in uploads:
            s3.call(self.settings, "abort_multipart_upload", self.bucket, key, UploadId=upload)
        return len(uploads)


def _listed(info: dict[str, Any]) -> Listed:
    """With what the store states of the content (S3's ETag, the hub's blob id), or the time of its change."""
    names = ("ETag", "etag", "blob_id", "md5Hash", "LastModified", "last_modified", "mtime", "created")
    tag = next((info[name] for name in names if info.get(name)), "")
    tag = tag.timestamp() if isinstance(tag, datetime) else tag
    return Listed(int(info["size"] or 0), str(tag).strip('"'))


def _part(store: Any, path: str, start: int, end: int | None) -> bytes:
    try:
        return store.cat_file(path, start=start, end=end)
    except OSError as error:
        if code_of(error) in ("InvalidRange", "416"):  # nothing of the object lies there
            return b""
        raise


def _put_new(data: bytes) -> Callable[[Any, str], Any]:
    """Creates an object where there is none. An attempt whose answer was lost is no other writer's."""
    lost = False

    def put(store: Any, path: str) -> Any:
        nonlocal lost
        try:
            with _memory if store.protocol == "memory" else contextlib.nullcontext():
                return store.pipe_file(path, data, mode="create")
        except Exception as error:
            taken = isinstance(error, FileExistsError) or code_of(error) in ("PreconditionFailed", "412")
            if taken and lost and store.cat_file(path) == data:
                return None
            lost = True
            raise

    return put
