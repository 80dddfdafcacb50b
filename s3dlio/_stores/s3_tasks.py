"""What is asked of S3: each operation is a coroutine that waits for its requests, whoever runs it."""

from __future__ import annotations

import base64
import errno
import functools
import hashlib
import re
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote

from s3dlio import _errors
from s3dlio._native import crc32c, ffi, new_bytes, pointer
from s3dlio._stores import s3_xml
from s3dlio._stores.base import ObjectStat, StaleUpload, folder_error
from s3dlio._stores.s3_client import Connection
from s3dlio._stores.s3_http import Answer, Call, DeclinedError
from s3dlio._stores.s3_request import Request, breaking_off
from s3dlio._stores.s3_upload import MAX_PART, abort_call, base64_crc, head_call, put_whole, whole_crc
from s3dlio._uri import Uri

if TYPE_CHECKING:
    from s3dlio._options import WriterOptions

# What one request reads, of a large object several at once.
RANGE = 8 << 20
RANGES_IN_FLIGHT = 8


@dataclass(frozen=True)
class Version:
    """One version of an object: a read after it was replaced fails."""

    uri: Uri
    size: int
    etag: str
    crc32c: str

    def can_have(self, crc32c: int) -> bool:
        """Whether the bytes may have this checksum; where the store keeps none, they may have any."""
        return self.crc32c in ("", base64_crc(crc32c))


class _Place:
    """Where the bytes of an object go whose size is told by the answer that brings them."""

    data = b""
    # Of an answer that was too large to be taken.
    headers: dict[str, str] | None = None

    def make(self, headers: dict[str, str]) -> Any:
        self.headers = headers
        size = int(headers.get("content-length", RANGE + 1))
        if size > RANGE:
            raise DeclinedError
        self.data = new_bytes(size)
        return pointer(self.data)


class S3Tasks:
    """The operations over one connection.  What they take and raise is that of `Store`'s methods."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection

    async def open(self, uri: Uri) -> Version:
        version = _version(uri, await self._head(uri, "open"))
        if version.size == 0 and not version.can_have(0):
            # Nothing will be read that could show it.
            text = f"open {uri}: 0 bytes with the checksum {version.crc32c} cannot be"
            raise _errors.CorruptDataError(text, operation="open", uri=str(uri))
        return version

    async def read(self, version: Version, start: int, data: Any) -> int:
        """Fills memory with the bytes from ``start`` on, several ranges at once.  Returns their count."""
        count = await self._read(version, start, data)
        if count == version.size and version.crc32c:
            # All of it, so that its checksum can be compared: a bit may have flipped on the way.
            for is_last in (False, True):
                if version.can_have(crc32c(ffi.buffer(data, count))):
                    break
                if is_last:
                    text = f"read {version.uri}: the bytes that came are not those with the checksum {version.crc32c}"
                    raise _errors.CorruptDataError(text, operation="read", uri=str(version.uri))
                await self._read(version, start, data)
        return count

    async def _read(self, version: Version, start: int, data: Any) -> int:
        wanted = max(0, min(len(data), version.size - start))
        under_way: list[tuple[Request, int, int]] = []
        try:
            for begin in range(0, wanted, RANGE):
                if len(under_way) == RANGES_IN_FLIGHT:
                    await self._check(version, *under_way[0])
                    del under_way[0]
                length = min(RANGE, wanted - begin)
                request = Request(self.connection, self._range_call(version, start + begin, data + begin, length))
                under_way.append((request, start + begin, length))
                request.start()
            while under_way:
                await self._check(version, *under_way[0])
                del under_way[0]
        except BaseException as reason:
            # Who waits for his turn first, or he would have it meanwhile.
            await breaking_off([request for request, _, _ in reversed(under_way)], reason)
            raise
        return wanted

    def _range_call(self, version: Version, start: int, data: Any, length: int) -> Call:
        return Call(
            "GetObject",
            "GET",
            version.uri.container,
            version.uri.key,
            headers=[("range", f"bytes={start}-{start + length - 1}"), ("if-match", version.etag)],
            into=ffi.from_buffer(ffi.buffer(data, length)),
            accept=(206, 200) if length == version.size else (206,),
        )

    async def _check(self, version: Version, request: Request, start: int, length: int) -> None:
        uri = version.uri
        try:
            answer = await request
        except _errors.S3dlioError as error:
            if error.status == 412:
                raise _replaced(uri) from error
            raise
        if answer.headers.get("etag", version.etag) != version.etag:  # of a store that passes over if-match
            raise _replaced(uri)
        told = answer.headers.get("content-length"), answer.headers.get("content-range", "")
        whole = f"bytes {start}-{start + length - 1}/{version.size}"
        if told[0] != str(length) or (answer.status == 206 and told[1] != whole):
            raise _errors.StorageError(
                f"read {uri}: {whole} were asked for, and the store sent {told[0]} as {told[1] or 'all'}",
                operation="read",
                uri=str(uri),
            )

    async def get(self, uri: Uri) -> bytes:
        """By one request, unless the object is so large that several at once are better."""
        check_object(uri, "get", kind=_errors.NotFoundError)
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
            answer = await self.connection.ask(call)
        except DeclinedError:
            if place.headers is not None and "content-length" in place.headers:
                return await self._get_range(_version(uri, Answer(200, place.headers, b"")), 0, None)
        else:
            checksum = whole_crc(answer)
            if "etag" in answer.headers and (not checksum or base64_crc(crc32c(place.data)) == checksum):
                return place.data
            # A flipped bit, or an answer that is no object: the longer way finds out.
        return await self.get_range(uri, 0, None)

    async def get_range(self, uri: Uri, offset: int, length: int | None) -> bytes:
        return await self._get_range(await self.open(uri), offset, length)

    async def _get_range(self, version: Version, offset: int, length: int | None) -> bytes:
        wanted = max(0, version.size - offset)
        data = new_bytes(wanted if length is None else min(length, wanted))
        count = await self.read(version, offset, pointer(data)) if data else 0
        return data if count == len(data) else data[:count]

    async def put(self, uri: Uri, data: bytes | Any, options: WriterOptions) -> None:
        """By one request."""
        check_object(uri, "put")
        view = memoryview(data if isinstance(data, bytes) else ffi.buffer(data))
        await put_whole(self.connection, uri, view, crc32c(view), options.content_type, options.verify or "none")

    async def put_if(self, uri: Uri, data: bytes, etag: str | None, options: WriterOptions) -> bool:
        check_object(uri, "put")
        condition = ("if-none-match", "*") if etag is None else ("if-match", f'"{etag}"')
        view = memoryview(data)
        try:
            await put_whole(self.connection, uri, view, crc32c(view), options.content_type, "none", condition)
        except _errors.S3dlioError as error:
            if error.status == 501:  # a store that knows no conditions
                await self.put(uri, data, options)
                return True
            # "Conditional requests": another object, none any more, or another request at the same moment.
            if error.status == 412 or error.code in ("NoSuchKey", "ConditionalRequestConflict"):
                return False
            raise
        return True

    async def stat(self, uri: Uri) -> ObjectStat:
        answer = await self._head(uri, "stat")
        date = _header(answer, "last-modified", uri, "stat")
        changed = _parsed(lambda: parsedate_to_datetime(date), "stat", uri)
        return ObjectStat(
            size=int(_header(answer, "content-length", uri, "stat")),
            last_modified=changed.strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
            etag=_header(answer, "etag", uri, "stat").strip('"'),
        )

    async def _head(self, uri: Uri, operation: str) -> Answer:
        check_object(uri, operation, kind=_errors.NotFoundError)
        return await self.connection.ask(head_call(uri))

    async def copy(self, source: Uri, target: Uri) -> bool:
        check_object(target, "copy")
        found = await self._head(source, "copy")
        if int(_header(found, "content-length", source, "copy")) > MAX_PART:
            return False
        headers = [
            ("x-amz-copy-source", quote(f"/{source.container}/{source.key}", safe="-._~/")),
            ("x-amz-copy-source-if-match", _header(found, "etag", source, "copy")),
        ]
        answer = await self.connection.ask(Call("CopyObject", "PUT", target.container, target.key, headers=headers))
        _parsed(lambda: s3_xml.text(s3_xml.parse(answer.body, "CopyObjectResult"), "ETag"), "copy", target)
        return True

    async def list(self, uri: Uri, recursive: bool) -> AsyncIterator[Uri]:
        check_name(uri, "list")
        folder = uri.key
        if folder and not folder.endswith("/"):
            # The object itself is the first of all keys that begin with its name, if there is one.
            page = await self._page(uri, folder, "&max-keys=1", None)
            if page.keys[:1] == [uri.key]:
                yield uri
            folder += "/"
        token = None
        while True:
            page = await self._page(uri, folder, "" if recursive else "&delimiter=%2F", token)
            for key in page.keys:
                if not key.startswith(folder):
                    raise _errors.StorageError(
                        f"list {uri}: the store's answer names {key!r}, which is not below it",
                        operation="list",
                        uri=str(uri),
                    )
                yield Uri(uri.scheme, uri.container, key)
            if page.next_token is None:
                return
            if page.next_token == token:
                raise _errors.StorageError(f"list {uri}: the store repeats a page", operation="list", uri=str(uri))
            token = page.next_token

    async def _page(self, uri: Uri, prefix: str, more: str, token: str | None) -> s3_xml.Listed:
        query = f"list-type=2&encoding-type=url&prefix={quote(prefix, safe='')}{more}"
        if token is not None:
            query = f"continuation-token={quote(token, safe='')}&{query}"
        answer = await self.connection.ask(Call("ListObjectsV2", "GET", uri.container, query=query, about=str(uri)))
        return _parsed(functools.partial(s3_xml.parse_list, answer.body), "list", uri)

    async def delete(self, uri: Uri, recursive: bool) -> None:
        check_name(uri, "delete")
        if not recursive:
            if not uri.key or uri.key.endswith("/"):
                raise folder_error("delete", uri)
            await self.connection.ask(Call("DeleteObject", "DELETE", uri.container, uri.key))
            return
        batch: list[str] = []
        async for found in self.list(uri, recursive=True):
            batch.append(found.key)
            if len(batch) == 1000:
                await self._delete_batch(uri, batch)
                batch = []
        if batch:
            await self._delete_batch(uri, batch)

    async def _delete_batch(self, uri: Uri, keys: Sequence[str]) -> None:
        body = s3_xml.delete_request(keys)
        digest = base64.b64encode(hashlib.md5(body, usedforsecurity=False).digest()).decode()
        headers = [("content-md5", digest)]
        answer = await self.connection.ask(
            Call("DeleteObjects", "POST", uri.container, "", "delete=", headers, body, about=str(uri))
        )
        failed = _parsed(lambda: s3_xml.parse_delete(answer.body), "delete", uri)
        if failed:
            key, code, message = failed[0]
            raise _errors.StorageError(
                f"delete {uri}: {len(failed)} objects are left, among them {key}: {code}: {message}",
                operation="delete",
                uri=str(uri),
            )

    async def create_bucket(self, uri: Uri) -> None:
        _check_bucket(uri, "create bucket")
        settings = self.connection.settings
        body = None
        # us-east-1 is the one region that may not be named (CreateBucket, "LocationConstraint").
        if settings.endpoint_url is None and settings.region != "us-east-1":
            body = s3_xml.create_bucket_request(settings.region or "")
        try:
            await self.connection.ask(Call("CreateBucket", "PUT", uri.container, data=body))
        except _errors.S3dlioError as error:
            if error.code != "BucketAlreadyOwnedByYou":
                raise

    async def delete_bucket(self, uri: Uri) -> None:
        _check_bucket(uri, "delete bucket")
        # Some stores delete a bucket with all that is in it.
        page = await self._page(uri, "", "&max-keys=1", None)
        if page.keys:
            raise _errors.StorageError(
                f"delete bucket {uri}: it is not empty; delete its objects first",
                operation="delete bucket",
                uri=str(uri),
                errno=errno.ENOTEMPTY,
            )
        await self.connection.ask(Call("DeleteBucket", "DELETE", uri.container))

    async def stale_uploads(self, uri: Uri) -> AsyncIterator[StaleUpload]:
        check_name(uri, "list stale uploads")
        after: tuple[str, str] | None = None
        while True:
            query = f"uploads=&encoding-type=url&prefix={quote(uri.key, safe='')}"
            if after is not None:
                query += f"&key-marker={quote(after[0], safe='')}&upload-id-marker={quote(after[1], safe='')}"
            call = Call("ListMultipartUploads", "GET", uri.container, query=query, about=str(uri))
            answer = await self.connection.ask(call)
            before = after
            found, after = _parsed(functools.partial(s3_xml.parse_uploads, answer.body), "list stale uploads", uri)
            if after is not None and after == before:
                raise _errors.StorageError(f"list {uri}: the store repeats a page", operation="list", uri=str(uri))
            folder = uri.folder
            for upload in found:
                if upload.key != uri.key and not upload.key.startswith(folder):
                    continue
                yield StaleUpload(str(replace(uri, key=upload.key)), upload.upload_id, upload.begun)
            if after is None:
                return

    async def abort_upload(self, uri: Uri, upload_id: str) -> None:
        with suppress(_errors.NotFoundError):
            await self.connection.ask(abort_call(uri, upload_id))


Parsed = TypeVar("Parsed")


# Wider than "General purpose bucket naming rules", for compatible stores, and nothing that has a meaning in a request.
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,254}")


def check_name(uri: Uri, operation: str) -> None:
    if not _BUCKET.fullmatch(uri.container):
        what = f"{uri.container!r} is no name of a bucket" if uri.container else "names no bucket"
        raise _errors.InvalidInputError(f"{operation} {uri}: {what}", operation=operation, uri=str(uri))


def _check_bucket(uri: Uri, operation: str) -> None:
    check_name(uri, operation)
    if uri.key:
        raise _errors.InvalidInputError(f"{operation} {uri}: it must be s3://bucket", operation=operation, uri=str(uri))


def check_object(uri: Uri, operation: str, kind: type[_errors.S3dlioError] = _errors.InvalidInputError) -> None:
    check_name(uri, operation)
    if not uri.key or (uri.key.endswith("/") and kind is not _errors.NotFoundError):
        raise kind(f"{operation} {uri}: names no object", operation=operation, uri=str(uri))


def _version(uri: Uri, answer: Answer) -> Version:
    return Version(
        uri,
        size=int(_header(answer, "content-length", uri, "open")),
        etag=_header(answer, "etag", uri, "open"),
        crc32c=whole_crc(answer),
    )


def _replaced(uri: Uri) -> _errors.StorageError:
    text = f"read {uri}: it was replaced since it was opened"
    return _errors.StorageError(text, operation="read", uri=str(uri), errno=errno.ESTALE)


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
