"""``s3://bucket/key``: Amazon S3 and compatible stores."""

from __future__ import annotations

import base64
import errno
import functools
import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote

from s3dlio import _errors
from s3dlio._native import crc32c, ffi
from s3dlio._stores import s3_xml
from s3dlio._stores.base import ObjectStat, StagedStream, StaleUpload, Store
from s3dlio._stores.s3_client import Answer, Call, Connection, connection_for
from s3dlio._stores.s3_settings import current_settings
from s3dlio._stores.s3_upload import MIN_PART, S3Sink, abort_call, base64_crc, part_size, put_whole
from s3dlio._uri import Uri, parse_uri

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
        self._crc32c = answer.headers.get("x-amz-checksum-crc32c", "")

    @property
    def size(self) -> int:
        return self._size

    def readinto(self, start: int, data: Any) -> int:
        count = self._read(start, data)
        if count == self._size and self._crc32c and "-" not in self._crc32c:
            # All of it, so that its checksum can be compared: a bit may have flipped on the way.
            for is_last in (False, True):
                if base64_crc(crc32c(ffi.buffer(data, count))) == self._crc32c:
                    break
                if is_last:
                    text = f"read {self._uri}: the bytes that came are not those with the checksum {self._crc32c}"
                    raise _errors.CorruptDataError(text, operation="read", uri=str(self._uri))
                self._read(start, data)
        return count

    def _read(self, start: int, data: Any) -> int:
        wanted = max(0, min(len(data), self._size - start))
        steps = range(0, wanted, RANGE)
        under_way: list[tuple[Any, int]] = []
        try:
            for begin in steps:
                if len(under_way) == RANGES_IN_FLIGHT:
                    self._check(*under_way.pop(0))
                length = min(RANGE, wanted - begin)
                under_way.append((self._connection.begin(self._call(start + begin, data + begin, length)), length))
            while under_way:
                self._check(*under_way.pop(0))
        finally:
            for request, _ in under_way:
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

    def _check(self, request: Any, length: int) -> None:
        try:
            answer = request.wait()
        except _errors.S3dlioError as error:
            if error.status == 412:
                raise _errors.StorageError(
                    f"read {self._uri}: it was replaced since it was opened", operation="read", uri=str(self._uri)
                ) from error
            raise
        if int(answer.headers.get("content-length", "-1")) != length:
            raise _errors.StorageError(
                f"read {self._uri}: {length} bytes were asked for, and the store announced "
                f"{answer.headers.get('content-length')}",
                operation="read",
                uri=str(self._uri),
            )

    def close(self) -> None:
        pass


class S3Store(Store):
    """Buckets and what is in them."""

    def create(self, uri: Uri, options: WriterOptions) -> StagedStream:
        _check_object(uri, "open")
        size = max(options.block_size() or DEFAULT_BLOCK, MIN_PART)
        sink = S3Sink(connection_for(current_settings()), uri)
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
        put_whole(connection_for(current_settings()), uri, view, crc32c(view))

    def open(self, uri: Uri) -> S3Source:
        connection = connection_for(current_settings())
        return S3Source(connection, uri, self._head(connection, uri, "open"))

    def stat(self, uri: Uri) -> ObjectStat:
        answer = self._head(connection_for(current_settings()), uri, "stat")
        changed = parsedate_to_datetime(_header(answer, "last-modified", uri, "stat"))
        return ObjectStat(
            size=int(_header(answer, "content-length", uri, "stat")),
            last_modified=changed.strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
            etag=_header(answer, "etag", uri, "stat").strip('"'),
        )

    def _head(self, connection: Connection, uri: Uri, operation: str) -> Answer:
        _check_object(uri, operation, kind=_errors.NotFoundError)
        return connection.ask(
            Call("HeadObject", "HEAD", uri.container, uri.key, headers=[("x-amz-checksum-mode", "ENABLED")])
        )

    def list(self, uri: Uri, recursive: bool) -> Iterator[Uri]:
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
            token = page.next_token
            if token is None:
                return

    def _page(self, connection: Connection, uri: Uri, prefix: str, more: str, token: str | None) -> s3_xml.Listed:
        query = f"list-type=2&encoding-type=url&prefix={quote(prefix, safe='')}{more}"
        if token is not None:
            query = f"continuation-token={quote(token, safe='')}&{query}"
        answer = connection.ask(Call("ListObjectsV2", "GET", uri.container, query=query))
        return _parsed(functools.partial(s3_xml.parse_list, answer.body), "list", uri)

    def delete(self, uri: Uri, recursive: bool) -> None:
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
        connection = connection_for(current_settings())
        after: tuple[str, str] | None = None
        while True:
            query = f"uploads=&encoding-type=url&prefix={quote(uri.key, safe='')}"
            if after is not None:
                query += f"&key-marker={quote(after[0], safe='')}&upload-id-marker={quote(after[1], safe='')}"
            body = connection.ask(Call("ListMultipartUploads", "GET", uri.container, query=query)).body
            found, after = _parsed(functools.partial(s3_xml.parse_uploads, body), "list stale uploads", uri)
            for upload in found:
                begun = datetime.fromisoformat(upload.begun)
                yield StaleUpload(str(replace(uri, key=upload.key)), upload.upload_id, begun)
            if after is None:
                return

    def abort_upload(self, upload: StaleUpload) -> None:
        uri = parse_uri(upload.uri)
        call = abort_call(uri, upload.upload_id)
        with suppress(_errors.NotFoundError):
            connection_for(current_settings()).ask(call)


Parsed = TypeVar("Parsed")


def _check_bucket(uri: Uri, operation: str) -> None:
    if not uri.container or uri.key:
        raise _errors.InvalidInputError(f"{operation} {uri}: it must be s3://bucket", operation=operation, uri=str(uri))


def _check_object(uri: Uri, operation: str, kind: type[_errors.S3dlioError] = _errors.InvalidInputError) -> None:
    if not uri.container:
        raise _errors.InvalidInputError(f"{operation} {uri}: names no bucket", operation=operation, uri=str(uri))
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
    except s3_xml.MalformedAnswerError as error:
        raise _errors.StorageError(
            f"{operation} {uri}: the store's answer makes no sense: {error}", operation=operation, uri=str(uri)
        ) from error
