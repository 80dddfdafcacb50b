"""``latest.json``: which manifest is the newest.

A hint for people and other programs, and for stores whose lists lag behind: what `CheckpointStore` loads is the newest
manifest that it finds, by the list or by the pointer.  It moves forward only, by replacing it on the condition that
nobody else has.
"""

from __future__ import annotations

import errno
from collections.abc import Callable

from s3dlio._errors import NotAnObjectError, NotFoundError, PermissionDeniedError, S3dlioError
from s3dlio._logging import logger
from s3dlio._options import WriterOptions
from s3dlio._stores.registry import store_for
from s3dlio._uri import Uri
from s3dlio.checkpoint.documents import is_damage, read_document
from s3dlio.checkpoint.layout import LATEST, Name, parse_pointer, pointer_document

# Each that fails means that somebody else has moved it.
_ATTEMPTS = 100

# A pointer has about 200 bytes.
_MAX_SIZE = 64 << 10


def pointed(base: Uri) -> Name | None:
    """The checkpoint that the pointer names, if it names one and can be read."""
    uri = base.below(LATEST)
    try:
        return parse_pointer(read_document(uri, _MAX_SIZE))
    except NotFoundError:
        return None
    except S3dlioError as error:
        is_no_file = isinstance(error, NotAnObjectError) or error.errno in (errno.ELOOP, errno.ENXIO)
        if not (is_no_file or is_damage(error) or isinstance(error, PermissionDeniedError)):
            raise
        logger.warning("passed over: %s", error)
        return None


def is_there(base: Uri, name: Name) -> bool:
    uri = base.below(name.manifest_key)
    try:
        store_for(uri).stat(uri)
    except NotFoundError:
        return False
    return True


def advance(base: Uri, name: Name, options: WriterOptions) -> None:
    """Lets the pointer name this checkpoint, unless it names a newer one that is there."""
    _replace(base, name, options, lambda there: there >= name and is_there(base, there))


def retract(base: Uri, left: Name | None, options: WriterOptions) -> None:
    """Lets a pointer to a checkpoint that was deleted name this one, or none."""
    _replace(base, left, options, lambda there: is_there(base, there))


def _replace(base: Uri, name: Name | None, options: WriterOptions, is_good: Callable[[Name], bool]) -> None:
    """Lets the pointer name this, unless the one that it names is good.  The checkpoints are in place: that the pointer
    cannot be moved is no failure."""
    uri = base.below(LATEST)
    try:
        for _ in range(_ATTEMPTS):
            # First: if the pointer is replaced in between, nothing can be stored over it.
            etag = _etag_of(uri)
            there = pointed(base)
            if there is not None and is_good(there):
                return
            if store_for(uri).put_if(uri, pointer_document(name), etag, options):
                return
        logger.warning("%s does not name %s: others replace it all the time", uri, name)
    except S3dlioError as error:
        logger.warning("%s does not name %s, which loads find without it: %s", uri, name, error)


def _etag_of(uri: Uri) -> str | None:
    try:
        return store_for(uri).stat(uri)["etag"]
    except NotFoundError:
        return None
