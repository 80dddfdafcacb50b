"""Operations on whole objects: a URI in, one method of its store called."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from s3dlio._errors import InvalidInputError, NotAnObjectError, NotFoundError
from s3dlio._logging import logger
from s3dlio._native import pointer
from s3dlio._options import WriterOptions, check_offered, whole_number, writer_options
from s3dlio._reader import read_range
from s3dlio._stores.base import ObjectStat, StaleUpload
from s3dlio._stores.registry import store_for
from s3dlio._uri import Uri, parse_uri
from s3dlio._writer import ObjectWriter

if TYPE_CHECKING:
    from typing_extensions import Buffer


def create_filesystem_writer(uri: str, options: WriterOptions | None = None, **settings: Any) -> ObjectWriter:
    """Begins a file at ``file:///abs/path`` or ``file://localhost/abs/path`` (RFC 8089), written through the page
    cache; a long one goes on with O_DIRECT, unless the options forbid it (``direct`` of `WriterOptions`).

    Settings are those of `open_writer`.  Missing folders are created with the file.  With compression the name gets
    ``.zst``, once.  Raises InvalidInputError for a URI that is not absolute or of another scheme, NotAnObjectError for
    a folder, both with the URI in the text.
    """
    return ObjectWriter(_uri_of(uri, ("file",)), writer_options(options, settings))


def create_direct_filesystem_writer(uri: str, options: WriterOptions | None = None, **settings: Any) -> ObjectWriter:
    """Begins a file at ``direct:///abs/path`` or ``file:///abs/path``, written with O_DIRECT where the file system
    offers it, else through the page cache; `ObjectWriter.stats` tells which, and why.

    Otherwise as `create_filesystem_writer`.
    """
    parsed = _uri_of(uri, ("file", "direct"))
    return ObjectWriter(replace(parsed, scheme="direct"), writer_options(options, settings))


def create_s3_writer(uri: str, options: WriterOptions | None = None, **settings: Any) -> ObjectWriter:
    """Begins an object at ``s3://bucket/key``: a multipart upload, or one PUT for what fits into a part.

    Settings are those of `open_writer`; how S3 is reached is said by `configure_s3` and the environment.
    ``buffer_size`` is that of a part, at least 5 MiB; ``None`` is 8 MiB.  With compression the key gets ``.zst``, once.
    Raises InvalidInputError for a URI of another scheme or without a bucket or key.
    """
    return ObjectWriter(_uri_of(uri, ("s3",)), writer_options(options, settings))


def create_azure_writer(uri: str, options: WriterOptions | None = None, **settings: Any) -> ObjectWriter:
    """Begins a blob at ``az://account/container/blob``: staged blocks and one commit, or one Put Blob for what fits
    into a block.

    Settings are those of `open_writer`; how Azure is reached, and which parts of the URI may be left out, is said by
    `configure_azure` and the environment.  ``buffer_size`` is that of a block; ``None`` is 8 MiB.  With compression the
    name gets ``.zst``, once.  Raises InvalidInputError for a URI of another scheme or without account, container or
    blob.
    """
    return ObjectWriter(_uri_of(uri, ("az",)), writer_options(options, settings))


def _uri_of(uri: str, schemes: tuple[str, ...]) -> Uri:
    parsed = parse_uri(uri)
    if parsed.scheme not in schemes:
        raise InvalidInputError(f"{uri!r} is no {' or '.join(schemes)} URI", operation="open", uri=uri)
    return parsed


def get(uri: str) -> bytes:
    """Returns the whole object, read-only.  A large one is read by several requests at once.

    Raises NotFoundError where there is none, and CorruptDataError where the bytes are not those of the checksum that S3
    keeps; that of Azure is not looked at.
    """
    began = time.monotonic()
    parsed = parse_uri(uri)
    data = store_for(parsed).get(parsed)
    if data is None:
        return get_range(uri, 0)
    logger.debug("read %s: %d bytes, %.3f s", uri, len(data), time.monotonic() - began)
    return data


def get_range(uri: str, offset: int, length: int | None = None) -> bytes:
    """Returns ``length`` bytes of an object from byte ``offset`` on; ``None`` is all the rest.

    A range that goes past the end gives what there is, possibly ``b''``.  Raises InvalidInputError for a negative
    offset or length.
    """
    offset, length = checked_range(uri, offset, length)
    began = time.monotonic()
    parsed = parse_uri(uri)
    source = store_for(parsed).open(parsed)
    try:
        data = read_range(source, offset, source.size if length is None else length)
    finally:
        source.close()
    logger.debug("read %s: %d bytes from %d on, %.3f s", uri, len(data), offset, time.monotonic() - began)
    return data


def checked_range(uri: str, offset: int, length: int | None) -> tuple[int, int | None]:
    offset = whole_number("offset", offset)
    length = None if length is None else whole_number("length", length)
    if offset < 0 or (length is not None and length < 0):
        raise InvalidInputError(
            f"get {uri}: offset {offset} and length {length} must not be negative", operation="get", uri=uri
        )
    return offset, length


def put(uri: str, data: Buffer, options: WriterOptions | None = None, **settings: Any) -> None:
    """Stores a whole object: complete, and durable as the options say, when the call returns.

    ``data`` is anything with a C-contiguous buffer; settings are those of `open_writer`.  With compression the object's
    name gets ``.zst``, and an object of the plain name stays as it is.  A file of up to 1 MiB is one step, which
    neither Ctrl-C nor ``timeout`` breaks off.
    """
    parsed, content, options = put_arguments(uri, data, writer_options(options, settings))
    began = time.monotonic()
    store_for(parsed).put(parsed, content, options)
    logger.debug("put %s: %d bytes, %.3f s", uri, len(content), time.monotonic() - began)


def put_arguments(uri: str, data: Buffer, options: WriterOptions) -> tuple[Uri, bytes | Any, WriterOptions]:
    """What a store's `put` takes."""
    parsed = parse_uri(uri)
    check_offered(options, parsed)
    if options.compression:
        parsed = replace(parsed, key=options.stored_name(parsed.key))
    try:
        return parsed, data if type(data) is bytes else pointer(data), options
    except (TypeError, InvalidInputError) as error:
        raise type(error)(f"put {uri}: {error}") from None


def stat(uri: str) -> ObjectStat:
    """Returns ``{'size': bytes, 'last_modified': 'YYYY-MM-DDThh:mm:ss.…Z', 'etag': …}``.

    Raises NotFoundError where there is no object, NotAnObjectError for a folder of files.
    """
    parsed = parse_uri(uri)
    return store_for(parsed).stat(parsed)


def exists(uri: str) -> bool:
    """Whether there is an object at ``uri``.  A folder is none, and in a bucket that does not exist there are none.
    Raises when that cannot be found out."""
    try:
        stat(uri)
    except (NotFoundError, NotAnObjectError):
        return False
    return True


def list_objects(uri: str, recursive: bool = True, pattern: str | None = None) -> list[str]:
    """Returns the URIs of the objects below ``uri`` as a folder, or of the object itself, in the order of their names.

    ``s3://bucket/run1`` is the object of that name and what is in ``run1/``, not ``run10``: names end at a slash.
    Without ``recursive`` a deeper folder is one entry that ends in ``/``.  ``pattern`` is a regular expression; what it
    matches nowhere in its name below ``uri`` is left out.  A folder that does not exist has no objects; one
    below a file, or behind a link that leads nowhere, raises NotFoundError.  Any failure raises: a list is complete.
    Links to folders are not followed.
    """
    return [*iter_objects(uri, recursive, pattern)]


def iter_objects(uri: str, recursive: bool = True, pattern: str | None = None) -> Iterator[str]:
    """Yields what `list` returns, one by one, for folders with more objects than should be in memory.

    A failure comes up where it is met, after what was found before it."""
    parsed = parse_uri(uri)
    is_wanted = filter_for(uri, pattern)
    found = store_for(parsed).list(parsed, recursive)
    return (str(each) for each in found if is_wanted(each))


def filter_for(uri: str, pattern: str | None) -> Callable[[Uri], bool]:
    """Which of the objects below ``uri`` a regular expression wants."""
    if pattern is None:
        return lambda found: True
    try:
        wanted = re.compile(pattern)
    except re.error as error:
        raise InvalidInputError(f"list {uri}: {pattern!r} is no regular expression: {error}", uri=uri) from error
    base = parse_uri(uri).key

    def is_wanted(found: Uri) -> bool:
        name = found.key[len(base) :].lstrip("/") if found.key != base else found.key.rpartition("/")[2]
        return wanted.search(name) is not None

    return is_wanted


def delete(uri: str, recursive: bool = False) -> None:
    """Deletes an object, or with ``recursive`` everything below a folder.

    An object that is not there is no error, as in object stores.  A folder without ``recursive`` raises
    NotAnObjectError and deletes nothing: of files each folder, elsewhere a URI that names no object, or that ends in
    ``/`` where there is none of that very name.  (An object store does not know folders: there ``a/b`` is the object of
    that name, also when others begin with ``a/b/``.)
    """
    parsed = parse_uri(uri)
    store_for(parsed).delete(parsed, recursive)


def create_bucket(uri: str) -> None:
    """Creates the bucket ``s3://bucket`` or the container ``az://account/container``; one that is yours already is no
    error.

    Other stores raise UnsupportedError: a folder of files is created with its first file.
    """
    parsed = parse_uri(uri)
    store_for(parsed).create_bucket(parsed)


def delete_bucket(uri: str) -> None:
    """Deletes the bucket ``s3://bucket`` or the container ``az://account/container``, which must be empty: else
    StorageError, and nothing is deleted."""
    parsed = parse_uri(uri)
    store_for(parsed).delete_bucket(parsed)


def list_stale_uploads(uri: str) -> list[StaleUpload]:
    """Returns the multipart uploads below ``s3://bucket/prefix`` that were neither completed nor aborted, those still
    under way among them.  A killed process leaves one for each of its writers; their parts are paid for."""
    parsed = parse_uri(uri)
    return [*store_for(parsed).stale_uploads(parsed)]


def abort_stale_uploads(uri: str, older_than: timedelta | float) -> list[StaleUpload]:
    """Aborts the uploads below ``s3://bucket/prefix`` that were begun longer ago than ``older_than``, a timedelta or
    seconds, and returns them.  What is younger may still be under way."""
    before = begun_before(uri, older_than)
    store = store_for(parse_uri(uri))
    doomed = [upload for upload in list_stale_uploads(uri) if upload.begun <= before]
    for upload in doomed:
        store.abort_upload(parse_uri(upload.uri), upload.upload_id)
    return doomed


def begun_before(uri: str, older_than: timedelta | float) -> datetime:
    """The moment before which was begun what is older than that."""
    if isinstance(older_than, bool) or not isinstance(older_than, (timedelta, int, float)):
        raise TypeError(f"older_than must be a timedelta or seconds, not {older_than!r}")
    try:
        age = older_than if isinstance(older_than, timedelta) else timedelta(seconds=older_than)
        if age < timedelta(0):
            raise InvalidInputError(f"older_than must not be negative, and is {older_than}", uri=uri)
        return datetime.now(UTC) - age
    except (OverflowError, ValueError) as error:
        if isinstance(error, InvalidInputError):
            raise
        raise InvalidInputError(f"older_than is out of range: {older_than}", uri=uri) from None
