"""Blobs on their way into Azure: one Put Blob for what fits into a block, else staged blocks and one commit.

Blocks are staged by a few threads of ours, each straight from the stage's memory.  What is staged is invisible until
Put Block List names it ("Understanding block blobs"); what is never committed the service drops after a week.
"""

from __future__ import annotations

import base64
import hashlib
import os
import queue
import secrets
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from azure.storage.blob import BlobClient, ContentSettings

from s3dlio import _cancel, _errors
from s3dlio._stores.azure_client import Place, ask, blob_client, new_thread, properties, start
from s3dlio._stores.base import Block
from s3dlio._stores.network import grown_size
from s3dlio._tasks import apart

if TYPE_CHECKING:
    from s3dlio._options import WriterOptions
    from s3dlio._stores.azure_settings import AzureSettings
    from s3dlio._uri import Uri

# "Scalability and performance targets for Blob storage": blocks of a blob, and bytes of a block.
MAX_BLOCKS = 50_000
MAX_BLOCK = 4000 << 20

# After so many blocks they are twice as large: 50,000 of them hold 76 TiB at least, whatever the first size.  (190 TiB
# is a blob whose blocks are all the largest.)
BLOCKS_OF_A_SIZE = 2_000

_MAX_THREADS = 16


def block_size(number: int, first: int) -> int:
    """How large block ``number``, from 1 on, of a blob is whose first block has ``first`` bytes."""
    return grown_size(number, first, BLOCKS_OF_A_SIZE, MAX_BLOCK)


def checksum_headers(settings: AzureSettings, place: Place, data: Any) -> dict[str, str]:
    """What the service compares with what it got (Put Block, "Request headers")."""
    kind = settings.checksum_kind(place.account)
    if kind == "crc64":
        from awscrt.checksums import crc64nvme

        return {"x-ms-content-crc64": base64.b64encode(crc64nvme(data).to_bytes(8, "little")).decode()}
    if kind == "md5":
        return {"Content-MD5": base64.b64encode(hashlib.md5(data, usedforsecurity=False).digest()).decode()}
    return {}


def put_whole(
    settings: AzureSettings,
    place: Place,
    uri: Uri,
    data: memoryview,
    options: WriterOptions,
    operation: str,
    **condition: Any,
) -> str:
    """Stores a whole blob in one request, on a condition of the SDK's.  Returns its ETag."""
    whole = data.obj
    # The SDK takes no view.
    content = whole if isinstance(whole, bytes) and len(whole) == len(data) else bytes(data)
    headers = checksum_headers(settings, place, content)

    def call() -> str:
        return _etag_of(
            blob_client(settings, place).upload_blob(
                content,
                length=len(content),
                max_concurrency=1,
                content_settings=_content_settings(options),
                headers=dict(headers),
                **(condition or {"overwrite": True}),
            )
        )

    return ask(settings, operation, uri, call)


def _etag_of(answer: dict[str, Any]) -> str:
    """Without an ETag nothing is acknowledged."""
    etag = answer.get("etag")
    if not etag:
        raise ValueError("the answer has no ETag")
    return str(etag).strip('"')


def verify(settings: AzureSettings, place: Place, uri: Uri, operation: str, etag: str, size: int) -> None:
    """Asks the service what it has.  What it has acknowledged stands, also when it does not tell."""
    try:
        found = properties(settings, place, operation, uri)
    except _errors.NotFoundError:
        raise _wrong(operation, uri, "it is not there, although the service has acknowledged it") from None
    except _errors.S3dlioError as error:
        error.args = (f"{error}; the service has acknowledged the blob, but it could not be verified",)
        raise
    if found.etag.strip('"') != etag:
        text = (
            "another blob stands there than was acknowledged: another writer has stored it since, or this one is lost"
        )
        raise _wrong(operation, uri, text)
    if found.size != size:
        raise _wrong(operation, uri, f"{found.size} bytes stand there, and {size} were sent")


def _wrong(operation: str, uri: Uri, what: str) -> _errors.CorruptDataError:
    return _errors.CorruptDataError(f"{operation} {uri}: {what}", operation=operation, uri=str(uri))


def _content_settings(options: WriterOptions) -> ContentSettings | None:
    return ContentSettings(content_type=options.content_type) if options.content_type else None


class AzureSink:
    """Where the blocks of a stream go.  The first is held back: a stream that is no longer is one Put Blob."""

    name = "azure"

    def __init__(self, settings: AzureSettings, place: Place, uri: Uri, options: WriterOptions) -> None:
        self._settings = settings
        self._place = place
        self._uri = uri
        self._options = options
        self.etag: str | None = None
        # Whether the service has said that it has the blob.
        self.acknowledged = False
        # Of this writer alone, so that another one's blocks cannot be taken for its own; all of one length, as Put
        # Block asks for.
        self._prefix = secrets.token_hex(16)
        self._ids: dict[int, str] = {}
        self._first: Block | None = None
        # One for all blocks: to make one is a tenth of what the SDK does for a block.
        self._client: BlobClient | None = None
        self._todo: queue.SimpleQueue[Block | None] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._under_way = 0
        self._changed = threading.Condition()
        self._failure: BaseException | None = None
        self._ended = False
        self._pid = os.getpid()
        # For the stream: what a block met, from another thread.
        self.on_failure: Callable[[BaseException], None] = lambda error: None

    def put(self, block: Block) -> None:
        if block.index == 0:
            self._first = block
            return
        if block.index >= MAX_BLOCKS:
            raise self._error(f"more than {MAX_BLOCKS} blocks; a larger buffer_size is needed")
        apart(lambda: self._send_with_first(block))

    def _send_with_first(self, block: Block) -> None:
        if self._first is not None:
            first, self._first = self._first, None
            self._send(first)
        self._send(block)

    def _send(self, block: Block) -> None:
        """Begins to stage a block.  The stage lends so many as may be under way."""
        with self._changed:
            self._under_way += 1
            wanted = min(self._under_way, self._options.in_flight or 8, _MAX_THREADS)
        self._todo.put(block)
        if len(self._threads) < wanted:
            thread = new_thread(self._work)
            self._threads.append(thread)
            start(thread, "write", self._uri)

    def _work(self) -> None:
        while (block := self._todo.get()) is not None:
            failure: BaseException | None = None
            try:
                if not self._ended and self._failure is None:
                    self._stage(block.index, block.data)
            except BaseException as error:
                failure = error
            if not self._ended:
                block.release()
            del block
            with self._changed:
                self._under_way -= 1
                if failure is not None and self._failure is None:
                    self._failure = failure
                self._changed.notify()
            if failure is not None and not self._ended:
                self.on_failure(failure)
        self._todo.put(None)  # for the next thread

    def _stage(self, index: int, data: memoryview) -> None:
        """Without the block, which the frames of an error would keep, and with it the memory of all, until somebody
        drops the error."""
        # The end lets no flipped bit make one id of the list into another, since not every emulator checks the list.
        name = f"{self._prefix}{index:08d}{secrets.token_hex(4)}"
        headers = checksum_headers(self._settings, self._place, data)

        def call() -> Any:
            return self._blob().stage_block(
                name,
                data,  # type: ignore[arg-type]  # a view is sent as it is
                length=len(data),
                headers=dict(headers),
            )

        ask(self._settings, "write", self._uri, call, lambda: self._ended)
        self._ids[index] = name

    def _blob(self) -> BlobClient:
        """Within `ask`, as `blob_client`; two threads may each make one."""
        if self._client is None:
            self._client = blob_client(self._settings, self._place)
        return self._client

    def commit(self, size: int, crc32c: int) -> None:
        apart(lambda: self._commit(size), may_stay=True)

    def _commit(self, size: int) -> None:
        try:
            if not self._threads:
                data = self._first.data if self._first is not None else memoryview(b"")
                self.etag = put_whole(self._settings, self._place, self._uri, data, self._options, "finalize")
            else:
                self._wait()
                self.etag = self._commit_list()
            self.acknowledged = True
        finally:
            self._let_go()  # also when it failed: nothing more will come
        self._verify(size)

    def _wait(self) -> None:
        with self._changed:
            while self._under_way and self._failure is None:
                _cancel.check()
                self._changed.wait(0.2)
        if self._failure is not None:
            raise self._failure

    def _commit_list(self) -> str:
        from azure.storage.blob import BlobBlock

        blocks = [BlobBlock(block_id=self._ids[index]) for index in sorted(self._ids)]

        def add_checksum(request: Any) -> None:
            body = request.http_request.data
            body = body.encode() if isinstance(body, str) else body
            request.http_request.headers.update(checksum_headers(self._settings, self._place, body))

        def call() -> str:
            return _etag_of(
                self._blob().commit_block_list(
                    blocks, content_settings=_content_settings(self._options), raw_request_hook=add_checksum
                )
            )

        # When an acknowledgement was lost the blocks are those of the blob, which the same list may name again.
        return ask(self._settings, "finalize", self._uri, call)

    def _verify(self, size: int) -> None:
        if (self._options.verify or self._settings.verify) == "none":
            return
        try:
            verify(self._settings, self._place, self._uri, "finalize", str(self.etag), size)
        except _errors.CorruptDataError:
            self.acknowledged = False
            raise

    def abort(self) -> None:
        if not self._ended and self._pid == os.getpid():
            self._let_go()

    drop = abort  # takes no lock, and waits for nothing

    def _let_go(self) -> None:
        """A block that a thread is still sending stays until it has failed or is sent; nobody waits for that."""
        self._ended = True
        self._todo.put(None)
        self._first = None
        self._client = None  # and with it the connections, if nobody else uses them
        self.on_failure = lambda error: None

    def _error(self, what: str) -> _errors.StorageError:
        return _errors.StorageError(f"write {self._uri}: {what}", operation="write", uri=str(self._uri))
