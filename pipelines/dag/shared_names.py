"""Names that keep stores apart which share a cluster: of their jobs, and of their endpoints."""

from __future__ import annotations

import hashlib
from pathlib import Path

from pipelines.storage.uri import Folder


def store_digest(store: Folder) -> str:
    """Eight characters that tell a store from others: of its real path, or of its URI without options."""
    address = str(store.resolve()) if isinstance(store, Path) else str(store).partition("?")[0]
    return hashlib.sha256(address.encode()).hexdigest()[:8]


def serve_application(store: Folder) -> str:
    """Name of a store's endpoint in Ray Serve."""
    return f"casa-{store_digest(store)}"
