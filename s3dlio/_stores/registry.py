"""Which store serves which scheme.  A store's module is imported when its scheme is first used."""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING

from s3dlio._errors import InvalidInputError, UnsupportedError

if TYPE_CHECKING:
    from s3dlio._stores.base import Store
    from s3dlio._uri import Uri


_stores: dict[str, Store] = {}
_making = threading.Lock()


def _renew_lock() -> None:
    """Another thread may hold the lock at the moment of a fork, and does not exist in the child to give it back."""
    global _making
    _making = threading.Lock()


os.register_at_fork(after_in_child=_renew_lock)


def _make(scheme: str) -> Store | None:
    if scheme in ("file", "direct"):
        from s3dlio._stores.file import FileStore

        return FileStore(direct=scheme == "direct")
    if scheme == "memory":
        from s3dlio._stores.memory import MemoryStore

        return MemoryStore()
    if scheme == "s3":
        from s3dlio._stores.s3 import S3Store

        return S3Store()
    if scheme == "az":
        try:
            from s3dlio._stores.azure import AzureStore
        except ModuleNotFoundError as error:
            if (error.name or "").partition(".")[0] != "azure":
                raise
            text = "az:// needs the package azure-storage-blob: pip install azure-storage-blob"
            raise UnsupportedError(text) from error

        return AzureStore()
    return None


def store_for(uri: Uri) -> Store:
    """The store of a URI's scheme; one for each scheme and process."""
    store = _stores.get(uri.scheme)
    if store is None:
        with _making:
            store = _stores.get(uri.scheme) or _make(uri.scheme)
            if store is not None:
                _stores[uri.scheme] = store
    if store is None:
        raise InvalidInputError(
            f"{str(uri)!r} has the scheme {uri.scheme!r}; known are file, direct, memory, s3 and az", uri=str(uri)
        )
    return store
