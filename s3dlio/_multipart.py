"""Multipart uploads to S3 as the reference's API has them: a face of the same writer."""

from __future__ import annotations

import time
from contextlib import suppress
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypedDict, cast

from s3dlio._errors import BusyError, InvalidInputError, UnsupportedError
from s3dlio._options import WriterOptions, whole_number
from s3dlio._stores.base import StagedStream, Stream
from s3dlio._uri import Uri, parse_uri
from s3dlio._writer import ObjectWriter

if TYPE_CHECKING:
    from typing import Self

    from typing_extensions import Buffer

    from s3dlio._stores.s3_upload import S3Sink


class UploadResult(TypedDict):
    """What `MultipartUploadWriter.close` tells: ``uri``; ``total_bytes`` and ``parts`` stored (an object of one part
    was a single PUT); ``etag``, the store's tag; ``checksum``, the CRC32C of all bytes as ``'crc32c:c99465aa'``; and
    ``elapsed``, seconds since the writer was made."""

    uri: str
    total_bytes: int
    parts: int
    etag: str | None
    checksum: str
    elapsed: float


class MultipartUploadWriter:
    """Uploads an object to S3 in parts, each sent as soon as it is full.

    ``part_size`` is in bytes, 5 MiB to 64 MiB (``None`` is 8 MiB; later parts of a long object are larger, see
    docs/s3.md), ``max_in_flight`` how many parts are on their way at once (``None`` is 8), ``content_type`` the media
    type kept with the object.  A writer that is dropped unfinished gives the store's parts back;
    ``abort_on_drop=False`` leaves them for `abort_stale_uploads`.

    Leaving a ``with`` block closes; leaving it by an exception aborts.  What `ObjectWriter` says of failures, threads
    and forks holds here too.
    """

    def __init__(
        self,
        bucket: str,
        key: str,
        part_size: int | None = None,
        max_in_flight: int | None = None,
        content_type: str | None = None,
        abort_on_drop: bool = True,
    ) -> None:
        self._result: UploadResult | None = None
        options = WriterOptions(
            buffer_size=None if part_size is None else _part_size(part_size),
            in_flight=max_in_flight,
            content_type=content_type,
        )
        for name, value in (("bucket", bucket), ("key", key)):
            if not isinstance(value, str):
                raise TypeError(f"{name} must be a str, not {type(value).__name__}")
        if "/" in bucket:
            hint = "; from_uri() takes those" if "://" in bucket else ""
            raise InvalidInputError(f"bucket must be a name, not a path or URI as {bucket!r}{hint}")
        self._began = time.monotonic()
        self._writer = ObjectWriter(Uri("s3", bucket, key), options)
        self._sink = self._writer.run("open", _sink_of)
        self._sink.drops_parts = abort_on_drop
        # How much of the last `reserve` may still be committed.
        self._reserved = 0

    @classmethod
    def from_uri(cls, uri: str, **settings: Any) -> Self:
        """The same for ``s3://bucket/key``; the settings are those of the class."""
        parsed = parse_uri(uri)
        if parsed.scheme != "s3":
            raise InvalidInputError(f"{uri!r} is no s3 URI", operation="open", uri=uri)
        return cls(parsed.container, parsed.key, **settings)

    def write(self, data: Buffer) -> None:
        """Appends bytes; see `ObjectWriter.write_chunk`.  What was reserved and not committed is given up."""
        self._reserved = 0
        self._writer.write_chunk(data)

    def reserve(self, size: int) -> memoryview:
        """Returns writable memory in the part itself, of ``size`` bytes or, at the end of a part, fewer, at least one.

        What is put there becomes part of the object by `commit`; until then another `reserve` gives the same memory.
        After it the memory must not be touched any more: it is on its way.
        """
        size = whole_number("size", size)
        if size < 1:
            raise InvalidInputError(f"reserve {self._writer.uri}: size must be at least 1, not {size}")
        self._reserved = 0
        room = self._writer.run("reserve", lambda stream: cast("StagedStream", stream).reserve())[:size]
        self._reserved = len(room)
        return room

    def commit(self, size: int) -> None:
        """Takes the first ``size`` bytes of what was reserved into the object, once.  More than was reserved raises
        InvalidInputError and changes nothing."""
        size = whole_number("size", size)
        if size < 0:
            raise InvalidInputError(f"commit {self._writer.uri}: size must not be negative, and is {size}")
        if size > self._reserved:
            text = f"commit {self._writer.uri}: {size} bytes, and {self._reserved} are reserved"
            raise InvalidInputError(text, operation="commit", uri=self._writer.uri)
        if size == 0:
            return
        self._reserved = 0
        self._writer.run("commit", lambda stream: cast("StagedStream", stream).commit(size))

    def flush(self) -> None:
        """Waits until all full parts are stored.  What does not fill a part stays: only the last may be short."""
        self._reserved = 0
        self._writer.run("flush", lambda stream: self._sink.wait_for_parts())

    def close(self) -> UploadResult:
        """Completes the object, which is visible and verified then.  Called again it returns the same."""
        if self._result is None:
            self._writer.finalize()
            stats = self._writer.stats()
            self._result = UploadResult(
                uri=self._writer.uri,
                total_bytes=stats.bytes_written,
                parts=max(1, stats.blocks),
                etag=self._sink.etag.strip('"') if self._sink.etag else None,  # as `stat` gives it
                checksum=self._writer.checksum(),
                elapsed=time.monotonic() - self._began,
            )
        return self._result

    def abort(self) -> None:
        """Drops the object and the parts that the store has.  Does nothing after `close`."""
        self._sink.drops_parts = True
        self._writer.abort()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._writer.closed:
            return
        if kind is not None:
            with suppress(BusyError):  # the exception on its way says more
                self.abort()
            return
        try:
            self.close()
        except BaseException:
            with suppress(BusyError):
                self.abort()
            raise

    def __repr__(self) -> str:
        return repr(self._writer).replace("ObjectWriter", "MultipartUploadWriter", 1)


def _part_size(value: int) -> int:
    size = whole_number("part_size", value)
    if not 5 << 20 <= size <= 64 << 20:
        raise InvalidInputError(f"part_size must be 5 MiB to 64 MiB, not {size} bytes")
    return size


def _sink_of(stream: Stream) -> S3Sink:
    if not isinstance(stream, StagedStream):
        raise UnsupportedError("only s3 has multipart uploads")
    return cast("S3Sink", stream.sink)
