"""Paths on S3 under pathlib's names, as far as S3 can keep what the names promise.

A folder is nothing but a common start of keys: it needs no making, and is there when something is in it. An
object appears whole, in one step, when its writing ends; there is no renaming, so there is no ``replace``,
and no ``__fspath__``: what only works on a disk (``os``, ``shutil``) fails at once, not somewhere else.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from fnmatch import fnmatchcase
from functools import total_ordering
from pathlib import PurePosixPath
from typing import Any

from casa_core.errors import StoreError
from pipelines.storage import s3

PART_BYTES = 16 << 20


@total_ordering
class RemotePath:
    """A key of a bucket, without slashes at its ends, or the folder that it begins.

    ``str(path)`` is its URI, settings included: it leads to the same place from any process.
    """

    __slots__ = ("bucket", "key", "settings")

    def __init__(self, bucket: str, key: str, settings: s3.S3Settings = s3.S3Settings()) -> None:  # noqa: B008
        self.bucket, self.key, self.settings = bucket, key, settings

    @classmethod
    def from_uri(cls, uri: str) -> RemotePath:
        """Reads ``s3://bucket/key?options``.

        Raises:
            ConfigError: If it is not such a URI, or holds credentials.
        """
        return cls(*s3.parse_uri(uri))

    # What a path is called

    def __str__(self) -> str:
        query = self.settings.query()
        return self.place + (f"?{query}" if query else "")

    def __repr__(self) -> str:
        return f"RemotePath({str(self)!r})"

    @property
    def place(self) -> str:
        """The URI without settings, for messages."""
        return f"s3://{self.bucket}/{self.key}"

    def _identity(self) -> tuple[str, str, s3.S3Settings]:
        return self.bucket, self.key, self.settings

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RemotePath) and self._identity() == other._identity()

    def __hash__(self) -> int:
        return hash(self._identity())

    def __lt__(self, other: RemotePath) -> bool:
        return (self.bucket, self.key.split("/")) < (other.bucket, other.key.split("/"))

    def __reduce__(self) -> tuple[Any, ...]:
        return RemotePath, self._identity()

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
        return RemotePath(self.bucket, str(key).strip("/") if str(key) != "." else "", self.settings)

    # What is there

    def exists(self) -> bool:
        """Whether there is an object of this key, or any below it."""
        return self.is_file() or self.is_dir()

    def is_file(self) -> bool:
        try:
            self.listed()
        except FileNotFoundError:
            return False
        return True

    def is_dir(self) -> bool:
        return s3.has_objects(self.settings, self.bucket, self._prefix)

    def listed(self) -> s3.Listed:
        """Size and tag of the object; raises FileNotFoundError."""
        with s3.explained(self.place):
            found = s3.client(self.settings).head_object(Bucket=self.bucket, Key=self.key)
        return s3.Listed(self.key, found["ContentLength"], found["ETag"].strip('"'))

    def list_below(self) -> Iterator[s3.Listed]:
        """Every object below this folder, by key."""
        return s3.list_objects(self.settings, self.bucket, self._prefix)

    def iterdir(self) -> Iterator[RemotePath]:
        """The objects and folders directly below."""
        return (self / name for name in s3.list_names(self.settings, self.bucket, self._prefix))

    def glob(self, pattern: str) -> Iterator[RemotePath]:
        """The objects directly below whose names match; of pathlib's patterns, those without a slash."""
        return (path for path in self.rglob(pattern) if path.parent == self)

    def rglob(self, pattern: str) -> Iterator[RemotePath]:
        """The objects anywhere below whose names match. Folders are none of them."""
        assert "/" not in pattern, "expected a pattern of names, without a slash"
        below = map(self._below, self.list_below())
        return (self / path for path in below if fnmatchcase(path.name, pattern))

    @property
    def _prefix(self) -> str:
        return f"{self.key}/" if self.key else ""

    def _below(self, entry: s3.Listed) -> PurePosixPath:
        return PurePosixPath(entry.key).relative_to(self._pure)

    # Reading and writing

    def read_bytes(self) -> bytes:
        return s3.read_object(self.settings, self.bucket, self.key)

    def read_text(self, encoding: str = "utf-8") -> str:
        return self.read_bytes().decode(encoding)

    def read_range(self, start: int, end: int) -> bytes:
        """The bytes from ``start`` up to ``end``.

        Raises:
            StoreError: If the object is shorter.
        """
        if start == end:
            return b""
        data = s3.read_object(self.settings, self.bucket, self.key, f"bytes={start}-{end - 1}")
        if len(data) != end - start:
            raise StoreError(
                f"{self.place} ends early.",
                f"Bytes {start} to {end} were asked for, {len(data)} came.",
                "Remove its folder and run again.",
            )
        return data

    def read_tail(self, size: int) -> bytes:
        """The last ``size`` bytes, or all where there are fewer."""
        return s3.read_object(self.settings, self.bucket, self.key, f"bytes=-{size}")

    def write_bytes(self, data: bytes, *, only_new: bool = False) -> str:
        """Puts an object in one step, and returns its tag.

        Raises:
            FileExistsError: If ``only_new`` is set and there is one. Of many that try at once, one succeeds.
        """
        condition = {"IfNoneMatch": "*"} if only_new else {}
        with s3.explained(self.place):
            done = s3.client(self.settings).put_object(
                Bucket=self.bucket, Key=self.key, Body=data, **condition
            )
        return done["ETag"].strip('"')

    def write_text(self, text: str, encoding: str = "utf-8") -> str:
        return self.write_bytes(text.encode(encoding))

    def unlink(self, missing_ok: bool = True) -> None:
        """Removes the object, if there is one; ``missing_ok=False`` is refused, as S3 does not report it."""
        assert missing_ok, "S3 does not report a missing object"
        with s3.explained(self.place):
            s3.client(self.settings).delete_object(Bucket=self.bucket, Key=self.key)

    def mkdir(self, parents: bool = True, exist_ok: bool = True) -> None:
        """Nothing: a folder is there when something is in it."""

    def remove_tree(self) -> None:
        """Removes every object below this folder."""
        with s3.explained(self.place):
            for entry in list(self.list_below()):
                s3.client(self.settings).delete_object(Bucket=self.bucket, Key=entry.key)

    def abort_uploads(self, older_than: timedelta = timedelta(0)) -> int:
        """Ends unfinished uploads below this folder, whose parts are stored and paid for; how many."""
        latest = datetime.now(UTC) - older_than
        listed = s3.list_uploads(self.settings, self.bucket, self._prefix)
        uploads = [(key, upload) for key, upload, begun in listed if begun <= latest or not older_than]
        for key, upload in uploads:
            with s3.explained(f"s3://{self.bucket}/{key}"):
                s3.client(self.settings).abort_multipart_upload(Bucket=self.bucket, Key=key, UploadId=upload)
        return len(uploads)


class S3Upload:
    """An object that is written as a stream: nothing of it is visible before :meth:`finish`.

    At most two parts are held in memory, the one being filled and the one under way. What fits into one part
    is put in a single request.
    """

    def __init__(self, path: RemotePath) -> None:
        self._path = path
        self._buffer = bytearray()
        self._upload: str | None = None
        self._sent = 0
        self._parts: list[dict[str, Any]] = []
        self._sender = ThreadPoolExecutor(max_workers=1, thread_name_prefix="upload")
        self._under_way: Future[dict[str, Any]] | None = None

    def write(self, data: memoryview) -> None:
        """Appends bytes; sends whole parts as they fill."""
        start = 0
        while start < len(data):
            taken = data[start : start + PART_BYTES - len(self._buffer)]
            self._buffer += taken
            start += len(taken)
            if len(self._buffer) == PART_BYTES:
                self._send_part()

    def finish(self) -> str:
        """Makes the object appear; returns its tag."""
        try:
            if self._upload is None:
                return self._path.write_bytes(bytes(self._buffer))
            if self._buffer:
                self._send_part()
            self._wait()
            return self._complete()
        finally:
            self._sender.shutdown()

    def abort(self) -> None:
        """Ends the upload and removes its parts."""
        self._sender.shutdown()
        if self._upload is not None:
            # The writer's own error is the one to raise; parts that stay behind are invisible, and the next
            # attempt at the artifact ends them.
            with contextlib.suppress(StoreError):
                self._call("abort_multipart_upload")

    def _complete(self) -> str:
        try:
            done = self._call("complete_multipart_upload", MultipartUpload={"Parts": self._parts})
            return done["ETag"].strip('"')
        except StoreError:
            # If only the answer was lost, the upload is asked for again and unknown by then: is it there?
            with contextlib.suppress(FileNotFoundError):
                found = self._path.listed()
                if found.size == self._sent and found.etag.endswith(f"-{len(self._parts)}"):
                    return found.etag
            raise

    def _send_part(self) -> None:
        if self._upload is None:
            self._upload = self._call("create_multipart_upload")["UploadId"]
        self._wait()
        number, body = len(self._parts) + 1, bytes(self._buffer)
        self._sent += len(body)
        self._buffer.clear()
        self._under_way = self._sender.submit(self._call, "upload_part", PartNumber=number, Body=body)

    def _wait(self) -> None:
        if self._under_way is not None:
            tag = self._under_way.result()["ETag"]
            self._parts.append({"PartNumber": len(self._parts) + 1, "ETag": tag})
            self._under_way = None

    def _call(self, method: str, **arguments: Any) -> dict[str, Any]:
        path = self._path
        if self._upload is not None:
            arguments["UploadId"] = self._upload
        with s3.explained(path.place):
            return getattr(s3.client(path.settings), method)(Bucket=path.bucket, Key=path.key, **arguments)
