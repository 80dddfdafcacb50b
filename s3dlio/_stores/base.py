"""What a store has to bring.  Everything above is written against these classes; `tests/contract` proves a store."""

from __future__ import annotations

import errno
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Protocol, TypedDict

from s3dlio import _cancel
from s3dlio._errors import NotAnObjectError, TimedOutError, UnsupportedError
from s3dlio._native import SLICE_MS, check, ffi, lib, new_handle, pointer, raise_status

if TYPE_CHECKING:
    from s3dlio._options import WriterOptions
    from s3dlio._tasks import Task
    from s3dlio._uri import Uri


class ObjectStat(TypedDict):
    """What `stat` tells of an object: its size in bytes, the time of its last change (RFC 3339, UTC), and a tag that
    changes whenever the object does."""

    size: int
    last_modified: str
    etag: str


@dataclass(frozen=True)
class WriterStats:
    """What a writer did so far.

    ``io_engine``: ``'io_uring'``, ``'threads'``, ``'pwrite'`` (a short file, written by one call) or the store's name.
    ``direct``: whether the file is written with O_DIRECT, and if not although asked for, ``direct_reason`` says why.
    ``registered``: whether io_uring holds the blocks registered.  ``bytes_written`` came in, ``compressed_bytes`` are
    stored, in ``blocks`` of ``block_size`` bytes; ``crc32c`` and ``stored_crc32c`` are their checksums.
    ``wait_seconds``: how long the caller was kept waiting.
    ``visible``: whether the object stands under its name.
    """

    io_engine: str
    direct: bool
    direct_reason: str | None
    registered: bool
    block_size: int
    blocks: int
    bytes_written: int
    compressed_bytes: int
    crc32c: int
    stored_crc32c: int
    wait_seconds: float
    visible: bool


class Stream(Protocol):
    """An object on its way into a store.  Nothing is visible before `finish` has returned."""

    def write(self, data: Any) -> None:
        """Appends bytes, given as `_native.pointer` makes them; they may be reused on return."""

    def append(self, data: bytes | Any) -> bool:
        """Appends bytes if that is no more than a copy, else takes nothing and returns False.  For small pieces, where
        the way through `write` costs more than the bytes.  Another thread may be inside `stats` meanwhile."""

    def finish(self) -> None:
        """Makes the object visible, complete and durable."""

    def abort(self) -> None:
        """Drops what was staged; never raises."""

    def drop(self) -> None:
        """The same for the garbage collector, which may come on any thread and while it holds any lock."""

    def stats(self) -> WriterStats: ...


class Source(Protocol):
    """An object opened for reading: the same version for all its reads."""

    @property
    def size(self) -> int: ...

    def readinto(self, start: int, data: Any) -> int:
        """Fills memory, given as `_native.pointer` makes it, with the bytes from ``start`` on.  Returns their count,
        less than its length only at the end.  Nothing writes to the memory once this returns or raises."""

    def can_have(self, crc32c: int) -> bool:
        """Whether the whole object has this CRC32C; where the store keeps none, it may have any."""

    def close(self) -> None: ...


class Tasks(Protocol):
    """The operations of a store that waits for requests, as coroutines: many at once need no threads.  They take and
    raise what the methods of `Store` do."""

    def get(self, uri: Uri) -> Task[bytes]: ...

    def get_range(self, uri: Uri, offset: int, length: int | None) -> Task[bytes]: ...

    def put(self, uri: Uri, data: bytes | Any, options: WriterOptions) -> Task[None]: ...

    def stat(self, uri: Uri) -> Task[ObjectStat]: ...

    def list(self, uri: Uri, recursive: bool) -> AsyncIterator[Uri]: ...

    def delete(self, uri: Uri, recursive: bool) -> Task[None]: ...

    def copy(self, source: Uri, target: Uri) -> Task[bool]: ...

    def create_bucket(self, uri: Uri) -> Task[None]: ...

    def delete_bucket(self, uri: Uri) -> Task[None]: ...

    def stale_uploads(self, uri: Uri) -> AsyncIterator[StaleUpload]: ...

    def abort_upload(self, uri: Uri, upload_id: str) -> Task[None]: ...


class Store(ABC):
    """A place for objects.  The methods take the whole URI; how they raise is that of `s3dlio`'s functions."""

    # What is read at once for small reads, in bytes.
    read_size = 1 << 20

    # Whether a request that has failed here may still be carried out there.
    acts_late = False

    # Whether all machines see the same tag of an object.
    shares_tags = True

    def tasks(self) -> Tasks | None:
        """Its operations as coroutines, if it has them."""
        return None

    def tasks_for_put(self, data: bytes | Any, options: WriterOptions) -> Tasks | None:
        """The same, if `put` of this is one of them."""
        return None

    @abstractmethod
    def create(self, uri: Uri, options: WriterOptions) -> Stream: ...

    @abstractmethod
    def open(self, uri: Uri, *, once: bool = False) -> Source:
        """Opens an object for reading; ``once`` says that most of it will be read, and not soon again."""

    def put(self, uri: Uri, data: bytes | Any, options: WriterOptions) -> None:
        """Stores a whole object, given as bytes or as `_native.pointer` makes it."""
        stream = self.create(uri, options)
        try:
            stream.write(pointer(data) if isinstance(data, bytes) else data)
            stream.finish()
        except BaseException:
            stream.abort()
            raise

    @abstractmethod
    def put_if(self, uri: Uri, data: bytes, etag: str | None, options: WriterOptions) -> bool:
        """Stores a small object if the one that stands there has this tag, as `stat` tells it, or with None if there is
        none.  Returns whether it did.  Where a server knows no conditions it is stored in any case."""

    def get(self, uri: Uri) -> bytes | None:
        """The whole object, if the store has a shorter way to it than `open`."""
        return None

    @abstractmethod
    def stat(self, uri: Uri) -> ObjectStat: ...

    @abstractmethod
    def list(self, uri: Uri, recursive: bool) -> Iterator[Uri]:
        """The object of this name, or the objects below it as a folder, in the order of their names.  Without
        ``recursive`` a deeper folder is one entry that ends in '/'."""

    @abstractmethod
    def delete(self, uri: Uri, recursive: bool) -> None: ...

    def sync(self, uri: Uri) -> None:  # noqa: B027  # most have nothing to do
        """Makes what was deleted in this folder stay so after a loss of power, where `delete` alone does not."""

    def copy(self, source: Uri, target: Uri) -> bool:
        """Copies an object within the store, if it can do so by itself; else returns False."""
        return False

    # What only stores with buckets have.

    def create_bucket(self, uri: Uri) -> None:
        raise self._no_buckets("create bucket", uri)

    def delete_bucket(self, uri: Uri) -> None:
        raise self._no_buckets("delete bucket", uri)

    def stale_uploads(self, uri: Uri) -> Iterator[StaleUpload]:
        raise self._no_buckets("list stale uploads", uri)

    def abort_upload(self, uri: Uri, upload_id: str) -> None:
        raise self._no_buckets("abort upload", uri)

    def _no_buckets(self, operation: str, uri: Uri) -> UnsupportedError:
        text = f"{operation} {uri}: {uri.scheme} does not have that"
        return UnsupportedError(text, operation=operation, uri=str(uri))


def folder_error(operation: str, uri: Uri) -> NotAnObjectError:
    text = f"{operation} {uri}: is a folder; recursive=True deletes all that is in it"
    return NotAnObjectError(text, operation=operation, uri=str(uri), errno=errno.EISDIR)


@dataclass(frozen=True)
class StaleUpload:
    """An upload that was begun and neither completed nor aborted: its parts take up space, and no object shows it.
    ``begun`` is when, in UTC."""

    uri: str
    upload_id: str
    begun: datetime


@dataclass(frozen=True)
class Block:
    """A full block of a `StagedStream`, lent to a sink until `release`, which any thread may call, once."""

    data: memoryview
    index: int
    offset: int
    crc32c: int
    release: Callable[[], object]


class Sink(Protocol):
    """Where a `StagedStream` puts its blocks."""

    name: str

    def put(self, block: Block) -> None:
        """Begins to store the block, and releases it when it is acknowledged."""

    def commit(self, size: int, crc32c: int) -> None:
        """Waits for all blocks and makes the object, of ``size`` stored bytes, visible."""

    def abort(self) -> None:
        """Drops all blocks.  Nothing reads them once this returns."""

    def drop(self) -> None:
        """The same for the garbage collector, see `Stream`.  The blocks stay for as long as it holds them."""

    acknowledged: bool


class StagedStream:
    """A `Stream` for stores that take blocks: the library's stage fills them, a `Sink` stores them.

    ``size_of`` says how large the block of a number, from 0 on, is to be, where they must grow: the stream goes on with
    another size when all earlier blocks are released.
    """

    def __init__(
        self, sink: Sink, uri: Uri, options: WriterOptions, size_of: Callable[[int], int] | None = None
    ) -> None:
        self._size_of = size_of
        self.sink = sink
        self._uri = str(uri)
        self._timeout = options.timeout
        self._failure: BaseException | None = None
        self._waited = 0.0
        o = ffi.new("struct s3dlio_stage_options *", {"struct_nbytes": ffi.sizeof("struct s3dlio_stage_options")})
        o.block_nbytes = options.block_size()
        o.nblocks = options.in_flight + 1 if options.in_flight else 0
        if options.compression:
            o.zstd_level = options.level
            o.zstd_workers = -1 if options.threads is None else options.threads
        self._block_size = o.block_nbytes or 4 << 20
        self._nblocks = o.nblocks or 9
        self._handle = new_handle("s3dlio_stage")
        check(lib.s3dlio_stage_new(self._handle, o), "open", self._uri)
        self._stage = self._handle[0]
        self._taken = ffi.new("size_t *")
        self._visible = False
        self._last_totals = self._totals()

    def fail(self, error: BaseException) -> None:
        """Tells the writing thread that the sink has failed; for sinks, from any thread."""
        if self._failure is None:
            self._failure = error
        handle = self._handle  # the writing thread may end the stream at this moment
        if handle is not None:
            lib.s3dlio_stage_fail(handle[0], -errno.EIO)

    def append(self, data: bytes | Any) -> bool:
        return False  # the stage's totals are for one thread

    def write(self, data: Any) -> None:
        done = 0

        def step() -> int:
            nonlocal done
            status: int = lib.s3dlio_stage_write(self._stage, data + done, len(data) - done, SLICE_MS, self._taken)
            done += self._taken[0]
            return status

        self._run(step, "write")

    def reserve(self) -> memoryview:
        """The room that is left in the block at hand, to be filled without a copy."""
        room, size = ffi.new("void **"), ffi.new("size_t *")
        self._run(lambda: int(lib.s3dlio_stage_reserve(self._stage, SLICE_MS, room, size)), "reserve")
        handle = self._handle
        # The destructor only holds on to the stage, and so to the block, also after the end.
        return memoryview(ffi.buffer(ffi.gc(room[0], lambda pointer: handle), size[0]))

    def commit(self, nbytes: int) -> None:
        """Takes the first bytes of what was reserved into the stream."""
        status: int = lib.s3dlio_stage_commit(self._stage, nbytes)
        if status < 0:
            self._raise(status, "commit")
        if status == 1:
            self._hand_on("commit")

    def finish(self) -> None:
        self._run(lambda: int(lib.s3dlio_stage_end(self._stage, SLICE_MS)), "finalize")
        totals = self._totals()
        self.sink.commit(totals.stored_nbytes, totals.stored_crc32c)
        self._visible = True
        self._free()

    def abort(self) -> None:
        self.sink.abort()
        self._free()

    def drop(self) -> None:
        self.sink.drop()
        self._free()

    def _free(self) -> None:
        """Gives the blocks back; the sink is done with them, but a late thread of it may still hold one's `Block`."""
        self._last_totals = self._totals()
        self._stage = self._handle = None

    def stats(self) -> WriterStats:
        totals = self._totals()
        return WriterStats(
            io_engine=self.sink.name,
            direct=False,
            direct_reason=None,
            registered=False,
            block_size=self._block_size,
            blocks=totals.nblocks,
            bytes_written=totals.raw_nbytes,
            compressed_bytes=totals.stored_nbytes,
            crc32c=totals.raw_crc32c,
            stored_crc32c=totals.stored_crc32c,
            wait_seconds=self._waited,
            visible=self._visible or self.sink.acknowledged,
        )

    def _run(self, step: Callable[[], int], operation: str) -> None:
        """Repeats a call into the stage, handing on its blocks, until it is done."""
        progress = time.monotonic()
        while (status := step()) != 0:
            _cancel.check()
            now = time.monotonic()
            if status == 1:
                self._hand_on(operation)
                progress = time.monotonic()
            elif status == -errno.EAGAIN:
                self._waited += SLICE_MS / 1000
                if now - progress > self._timeout:
                    raise self._no_progress(operation)
            else:
                self._raise(status, operation)

    def _raise(self, status: int, operation: str) -> None:
        if self._failure is not None:
            raise self._failure
        raise_status(status, operation, self._uri)

    def _hand_on(self, operation: str) -> None:
        """Gives the full block to the sink."""
        block = self._take()
        self.sink.put(block)
        if self._size_of is not None and self._size_of(block.index + 1) != self._block_size:
            self._resize(self._size_of(block.index + 1), operation)

    def _resize(self, block_size: int, operation: str) -> None:
        """Goes on with blocks of this size, in about as much memory as before, but at least three of them."""
        nblocks = max(3, self._nblocks * self._block_size // block_size)
        nblocks = min(nblocks, self._nblocks)

        began = time.monotonic()
        # Its blocks come back one by one, or one of them fails.
        while (status := lib.s3dlio_stage_resize(self._stage, block_size, nblocks)) == -errno.EBUSY:
            _cancel.check()
            if time.monotonic() - began > self._timeout:
                raise self._no_progress(operation)
            time.sleep(0.002)
        self._waited += time.monotonic() - began
        if self._failure is not None:
            raise self._failure
        check(status, operation, self._uri)
        self._block_size, self._nblocks = block_size, nblocks

    def _no_progress(self, operation: str) -> TimedOutError:
        text = f"{operation} {self._uri}: no block was stored for {self._timeout:g} s"
        return TimedOutError(text, operation=operation, uri=self._uri)

    def _take(self) -> Block:
        block = ffi.new("struct s3dlio_block *")
        check(lib.s3dlio_stage_take(self._stage, block), "write", self._uri)
        handle, data = self._handle, block.data
        return Block(
            data=memoryview(ffi.buffer(data, block.nbytes)),
            index=block.index,
            offset=block.offset,
            crc32c=block.crc32c,
            release=lambda: check(lib.s3dlio_stage_release(handle[0], data), "release", self._uri),
        )

    def _totals(self) -> Any:
        if self._stage is None:
            return self._last_totals
        totals = ffi.new("struct s3dlio_stage_totals *")
        lib.s3dlio_stage_get_totals(self._stage, totals, ffi.sizeof(totals[0]))
        return totals
