"""Manifests and the pointer as objects: small, and read as a whole."""

from __future__ import annotations

import errno

from s3dlio._errors import CorruptDataError, S3dlioError, StorageError
from s3dlio._reader import read_range
from s3dlio._stores.registry import store_for
from s3dlio._uri import Uri

# Each that fails means that somebody else has replaced it.
_ATTEMPTS = 100


def read_document(uri: Uri, max_nbytes: int) -> bytes:
    """Begins again when it is replaced meanwhile: to open it and to read it are two requests."""
    for attempt in range(1, _ATTEMPTS + 1):
        source = store_for(uri).open(uri)
        try:
            if source.size > max_nbytes:
                raise CorruptDataError(f"load {uri}: {source.size} bytes are too many", operation="load", uri=str(uri))
            return read_range(source, 0, source.size)
        except StorageError as error:
            if error.errno != errno.ESTALE or attempt == _ATTEMPTS:
                raise
        finally:
            source.close()
    raise AssertionError


def is_damage(error: S3dlioError) -> bool:
    """Whether the object itself is to blame, and not the way to it."""
    return isinstance(error, CorruptDataError) or error.errno in (errno.EIO, errno.EBADMSG, errno.EUCLEAN)
