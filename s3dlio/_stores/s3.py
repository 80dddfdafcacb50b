"""``s3://bucket/key``: Amazon S3 and compatible stores."""

from __future__ import annotations

import base64
import errno
import functools
import hashlib
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote

from s3dlio import _errors
from s3dlio._native import crc32c, ffi, new_bytes, pointer
from s3dlio._stores import s3_xml
from s3dlio._stores.base import ObjectStat, StagedStream, StaleUpload, Store
from s3dlio._stores.s3_client import Answer, Call, Connection, DeclinedError, Request, connection_for
from s3dlio._stores.s3_settings import current_settings
from s3dlio._stores.s3_upload import (
    MAX_PART,
    MIN_PART,
    S3Sink,
    abort_call,
    base64_crc,
    head_call,
    part_size,
    put_whole,
    whole_crc,
)
from s3dlio._uri import Uri

if TYPE_CHECKING:
    from s3dlio._options import WriterOptions

DEFAULT_BLOCK = 8 << 20
# What one request reads, of a large object several at once.
RANGE = 8 << 20
RANGES_IN_FLIGHT = 8
# A larger object goes through a stream: in parts, several at once.
WHOLE_NBYTES = 16 << 20


class S3Source:
    """One version of an object: a read after it was replaced fails."""

    def __init__(self, connection: Connection, uri: Uri, answer: Answer) -> None:
        self._connection = connection
        self._uri = uri
        self._etag = _header(answer, "etag", uri, "open")
        self._size = int(_header(answer, "content-length", uri, "open"))
        self._crc32c = whole_crc(answer)
        if self._size == 0 and not self.can_have(0):
            # Nothing will be read that could show it.
            raise _errors.CorruptDataError(
                f"open {uri}: 0 bytes with the checksum {self._crc32c} cannot be", operation="open", uri=str(uri)
            )

    @property
    def size(self) -> int:
        return self._size

    def readinto(self, start: int, data: Any) -> int:
        count = self._read(start, data)
        if count == self._size and self._crc32c:
            # All of it, so that its checksum can be compared: a bit may have flipped on the way.
            for is_last in (False, True):
                if self.can_have(crc32c(ffi.buffer(data, count))):
                    break
                if is_last:
                    text = f"read {self._uri}: the bytes that came are not those with the checksum {self._crc32c}"
                    raise _errors.CorruptDataError(text, operation="read", uri=str(self._uri))
                self._read(start, data)
        return count

    def can_have(self, crc32c: int) -> bool:
        return self._crc32c in ("", base64_crc(crc32c))

    def _read(self, start: int, data: Any) -> int:
        wanted = max(0, min(len(data), self._size - start))
        steps = range(0, wanted, RANGE)
        under_way: list[tuple[Request, int, int]] = []
        try:
            for begin in steps:
                if len(under_way) == RANGES_IN_FLIGHT:
                    self._check(*under_way[0])
                    del under_way[0]
                length = min(RANGE, wanted - begin)
                request = Request(self._connection, self._call(start + begin, data + begin, length))
                under_way.append((request, start + begin, length))
                request.start()
            while under_way:
                self._check(*under_way[0])
                del under_way[0]
        finally:
            for request, _, _ in under_way:
                request.cancel()
        return wanted

    def _call(self, start: int, data: Any, length: int) -> Call:
        return Call(
            "GetObject",
            "GET",
            self._uri.container,
            self._uri.key,
            headers=[("range", f"bytes={start}-{start + length - 1}"), ("if-match", self._etag)],
            into=ffi.from_buffer(ffi.buffer(data, length)),
            accept=(206, 200) if length == self._size else (206,),
        )

    def _check(self, request: Request, start: int, length: int) -> None:
        try:
            answer = request.wait()
        except _errors.S3dlioError as error:
            if error.status == 412:
                raise _errors.StorageError(
                    f"read {self._uri}: it was replaced since it was opened", operation="read", uri=str(self._uri)
                ) from error
            raise
        told = answer.headers.get("content-length"), answer.headers.get("content-range", "")
        whole = f"bytes {start}-{start + length - 1}/{self._size}"
        if told[0] != str(length) or (answer.status == 206 and told[1] != whole):
            raise _errors.StorageError(
                f"read {self._uri}: {whole} were asked for, and the store sent {told[0]} as {told[1] or 'all'}",
                operation="read",
                uri=str(self._uri),
            )

    def close(self) -> None:
        pass


class _Place:
    """Where the bytes of an object go whose size is told by the answer that brings them."""

    data = b""

    def make(self, headers: dict[str, str]) -> Any:
        size = int(headers.get("content-length", RANGE + 1))
        if size > RANGE:
            raise DeclinedError
        self.data = new_bytes(size)
        return pointer(self.data)


class S3Store(Store):
    """Buckets and what is in them."""

    def create(self, uri: Uri, options: WriterOptions) -> StagedStream:
        _check_object(uri, "open")
        size = max(options.block_size() or DEFAULT_BLOCK, MIN_PART)
        sink = S3Sink(connection_for(current_settings()), uri, options.content_type)
        stream = StagedStream(
            sink, uri, replace(options, buffer_size=size), size_of=lambda index: part_size(index + 1, size)
        )
        sink.on_failure = stream.fail
        return stream

    def put(self, uri: Uri, data: bytes | Any, options: WriterOptions) -> None:
        if len(data) > WHOLE_NBYTES or options.compression:
            super().put(uri, data, options)
            return
        _check_object(uri, "put")
        view = memoryview(data if isinstance(data, bytes) else ffi.buffer(data))
        put_whole(connection_for(current_settings()), uri, view, crc32c(view), options.content_type)

    def open(self, uri: Uri) -> S3Source:
        connection = connection_for(current_settings())
        return S3Source(connection, uri, self._head(connection, uri, "open"))

    def get(self, uri: Uri) -> bytes | None:
        """By one request, unless the object is so large that several at once are better."""
        _check_object(uri, "get", kind=_errors.NotFoundError)
        place = _Place()
        call = Call(
            "GetObject",
            "GET",
            uri.container,
            uri.key,
            headers=[("x-amz-checksum-mode", "ENABLED")],
            make_room=place.make,
            accept=(200,),
        )
        try:
            answer = connection_for(current_settings()).ask(call)
        except DeclinedError:
            return None
        checksum = whole_crc(answer)
        is_wrong = checksum and base64_crc(crc32c(place.data)) != checksum
        # A flipped bit, or an answer that is no object: the longer way finds out.
        return None if is_wrong or "etag" not in answer.headers else place.data

    def stat(self, uri: Uri) -> ObjectStat:
        answer = self._head(connection_for(current_settings()), uri, "stat")
        date = _header(answer, "last-modified", uri, "stat")
        changed = _parsed(lambda: parsedate_to_datetime(date), "stat", uri)
        return ObjectStat(
            size=int(_header(answer, "content-length", uri, "stat")),
            last_modified=changed.strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
            etag=_header(answer, "etag", uri, "stat").strip('"'),
        )

    def _head(self, connection: Connection, uri: Uri, operation: str) -> Answer:
        _check_object(uri, operation, kind=_errors.NotFoundError)
        return connection.ask(head_call(uri))

    def copy(self, source: Uri, target: Uri) -> bool:
        _check_object(target, "copy")
        connection = connection_for(current_settings())
        found = self._head(connection, source, "copy")
        if int(_header(found, "content-length", source, "copy")) > MAX_PART:
            return False
        headers = [
            ("x-amz-copy-source", quote(f"/{source.container}/{source.key}", safe="-._~/")),
            ("x-amz-copy-source-if-match", _header(found, "etag", source, "copy")),
        ]
        answer = connection.ask(Call("CopyObject", "PUT", target.container, target.key, headers=headers))
        _parsed(lambda: s3_xml.text(s3_xml.parse(answer.body, "CopyObjectResult"), "ETag"), "copy", target)
        return True

    def list(self, uri: Uri, recursive: bool) -> Iterator[Uri]:
        _check_name(uri, "list")
        connection = connection_for(current_settings())
        folder = uri.key
        if folder and not folder.endswith("/"):
            # The object itself is the first of all keys that begin with its name, if there is one.
            page = self._page(connection, uri, folder, "&max-keys=1", None)
            if page.keys[:1] == [uri.key]:
                yield uri
            folder += "/"
        token = None
        while True:
            page = self._page(connection, uri, folder, "" if recursive else "&delimiter=%2F", token)
            for key in page.keys:
                yield Uri(uri.scheme, uri.container, key)
            if page.next_token is None:
                return
            if page.next_token == token:
                raise _errors.StorageError(f"list {uri}: the store repeats a page", operation="list", uri=str(uri))
            token = page.next_token

    def _page(self, connection: Connection, uri: Uri, prefix: str, more: str, token: str | None) -> s3_xml.Listed:
        query = f"list-type=2&encoding-type=url&prefix={quote(prefix, safe='')}{more}"
        if token is not None:
            query = f"continuation-token={quote(token, safe='')}&{query}"
        answer = connection.ask(Call("ListObjectsV2", "GET", uri.container, query=query))
        return _parsed(functools.partial(s3_xml.parse_list, answer.body), "list", uri)

    def delete(self, uri: Uri, recursive: bool) -> None:
        _check_name(uri, "delete")
        connection = connection_for(current_settings())
        if not recursive:
            _check_object(uri, "delete", kind=_errors.NotAnObjectError)
            connection.ask(Call("DeleteObject", "DELETE", uri.container, uri.key))
            return
        batch: list[str] = []
        for found in self.list(uri, recursive=True):
            batch.append(found.key)
            if len(batch) == 1000:
                self._delete_batch(connection, uri, batch)
                batch = []
        if batch:
            self._delete_batch(connection, uri, batch)

    def _delete_batch(self, connection: Connection, uri: Uri, keys: Sequence[str]) -> None:
        body = s3_xml.delete_request(keys)
        digest = base64.b64encode(hashlib.md5(body, usedforsecurity=False).digest()).decode()
        answer = connection.ask(
            Call("DeleteObjects", "POST", uri.container, query="delete=", headers=[("content-md5", digest)], data=body)
        )
        failed = _parsed(lambda: s3_xml.parse_delete(answer.body), "delete", uri)
        if failed:
            key, code, message = failed[0]
            raise _errors.StorageError(
                f"delete {uri}: {len(failed)} objects are left, among them {key}: {code}: {message}",
                operation="delete",
                uri=str(uri),
            )

    def create_bucket(self, uri: Uri) -> None:
        _check_bucket(uri, "create bucket")
        settings = current_settings()
        body = None
        # us-east-1 is the one region that may not be named (CreateBucket, "LocationConstraint").
        if settings.endpoint_url is None and settings.region != "us-east-1":
            body = s3_xml.create_bucket_request(settings.region or "")
        try:
            connection_for(settings).ask(Call("CreateBucket", "PUT", uri.container, data=body))
        except _errors.S3dlioError as error:
            if error.code != "BucketAlreadyOwnedByYou":
                raise

    def delete_bucket(self, uri: Uri) -> None:
        _check_bucket(uri, "delete bucket")
        connection = connection_for(current_settings())
        # Some stores delete a bucket with all that is in it.
        page = self._page(connection, uri, "", "&max-keys=1", None)
        if page.keys:
            raise _errors.StorageError(
                f"delete bucket {uri}: it is not empty; delete its objects first",
                operation="delete bucket",
                uri=str(uri),
                errno=errno.ENOTEMPTY,
            )
        connection.ask(Call("DeleteBucket", "DELETE", uri.container))

    def stale_uploads(self, uri: Uri) -> Iterator[StaleUpload]:
        _check_name(uri, "list stale uploads")
        connection = connection_for(current_settings())
        after: tuple[str, str] | None = None
        while True:
            query = f"uploads=&encoding-type=url&prefix={quote(uri.key, safe='')}"
            if after is not None:
                query += f"&key-marker={quote(after[0], safe='')}&upload-id-marker={quote(after[1], safe='')}"
            body = connection.ask(Call("ListMultipartUploads", "GET", uri.container, query=query)).body
            before = after
            found, after = _parsed(functools.partial(s3_xml.parse_uploads, body), "list stale uploads", uri)
            if after is not None and after == before:
                raise _errors.StorageError(f"list {uri}: the store repeats a page", operation="list", uri=str(uri))
            folder = uri.key if not uri.key or uri.key.endswith("/") else uri.key + "/"
            for upload in found:
                if upload.key != uri.key and not upload.key.startswith(folder):
                    continue
                yield StaleUpload(str(replace(uri, key=upload.key)), upload.upload_id, upload.begun)
            if after is None:
                return

    def abort_upload(self, uri: Uri, upload_id: str) -> None:
        with suppress(_errors.NotFoundError):
            connection_for(current_settings()).ask(abort_call(uri, upload_id))


Parsed = TypeVar("Parsed")


# Wider than "General purpose bucket naming rules", for compatible stores, and nothing that has a meaning in a request.
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,254}")


def _check_name(uri: Uri, operation: str) -> None:
    if not _BUCKET.fullmatch(uri.container):
        what = f"{uri.container!r} is no name of a bucket" if uri.container else "names no bucket"
        raise _errors.InvalidInputError(f"{operation} {uri}: {what}", operation=operation, uri=str(uri))


def _check_bucket(uri: Uri, operation: str) -> None:
    _check_name(uri, operation)
    if uri.key:
        raise _errors.InvalidInputError(f"{operation} {uri}: it must be s3://bucket", operation=operation, uri=str(uri))


def _check_object(uri: Uri, operation: str, kind: type[_errors.S3dlioError] = _errors.InvalidInputError) -> None:
    _check_name(uri, operation)
    if not uri.key or (uri.key.endswith("/") and kind is not _errors.NotFoundError):
        raise kind(f"{operation} {uri}: names no object", operation=operation, uri=str(uri))


def _header(answer: Answer, name: str, uri: Uri, operation: str) -> str:
    value = answer.headers.get(name)
    if not value:
        raise _errors.StorageError(
            f"{operation} {uri}: the store's answer has no {name}", operation=operation, uri=str(uri)
        )
    return value


def _parsed(parse: Callable[[], Parsed], operation: str, uri: Uri) -> Parsed:
    try:
        return parse()
    except (s3_xml.MalformedAnswerError, ValueError) as error:
        raise _errors.StorageError(
            f"{operation} {uri}: the store's answer makes no sense: {error}", operation=operation, uri=str(uri)
        ) from error
