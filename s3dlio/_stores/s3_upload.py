"""Objects on their way into S3: one PUT for what fits into a part, else a multipart upload.

Each part is a full block of the stage, sent by us with its CRC32C; the object's is combined from them and sent at
completion, where the server compares both (Amazon S3 User Guide, "Checking object integrity").
"""

from __future__ import annotations

import atexit
import base64
import os
import threading
import time
import weakref
from collections.abc import Callable, Generator
from contextlib import suppress
from typing import TYPE_CHECKING
from urllib.parse import quote

from s3dlio import _errors
from s3dlio._logging import logger
from s3dlio._stores import s3_xml
from s3dlio._stores.base import Block
from s3dlio._stores.network import grown_size
from s3dlio._stores.s3_client import Connection
from s3dlio._stores.s3_clock import after, leave_work, note_exit, run_left_work
from s3dlio._stores.s3_http import Answer, Call
from s3dlio._stores.s3_request import Request, break_off
from s3dlio._tasks import Awaited, run

if TYPE_CHECKING:
    from s3dlio._options import WriterOptions
    from s3dlio._uri import Uri

# "Amazon S3 multipart upload limits" in the User Guide.
MIN_PART = 5 << 20
MAX_PARTS = 10_000


# How long an abort waits for the store; the request goes on by itself.
_ABORT_SECONDS = 1.0

# "Amazon S3 limits": an object of 5 TiB, a part of 5 GiB.
MAX_OBJECT = 5 << 40
MAX_PART = 5 << 30
# After so many parts they are twice as large: so the largest object fits, and one of 5 GB still has small parts.
PARTS_OF_A_SIZE = 960


def part_size(number: int, first: int) -> int:
    """How large part ``number``, from 1 on, of an object is whose first part has ``first`` bytes."""
    return grown_size(number, first, PARTS_OF_A_SIZE, MAX_PART)


def base64_crc(crc: int) -> str:
    """A CRC32C as S3 writes it: big-endian, in base64."""
    return base64.b64encode(crc.to_bytes(4, "big")).decode()


def _checksum_headers(connection: Connection, crc: int) -> list[tuple[str, str]]:
    return [("x-amz-checksum-crc32c", base64_crc(crc))] if connection.settings.checksums else []


def _type_headers(content_type: str | None) -> list[tuple[str, str]]:
    return [("content-type", content_type)] if content_type else []


async def put_whole(
    connection: Connection,
    uri: Uri,
    data: memoryview,
    crc: int,
    content_type: str | None,
    verify: str,
    *conditions: tuple[str, str],
) -> str:
    """Stores a whole object in one request, with these headers as conditions.  Returns its ETag."""
    headers = [*_checksum_headers(connection, crc), *_type_headers(content_type), *conditions]
    answer = await connection.ask(Call("PutObject", "PUT", uri.container, uri.key, headers=headers, data=data))
    etag = answer.headers.get("etag")
    if not etag:
        raise _errors.StorageError(
            f"put {uri}: the store's answer has no ETag, so nothing may be stored", operation="put", uri=str(uri)
        )
    if whole_crc(answer) not in ("", base64_crc(crc)):
        raise _errors.CorruptDataError(
            f"put {uri}: the store says it has {whole_crc(answer)}, and {base64_crc(crc)} was sent",
            operation="put",
            uri=str(uri),
        )
    await check_stored(connection, uri, len(data), crc, etag, verify)
    return etag


async def check_stored(connection: Connection, uri: Uri, size: int, crc: int, etag: str, verify: str) -> None:
    """Asks the store what it has.  What it has acknowledged stands, also when it does not tell."""
    if verify == "none":
        return
    try:
        answer = await connection.ask(head_call(uri))
    except _errors.S3dlioError as error:
        if not isinstance(error, _errors.NotFoundError):
            error.args = (f"{error}; the store has acknowledged the object, but it could not be verified",)
            raise
        answer = Answer(404, {}, b"")
    found = answer.headers.get("content-length")
    stored = whole_crc(answer)
    is_wrong = verify == "checksum" and stored and stored != base64_crc(crc)
    tag = answer.headers.get("etag", "")
    if not stored and etag:  # then the tag is what tells it from another object of its size
        is_wrong = tag.strip('"') not in ("", etag.strip('"'))
    if found != str(size) or is_wrong:
        text = (
            f"finalize {uri}: {found} bytes with the checksum {stored or 'unknown'} stand there as {tag}, and {size} "
            f"with {base64_crc(crc)} were stored as {etag}: they are lost, or another writer has replaced them"
        )
        raise _errors.CorruptDataError(text, operation="finalize", uri=str(uri))


def abort_call(uri: Uri, upload: str) -> Call:
    return Call("AbortMultipartUpload", "DELETE", uri.container, uri.key, f"uploadId={quote(upload, safe='')}")


def head_call(uri: Uri) -> Call:
    return Call("HeadObject", "HEAD", uri.container, uri.key, headers=[("x-amz-checksum-mode", "ENABLED")])


def whole_crc(answer: Answer) -> str:
    """The checksum of the whole object in an answer, or ''.  One by parts, which ends in their number, tells nothing of
    the bytes together."""
    checksum = answer.headers.get("x-amz-checksum-crc32c", "")
    return "" if "-" in checksum else checksum


class S3Sink:
    """Where the blocks of a stream go.  The first is held back: a stream that is no longer is one PUT."""

    name = "s3"

    def __init__(self, connection: Connection, uri: Uri, options: WriterOptions) -> None:
        self._connection = connection
        self._content_type = options.content_type
        self._verify_what = options.verify or connection.settings.verify
        # Of the object, when it is stored and the store has told.
        self.etag: str | None = None
        # Whether the store has said that it has the object.
        self.acknowledged = False
        # Whether an abort also drops the parts that the store has.
        self.drops_parts = True
        self._uri = uri
        self._first: Block | None = None
        self._upload: str | None = None
        self._parts: list[s3_xml.Part] = []
        self._under_way: dict[int, Request] = {}
        self._lock = threading.Lock()
        # Who waits for the parts, to be told when none is under way any more, or one has failed.
        self._waiting: Callable[[], None] | None = None
        self._failure: Exception | None = None
        self._ended = False
        self._pid = os.getpid()
        # For the stream: what a part met, from another thread.
        self.on_failure: Callable[[BaseException], None] = lambda error: None
        _open_sinks.add(self)

    def put(self, block: Block) -> None:
        if block.index == 0:
            self._first = block
        else:
            run(self._put(block))

    async def _put(self, block: Block) -> None:
        if self._upload is None:
            self._upload = await self._create()
            first, self._first = self._first, None
            assert first is not None
            self._send(first)
        self._send(block)

    def commit(self, size: int, crc32c: int) -> None:
        run(self._commit(size, crc32c))

    async def _commit(self, size: int, crc32c: int) -> None:
        try:
            if self._upload is None:
                await self._put_whole(size, crc32c)
            else:
                await self._all_parts()
                await self._complete(size, crc32c)
        except BaseException:
            if self.acknowledged:  # but not verified: there is nothing left to give back
                self._let_go()
            raise
        self._let_go()

    def abort(self) -> None:
        request = run(self._abort())
        if request is None:
            return
        deadline = time.monotonic() + _ABORT_SECONDS
        while not request.has_ended and time.monotonic() < deadline:
            time.sleep(0.005)
        if not request.has_ended:
            logger.warning("abort %s: the store has not answered yet whether it drops the parts", self._uri)

    async def _abort(self) -> Request | None:
        """Begins to; what comes back is under way."""
        if self._ended or self._pid != os.getpid():
            return None
        self._let_go()
        return self._drop_upload() if self._upload is not None and self.drops_parts else None

    def drop(self) -> None:
        """As `abort`, for the garbage collector: without waiting, and without a lock."""
        leave_work(self._begin_abort)

    def _begin_abort(self) -> None:
        run(self._abort())

    def _let_go(self) -> None:
        self._ended = True
        _open_sinks.discard(self)
        break_off(list(self._under_way.values()))
        # They hold on to the stage, and it to them.
        self._first = None
        self.on_failure = lambda error: None

    async def _create(self) -> str:
        headers = _type_headers(self._content_type)
        if self._connection.settings.checksums:
            headers += [("x-amz-checksum-algorithm", "CRC32C"), ("x-amz-checksum-type", "FULL_OBJECT")]
        call = Call("CreateMultipartUpload", "POST", self._uri.container, self._uri.key, "uploads=", headers)
        request = self._connection.begin(call)
        try:
            answer = await request
        except _errors.S3dlioError:
            raise
        except BaseException:  # broken off: it goes on by itself, so that there is somebody who aborts what it makes
            request.on_end(lambda: after(0.0, lambda: self._drop_created(request)))
            raise
        return self._upload_id(answer)

    def _upload_id(self, answer: Answer) -> str:
        try:
            return s3_xml.text(s3_xml.parse(answer.body, "InitiateMultipartUploadResult"), "UploadId")
        except s3_xml.MalformedAnswerError as error:
            raise self._error(f"the upload was not begun: {error}") from error

    def _drop_created(self, request: Request) -> None:
        """Nobody waits for this upload any more."""
        with suppress(_errors.S3dlioError):
            self._upload = self._upload_id(request.result())
            self._drop_upload()

    def _send(self, block: Block) -> None:
        """Begins to store a part.  The stage lends so many blocks as may be under way."""
        number = block.index + 1
        if number > MAX_PARTS:
            raise self._error(f"more than {MAX_PARTS} parts of {len(block.data)} bytes; a larger buffer_size is needed")

        def done(result: Answer | Exception) -> None:
            self._part_done(block, number, result)

        call = Call(
            "UploadPart",
            "PUT",
            self._uri.container,
            self._uri.key,
            f"partNumber={number}&uploadId={quote(self._upload or '', safe='')}",
            _checksum_headers(self._connection, block.crc32c),
            block.data,
        )
        request = Request(self._connection, call, done)
        with self._lock:
            self._under_way[number] = request
        request.start()

    def _part_done(self, block: Block, number: int, result: Answer | Exception) -> None:
        failure = result if isinstance(result, Exception) else None
        if isinstance(result, Answer):
            etag = result.headers.get("etag")
            if not etag:
                failure = self._error(f"part {number} was answered without an ETag")
            else:
                crc = base64_crc(block.crc32c) if self._connection.settings.checksums else None
                self._parts.append(s3_xml.Part(number, etag, crc))
        if not self._ended:
            block.release()
        waiting = None
        with self._lock:
            self._under_way.pop(number, None)
            if failure is not None and self._failure is None:
                self._failure = failure
            if not self._under_way or self._failure is not None:
                waiting, self._waiting = self._waiting, None
        if waiting is not None:
            waiting()
        if failure is not None and not self._ended:
            self.on_failure(failure)

    def on_end(self, callback: Callable[[], None]) -> None:
        """What `_all_parts` waits for."""
        with self._lock:
            if self._under_way and self._failure is None:
                self._waiting = callback
                return
        callback()

    def __await__(self) -> Generator[Awaited, None, None]:
        yield self

    def wait_for_parts(self) -> None:
        """Until all parts that were handed over are stored, or one has failed, which is raised."""
        run(self._all_parts())

    async def _all_parts(self) -> None:
        await self
        if self._failure is not None:
            raise self._failure

    async def _put_whole(self, size: int, crc32c: int) -> None:
        data = self._first.data if self._first is not None else memoryview(b"")
        self.etag = await put_whole(self._connection, self._uri, data, crc32c, self._content_type, "none")
        await self._verify(size, crc32c)

    async def _complete(self, size: int, crc32c: int) -> None:
        self._parts.sort(key=lambda part: part.number)
        headers = [("x-amz-mp-object-size", str(size))]
        if self._connection.settings.checksums:
            headers += [("x-amz-checksum-crc32c", base64_crc(crc32c)), ("x-amz-checksum-type", "FULL_OBJECT")]
        call = Call(
            "CompleteMultipartUpload",
            "POST",
            self._uri.container,
            self._uri.key,
            f"uploadId={quote(self._upload or '', safe='')}",
            headers,
            s3_xml.complete_request(self._parts),
        )
        try:
            answer = await self._connection.ask(call)
        except _errors.S3dlioError as error:
            # The acknowledgement may have been lost on the way, and the repetition met an upload that is done.
            if not (error.code == "NoSuchUpload" or error.status is None or error.status >= 500):
                raise
            if not await self._is_stored(size, crc32c):
                raise
            logger.debug("%s; but the object is stored", error)
            return
        try:
            self.etag = s3_xml.text(s3_xml.parse(answer.body, "CompleteMultipartUploadResult"), "ETag")
        except s3_xml.MalformedAnswerError as error:
            if not await self._is_stored(size, crc32c):
                raise self._error(f"the upload was not completed: {error}") from error
            return
        await self._verify(size, crc32c)

    async def _is_stored(self, size: int, crc32c: int) -> bool:
        """Whether what stands under the name now can be told to be this object."""
        try:
            answer = await self._connection.ask(head_call(self._uri))
        except _errors.NotFoundError:
            return False
        return answer.headers.get("content-length") == str(size) and whole_crc(answer) == base64_crc(crc32c)

    async def _verify(self, size: int, crc32c: int) -> None:
        self.acknowledged = True
        try:
            await check_stored(self._connection, self._uri, size, crc32c, self.etag or "", self._verify_what)
        except _errors.CorruptDataError:
            self.acknowledged = False
            raise

    def _drop_upload(self) -> Request:
        """Begins to give back what the server keeps of the parts; `list_stale_uploads` shows what is left."""

        def done(result: Answer | Exception) -> None:
            if isinstance(result, Exception) and not isinstance(result, _errors.NotFoundError):
                logger.warning("%s: an unfinished upload is left, for abort_stale_uploads() to remove", result)

        return self._connection.begin(abort_call(self._uri, self._upload or ""), done)

    def _error(self, what: str) -> _errors.StorageError:
        return _errors.StorageError(f"finalize {self._uri}: {what}", operation="finalize", uri=str(self._uri))


_open_sinks: weakref.WeakSet[S3Sink] = weakref.WeakSet()


def _at_exit() -> None:
    """The interpreter ends: what is unfinished is dropped, while the connections still work."""
    note_exit()
    run_left_work()
    for sink in list(_open_sinks):
        try:
            sink.abort()
        except Exception as error:
            logger.warning("abort at exit: %s", error)


atexit.register(_at_exit)
