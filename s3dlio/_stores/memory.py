"""``memory://name/key``: objects in the memory of this process, for tests and examples."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from s3dlio._errors import InvalidInputError, NotFoundError
from s3dlio._native import ffi
from s3dlio._stores.base import Block, ObjectStat, StagedStream, Store, folder_error
from s3dlio._uri import Uri

if TYPE_CHECKING:
    from s3dlio._options import WriterOptions


@dataclass(frozen=True)
class _Object:
    data: bytes
    changed: datetime


class _MemorySink:
    name = "memory"
    acknowledged = False

    def __init__(self, store: MemoryStore, uri: Uri) -> None:
        self._store = store
        self._uri = uri
        self._blocks: list[bytes] = []

    def put(self, block: Block) -> None:
        self._blocks.append(bytes(block.data))
        block.release()

    def commit(self, size: int, crc32c: int) -> None:
        self._store.insert(self._uri, b"".join(self._blocks))
        self._blocks.clear()

    def abort(self) -> None:
        self._blocks.clear()

    def drop(self) -> None:
        self.abort()


class _MemorySource:
    def __init__(self, data: bytes) -> None:
        self._data = data

    @property
    def size(self) -> int:
        return len(self._data)

    def readinto(self, start: int, data: Any) -> int:
        part = memoryview(self._data)[start : start + len(data)]
        ffi.memmove(data, part, len(part))
        return len(part)

    def can_have(self, crc32c: int) -> bool:
        return True

    def close(self) -> None:
        pass


class MemoryStore(Store):
    """Holds objects by (name, key)."""

    def __init__(self) -> None:
        self._objects: dict[tuple[str, str], _Object] = {}
        self._renew_lock()
        os.register_at_fork(after_in_child=self._renew_lock)  # as in registry.py

    def _renew_lock(self) -> None:
        self._lock = threading.RLock()  # a signal handler may come in between

    def insert(self, uri: Uri, data: bytes) -> None:
        with self._lock:
            self._objects[uri.container, uri.key] = _Object(data, datetime.now(UTC))

    def create(self, uri: Uri, options: WriterOptions) -> StagedStream:
        if not uri.key or uri.key.endswith("/"):
            raise InvalidInputError(f"open {uri}: names no object", operation="open", uri=str(uri))
        return StagedStream(_MemorySink(self, uri), uri, options)

    def put_if(self, uri: Uri, data: bytes, etag: str | None, options: WriterOptions) -> bool:
        with self._lock:
            found = self._objects.get((uri.container, uri.key))
            if (None if found is None else _tag(found.data)) != etag:
                return False
            self._objects[uri.container, uri.key] = _Object(data, datetime.now(UTC))
        return True

    def open(self, uri: Uri, *, once: bool = False) -> _MemorySource:
        return _MemorySource(self._find(uri, "open").data)

    def stat(self, uri: Uri) -> ObjectStat:
        found = self._find(uri, "stat")
        return ObjectStat(
            size=len(found.data),
            last_modified=found.changed.strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
            etag=_tag(found.data),
        )

    def list(self, uri: Uri, recursive: bool) -> Iterator[Uri]:
        folder = uri.folder
        seen = set()
        for key in self._keys(uri, folder):
            if not recursive and "/" in key[len(folder) :]:
                key = folder + key[len(folder) :].partition("/")[0] + "/"
            if key not in seen:
                seen.add(key)
                yield Uri(uri.scheme, uri.container, key)

    def delete(self, uri: Uri, recursive: bool) -> None:
        if not recursive and (not uri.key or uri.key.endswith("/")):
            raise folder_error("delete", uri)
        doomed = self._keys(uri, uri.key.rstrip("/") + "/" if uri.key else "") if recursive else [uri.key]
        with self._lock:
            for key in doomed:
                self._objects.pop((uri.container, key), None)

    def _keys(self, uri: Uri, folder: str) -> Sequence[str]:
        with self._lock:
            return sorted(
                key
                for container, key in self._objects
                if container == uri.container and (key == uri.key or key.startswith(folder))
            )

    def _find(self, uri: Uri, operation: str) -> _Object:
        with self._lock:
            found = self._objects.get((uri.container, uri.key))
        if found is None:
            raise NotFoundError(f"{operation} {uri}: no such object", operation=operation, uri=str(uri))
        return found


def _tag(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
