"""S3 clients: endpoints, credentials, retries and listings.

Whole objects are written and listed with botocore, which can abort an upload, list abandoned ones and put an
object only where there is none; bulk data is read with Arrow's own client, outside of Python's lock. Both are
made here, from the same settings, which travel inside the URI:
``s3://bucket/prefix?endpoint_override=http://host:9000&region=us-east-1``. What a URI leaves out comes from
the usual environment (``AWS_ENDPOINT_URL``, ``AWS_REGION``, ``AWS_ACCESS_KEY_ID``, profiles, roles).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, urlencode, urlsplit

from casa_core.errors import ConfigError
from pipelines.storage.errors import explained
from pipelines.storage.retry import ATTEMPTS, retry

if TYPE_CHECKING:
    from pyarrow import fs

CONNECT_TIMEOUT_S = 5.0
READ_TIMEOUT_S = 60.0
_OPTIONS = ("endpoint_override", "region", "scheme")


@dataclass(frozen=True, slots=True)
class S3Settings:
    """How a bucket is reached; empty where the environment decides.

    Attributes:
        endpoint: URL of a server other than Amazon's.
        region: Name of the bucket's region.
    """

    endpoint: str = ""
    region: str = ""

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


def parse_uri(uri: str) -> tuple[str, str, S3Settings]:
    """``s3://bucket/key?options`` → bucket, key without slashes at its ends, settings.

    Raises:
        ConfigError: Without a bucket, with unknown options, or with credentials inside.
    """
    parts = urlsplit(uri)
    options = dict(parse_qsl(parts.query, keep_blank_values=True))
    if "@" in parts.netloc:
        raise ConfigError(
            f"The address of bucket {parts.netloc.rpartition('@')[2]!r} holds credentials.",
            "It is written into manifests and logs, where others can read them.",
            "Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or use a profile or a role.",
        )
    unknown = sorted(options.keys() - set(_OPTIONS))
    if parts.scheme != "s3" or not parts.netloc or parts.fragment or unknown:
        raise ConfigError(
            f"{uri!r} is not the address of a folder on S3.",
            f"Unknown options: {', '.join(unknown)}." if unknown else "It has no bucket, or a # in it.",
            "Write s3://bucket/prefix, with ?endpoint_override=http://host:port where it is not Amazon's.",
        )
    endpoint = options.get("endpoint_override", "")
    if endpoint and "://" not in endpoint:
        endpoint = f"{options.get('scheme', 'https')}://{endpoint}"
    return parts.netloc, parts.path.strip("/"), S3Settings(endpoint.rstrip("/"), options.get("region", ""))


def client(settings: S3Settings) -> Any:
    """A botocore client, one per process and server; safe to share between threads."""
    return _client(settings.resolved(), os.getpid())


@lru_cache(maxsize=8)
def _client(settings: S3Settings, process: int) -> Any:
    from botocore.config import Config
    from botocore.session import Session

    config = Config(
        retries={"mode": "standard", "total_max_attempts": ATTEMPTS},
        connect_timeout=CONNECT_TIMEOUT_S,
        read_timeout=READ_TIMEOUT_S,
        max_pool_connections=16,
        s3={"addressing_style": "path" if settings.endpoint else "auto"},
        # Not every server knows the newer checksums; the signature, or TLS, covers the body.
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
    )
    return Session().create_client(
        "s3",
        endpoint_url=settings.endpoint or None,
        region_name=settings.region or None,
        config=config,
    )


def arrow_filesystem(settings: S3Settings, bucket: str) -> fs.S3FileSystem:
    """Arrow's client for bulk reading, one per process and server; safe to share between threads."""
    resolved = settings.resolved()
    return _arrow_filesystem(resolved, "" if resolved.region else bucket, os.getpid())


@lru_cache(maxsize=8)
def _arrow_filesystem(settings: S3Settings, bucket: str, process: int) -> fs.S3FileSystem:
    from pyarrow import fs  # late: the command line starts without it

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


@dataclass(frozen=True, slots=True)
class Listed:
    """An object of a listing: its key, bytes, and a tag that changes with its contents."""

    key: str
    size: int
    etag: str


def _pages(
    settings: S3Settings, method: str, bucket: str, prefix: str, **options: str
) -> Iterator[dict[str, Any]]:
    """The answers to a listing, up to a thousand entries each."""
    with explained(f"s3://{bucket}/{prefix}"):
        yield from client(settings).get_paginator(method).paginate(Bucket=bucket, Prefix=prefix, **options)


def list_objects(settings: S3Settings, bucket: str, prefix: str) -> Iterator[Listed]:
    """Every object whose key starts with ``prefix``, by key."""
    for page in _pages(settings, "list_objects_v2", bucket, prefix):
        for entry in page.get("Contents", ()):
            yield Listed(entry["Key"], entry["Size"], entry["ETag"].strip('"'))


def has_objects(settings: S3Settings, bucket: str, prefix: str) -> bool:
    """Whether there is any object whose key starts with ``prefix``."""
    with explained(f"s3://{bucket}/{prefix}"):
        found = client(settings).list_objects_v2(Bucket=bucket, Prefix=prefix, MaxKeys=1)
    return bool(found.get("Contents"))


def list_names(settings: S3Settings, bucket: str, prefix: str) -> Iterator[str]:
    """What follows ``prefix`` in keys, up to the next slash: the names in a folder, each once."""
    for page in _pages(settings, "list_objects_v2", bucket, prefix, Delimiter="/"):
        names = [entry["Key"] for entry in page.get("Contents", ())]
        names += [entry["Prefix"].rstrip("/") for entry in page.get("CommonPrefixes", ())]
        yield from sorted(name[len(prefix) :] for name in names if name != prefix)


def list_uploads(settings: S3Settings, bucket: str, prefix: str) -> list[tuple[str, str, datetime]]:
    """Uploads under a prefix that were begun and neither completed nor aborted: key, id, when begun."""
    return [
        (entry["Key"], entry["UploadId"], entry["Initiated"])
        for page in _pages(settings, "list_multipart_uploads", bucket, prefix)
        for entry in page.get("Uploads", ())
        if entry["Key"].startswith(prefix)
    ]


def read_object(settings: S3Settings, bucket: str, key: str, wanted: str = "") -> bytes:
    """Bytes of an object. botocore retries a request, but not a body that ends early: this does.

    Args:
        wanted: Which bytes, as HTTP names them: ``bytes=0-99``, ``bytes=-100``; all where it is empty.

    Raises:
        FileNotFoundError: Where there is no such object.
    """
    from botocore.exceptions import HTTPClientError, IncompleteReadError, ResponseStreamingError

    broken = (HTTPClientError, IncompleteReadError, ResponseStreamingError)
    part = {"Range": wanted} if wanted else {}

    def read() -> bytes:
        return client(settings).get_object(Bucket=bucket, Key=key, **part)["Body"].read()

    with explained(f"s3://{bucket}/{key}"):
        return retry(read, lambda error: isinstance(error, broken))
