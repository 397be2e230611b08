"""S3 through s3fs: settings that travel in a URI, clients, and uploads in parts that appear whole.

What ``s3://bucket/prefix?endpoint_override=http://host:9000&region=us-east-1`` leaves out comes from the
usual environment (``AWS_ENDPOINT_URL``, ``AWS_REGION``, ``AWS_ACCESS_KEY_ID``, profiles, roles). Bulk data is
read with Arrow's own client, outside of Python's lock.

Uploads are not s3fs's own, because of what its 2026.9 does: a file that an error leaves is *committed*, cut
as it is; parts go up one after another; a lost answer to ``complete`` is an error; and
``clear_multipart_uploads`` ends every upload of a bucket, other people's too.
"""

from __future__ import annotations

import contextlib
import os
from collections import deque
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from casa_core.errors import StoreError
from pipelines.storage.errors import attempt, explained
from pipelines.storage.retry import ATTEMPTS

if TYPE_CHECKING:
    from concurrent.futures import Future

    from pyarrow import fs

CONNECT_TIMEOUT_S = 5.0
READ_TIMEOUT_S = 60.0
PART_BYTES = 16 << 20
PARTS_UNDER_WAY = 4
"""Parts of one upload that are sent at once; each is held in memory, as is the one being filled."""


@dataclass(frozen=True, slots=True)
class S3Settings:
    """How a bucket is reached; empty where the environment decides.

    Attributes:
        endpoint: URL of a server other than Amazon's.
        region: Name of the bucket's region.
    """

    endpoint: str = ""
    region: str = ""

    @classmethod
    def of(cls, options: dict[str, str]) -> S3Settings:
        """From a URI's ``endpoint_override``, ``scheme`` (of an endpoint without one) and ``region``."""
        endpoint = options.get("endpoint_override", "")
        if endpoint and "://" not in endpoint:
            endpoint = f"{options.get('scheme', 'https')}://{endpoint}"
        return cls(endpoint.rstrip("/"), options.get("region", ""))

    def resolved(self) -> S3Settings:
        """With the environment's answers where the settings have none."""
        endpoint = (
            self.endpoint or os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
        )
        region = self.region or os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
        return S3Settings(endpoint or "", region or ("us-east-1" if endpoint else ""))

    def query(self) -> str:
        """As the end of a URI; empty where the environment decides all."""
        given = {"endpoint_override": self.endpoint, "region": self.region}
        return urlencode({name: value for name, value in given.items() if value}, safe=":/")


def filesystem(settings: S3Settings) -> Any:
    """s3fs's filesystem, one per process and server, safe to share between threads; it retries nothing."""
    return _filesystem(settings.resolved(), os.getpid())


@lru_cache(maxsize=8)
def _filesystem(settings: S3Settings, process: int) -> Any:
    from s3fs import S3FileSystem  # late: the command line starts without it

    made = S3FileSystem(
        endpoint_url=settings.endpoint or None,
        client_kwargs={"region_name": settings.region} if settings.region else {},
        config_kwargs={
            "retries": {"mode": "standard", "total_max_attempts": 1},  # the retry is pipelines.storage.retry
            "connect_timeout": CONNECT_TIMEOUT_S,
            "read_timeout": READ_TIMEOUT_S,
            "max_pool_connections": 32,
            "s3": {"addressing_style": "path" if settings.endpoint else "auto"},
            # Not every server knows the newer checksums; the signature, or TLS, covers the body.
            "request_checksum_calculation": "when_required",
            "response_checksum_validation": "when_required",
        },
        max_concurrency=1,  # with more, reading an object asks for its size first
        use_listings_cache=False,
        skip_instance_cache=True,  # s3fs keeps one for each thread; this one is shared
    )
    made.retries = 1
    return made


def arrow_filesystem(settings: S3Settings, bucket: str) -> fs.S3FileSystem:
    """Arrow's client for bulk reading, one per process and server; safe to share between threads."""
    resolved = settings.resolved()
    return _arrow_filesystem(resolved, "" if resolved.region else bucket, os.getpid())


@lru_cache(maxsize=8)
def _arrow_filesystem(settings: S3Settings, bucket: str, process: int) -> fs.S3FileSystem:
    from pyarrow import fs

    scheme, _, host = settings.endpoint.rpartition("://")
    with explained(f"s3://{bucket}"):
        region = settings.region or fs.resolve_s3_region(bucket)
    return fs.S3FileSystem(
        region=region,
        scheme=scheme or "https",
        endpoint_override=host or None,
        connect_timeout=CONNECT_TIMEOUT_S,
        request_timeout=READ_TIMEOUT_S,
        retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=ATTEMPTS),
    )


def call(settings: S3Settings, method: str, bucket: str, key: str = "", **arguments: Any) -> dict[str, Any]:
    """One request of S3's API, retried: its method as botocore names it, and its answer."""
    if key:
        arguments["Key"] = key
    place = f"s3://{bucket}/{key or arguments.get('Prefix', '')}"
    return attempt(place, lambda: filesystem(settings).call_s3(method, Bucket=bucket, **arguments))


def list_uploads(settings: S3Settings, bucket: str, prefix: str) -> list[tuple[str, str, datetime]]:
    """Uploads under a prefix that were begun and neither completed nor aborted: key, id, when begun."""
    found: list[dict[str, Any]] = []
    after: dict[str, str] | None = {}
    while after is not None:
        page = call(settings, "list_multipart_uploads", bucket, Prefix=prefix, **after)
        uploads = page.get("Uploads", [])
        found += uploads
        more = page.get("IsTruncated") and uploads
        after = {"KeyMarker": uploads[-1]["Key"], "UploadIdMarker": uploads[-1]["UploadId"]} if more else None
    return [(u["Key"], u["UploadId"], u["Initiated"]) for u in found if u["Key"].startswith(prefix)]


class S3Upload:
    """An object that is written as a stream: nothing of it is visible before :meth:`finish`.

    Parts are sent while the next is filled, at most ``PARTS_UNDER_WAY`` at once. What fits into one part is
    put in a single request.
    """

    def __init__(self, settings: S3Settings, bucket: str, key: str) -> None:
        from concurrent.futures import ThreadPoolExecutor  # late: every job starts with this module

        self._target = settings, bucket, key
        self._buffer = bytearray()
        self._upload = ""
        self._sent = 0
        self._tags: list[str] = []
        self._sender = ThreadPoolExecutor(PARTS_UNDER_WAY, thread_name_prefix="upload")
        self._under_way: deque[Future[dict[str, Any]]] = deque()

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
            if not self._upload:
                return self._call("put_object", Body=bytes(self._buffer))["ETag"].strip('"')
            if self._buffer:
                self._send_part()
            self._wait(for_all=True)
            return self._complete()
        finally:
            self._sender.shutdown()

    def abort(self) -> None:
        """Ends this upload and removes its parts."""
        self._sender.shutdown(cancel_futures=True)
        if self._upload:
            # The writer's own error is the one to raise; parts that stay behind are invisible, and the next
            # attempt at the artifact ends them.
            with contextlib.suppress(StoreError):
                self._call("abort_multipart_upload")

    def _complete(self) -> str:
        parts = [{"PartNumber": number, "ETag": tag} for number, tag in enumerate(self._tags, 1)]
        try:
            done = self._call("complete_multipart_upload", MultipartUpload={"Parts": parts})
            return done["ETag"].strip('"')
        except StoreError:
            # If only the answer was lost, the upload is asked for again and unknown by then: is it there?
            upload, self._upload = self._upload, ""
            with contextlib.suppress(FileNotFoundError):
                found = self._call("head_object")
                tag = found["ETag"].strip('"')
                if found["ContentLength"] == self._sent and tag.endswith(f"-{len(parts)}"):
                    return tag
            self._upload = upload
            raise

    def _send_part(self) -> None:
        if not self._upload:
            self._upload = self._call("create_multipart_upload")["UploadId"]
        self._wait()
        number, body = len(self._tags) + len(self._under_way) + 1, bytes(self._buffer)
        self._sent += len(body)
        self._buffer.clear()
        self._under_way.append(self._sender.submit(self._call, "upload_part", PartNumber=number, Body=body))

    def _wait(self, *, for_all: bool = False) -> None:
        """Until another part may be sent, or until all are there."""
        while self._under_way and (for_all or len(self._under_way) == PARTS_UNDER_WAY):
            self._tags.append(self._under_way.popleft().result()["ETag"])

    def _call(self, method: str, **arguments: Any) -> dict[str, Any]:
        if self._upload:
            arguments["UploadId"] = self._upload
        return call(self._target[0], method, *self._target[1:], **arguments)
