"""The writer: one object from a stream of chunks, the same for every store."""

from __future__ import annotations

import os
import threading
import time
import warnings
from collections.abc import Callable, Iterable
from contextlib import suppress
from types import TracebackType
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from s3dlio._checksum import checksum_text
from s3dlio._errors import BusyError, ClosedError, ForkedError, S3dlioError, UnsupportedError, copy_of
from s3dlio._logging import logger
from s3dlio._native import pointer
from s3dlio._options import WriterOptions, check_offered, writer_options
from s3dlio._stores.base import Stream, WriterStats
from s3dlio._stores.registry import store_for
from s3dlio._uri import Uri, parse_uri

if TYPE_CHECKING:
    from typing import Self

    from typing_extensions import Buffer


Result = TypeVar("Result")


class ObjectWriter:
    """Writes one object from a stream of chunks of any size.  Made by `open_writer` and the ``create_*_writer``
    functions.

    Nothing is visible under the object's name before `finalize` has returned, and what was there before stays until
    that moment.  Leaving a ``with`` block finalizes; leaving it by an exception aborts and keeps the exception.  A
    writer that is dropped unfinished aborts, with a ResourceWarning.

    The first failure sticks: every later call raises it again.  One writer serves one call at a time; a second
    thread gets BusyError, and so does a signal handler that comes into a call, except for `abort`.  Different writers
    are independent.  What tells the state (`bytes_written`, `stats`, ...) may be called from any thread; while another
    one is inside a long call it tells the state before that call.
    """

    _ended: str | None = "refused"  # until the store has agreed
    _closed = False
    _inside = False  # a with block
    _appends = False  # whether small chunks may be appended without further questions
    _within: str | None = None  # which call is under way
    _pid = 0

    def __init__(self, uri: Uri, options: WriterOptions) -> None:
        options = writer_options(options, {}).snapshot()
        check_offered(options, uri)
        self._uri = Uri(uri.scheme, uri.container, options.stored_name(uri.key))
        # A call that writes takes its turn, or is refused when another thread has it, and then the state; asking for
        # the state takes only that.  Reentrant, so that a thread whose call Ctrl-C broke off anywhere can still abort.
        self._turn = threading.RLock()
        self._state = threading.RLock()
        self._pid = os.getpid()
        self._began = time.monotonic()
        self._failure: S3dlioError | None = None
        self._stream: Stream = store_for(uri).create(self._uri, options)
        self._last_stats = self._stream.stats()
        self._ended = None
        self._appends = True

    @property
    def uri(self) -> str:
        """The URI under which the object will stand, with ``.zst`` if it is compressed."""
        return str(self._uri)

    def write_chunk(self, chunk: Buffer) -> None:
        """Appends the bytes of ``chunk``: anything with a C-contiguous buffer, of any size; items of more than one
        byte count by their bytes.

        The memory may be reused when the call returns.  Returns at once unless all blocks are on their way.  Raises
        TypeError for str and objects without a buffer, ValueError for a buffer that is not contiguous (neither harms
        the writer), and S3dlioError for a failure of the store.
        """
        data = chunk if type(chunk) is bytes else pointer(chunk)
        if self._appends and self._within is None and self._turn.acquire(False):
            try:
                try:
                    appended = self._stream.append(data)
                finally:
                    self._turn.release()
                if appended:
                    return
            except BaseException as error:
                self._fail("write", error)
                raise
        if data is chunk:
            data = pointer(chunk)
        self._enter("write")
        try:
            self._stream.write(data)
        except BaseException as error:
            # Of this chunk a part may be taken and the rest not: the object cannot be completed any more.
            self._fail("write", error)
            raise
        finally:
            del data
            self._leave()

    def write_owned_bytes(self, chunk: Buffer) -> None:
        """The same as `write_chunk`."""
        self.write_chunk(chunk)

    # What makes it a binary file object for `pickle.dump`, `numpy.savez`, `tarfile`, `io.TextIOWrapper` and their like.

    def write(self, data: Buffer) -> int:
        """As `write_chunk`; returns the count of bytes."""
        self.write_chunk(data)
        return len(data) if type(data) is bytes else len(pointer(data))

    def writelines(self, lines: Iterable[Buffer]) -> None:
        """Writes one after the other."""
        for line in lines:
            self.write_chunk(line)

    def read(self, size: int = -1) -> bytes:
        """Raises UnsupportedError: what is written cannot be read yet."""
        raise UnsupportedError(f"read {self._uri}: the object is being written", operation="read", uri=str(self._uri))

    def flush(self) -> None:
        """Does nothing: what was written lasts when `finalize` has returned."""

    def tell(self) -> int:
        """The count of bytes that came in so far."""
        return self.bytes_written()

    def readable(self) -> bool:
        """False."""
        return False

    def seekable(self) -> bool:
        """False: it only goes on."""
        return False

    def writable(self) -> bool:
        """Whether it takes more bytes."""
        return not self.closed

    @property
    def closed(self) -> bool:
        """Whether it takes no more bytes."""
        return self._ended is not None or self._closed

    def close(self) -> None:
        """Takes no more bytes.  It completes nothing: that is for `finalize` and the end of the ``with`` block.

        Whoever wraps a writer closes it also after an exception, and when it is dropped; the object must not appear
        then.  So outside a ``with`` block of the writer this aborts, and raises ClosedError to say so.
        """
        if self._ended:
            return
        self._appends = False
        self._closed = True
        if not self._inside:
            self.abort()
            text = (
                f"close {self._uri}: nothing is stored; finalize() or the end of a with block would have completed it"
            )
            raise ClosedError(text, operation="close", uri=str(self._uri))

    def finalize(self) -> tuple[int, int]:
        """Completes the object and makes it visible, durable as the options say.

        Returns the bytes that came in and the bytes stored; without compression both are equal.  When it raises,
        nothing has appeared, with three exceptions that `stats().visible` tells: Ctrl-C came after the last step, a
        file is in place but its folder could not be made durable, or a store has acknowledged the object but could not
        be asked for it.
        """
        self._enter("finalize")
        self._appends = False
        try:
            self._stream.finish()
            self._ended = "finalized"
        except BaseException as error:
            if self._stream.stats().visible:
                self._ended = "finalized"
            else:
                self._fail("finalize", error)
            raise
        finally:
            self._leave()
        stats = self.stats()
        logger.debug(
            "wrote %s: %d bytes, %d stored, %s, %s, %.3f s of which %.3f s waiting",
            self._uri,
            stats.bytes_written,
            stats.compressed_bytes,
            stats.io_engine,
            "O_DIRECT" if stats.direct else f"buffered ({stats.direct_reason})" if stats.direct_reason else "buffered",
            time.monotonic() - self._began,
            stats.wait_seconds,
        )
        return stats.bytes_written, stats.compressed_bytes

    def abort(self) -> None:
        """Drops the object: nothing appears, and what was there before stays.  Does nothing after `finalize`."""
        if self._ended or self._pid != os.getpid():
            return
        if not self._turn.acquire(blocking=False):
            raise self._busy("abort")
        self._state.acquire()
        try:
            self._appends = False
            self._last_stats = self._stream.stats()
            self._ended = "aborted"
            self._stream.abort()
        finally:
            self._leave()
        logger.debug("aborted %s", self._uri)

    def bytes_written(self) -> int:
        """Bytes that came in so far, before compression."""
        return self.stats().bytes_written

    def compressed_bytes(self) -> int:
        """Bytes stored so far, without what the compressor still holds; equal to `bytes_written` without one."""
        return self.stats().compressed_bytes

    def checksum(self) -> str:
        """The CRC32C of the bytes that came in so far, as ``'crc32c:c99465aa'``."""
        return checksum_text(self.stats().crc32c)

    def stats(self) -> WriterStats:
        """What the writer did so far, and how."""
        if self._pid != os.getpid():
            raise self._forked("stats")
        # Long enough for a call that another thread is in to end, as a rule.
        if self._state.acquire(timeout=1.0):
            try:
                self._last_stats = self._stream.stats()
            finally:
                self._state.release()
        return self._last_stats

    def run(self, operation: str, work: Callable[[Stream], Result]) -> Result:
        """Does something with the stream, as the other calls do; for writers made of this one."""
        self._enter(operation)
        try:
            return work(self._stream)
        except BaseException as error:
            self._fail(operation, error)
            raise
        finally:
            self._leave()

    def _enter(self, operation: str) -> None:
        """One call at a time, in the process that made the writer, and only while it is open and well.  After it the
        caller calls `_leave`."""
        if self._pid != os.getpid():
            raise self._forked(operation)
        if not self._turn.acquire(blocking=False):
            raise self._busy(operation)
        if self._within is not None:  # a signal handler, or what was broken off before it could clear up
            self._turn.release()
            text = f"{operation} {self._uri}: this thread is inside of {self._within!r} of the writer"
            raise BusyError(text, operation=operation, uri=str(self._uri))
        self._within = operation
        self._state.acquire()
        error = None if self._failure is None else copy_of(self._failure)
        if error is None and (self._ended or (self._closed and operation == "write")):
            text = f"{operation} {self._uri}: the writer is already {self._ended or 'closed'}"
            error = ClosedError(text, operation=operation, uri=str(self._uri))
        if error is not None:
            self._leave()
            raise error

    def _leave(self) -> None:
        self._within = None
        self._state.release()
        self._turn.release()

    def _fail(self, operation: str, error: BaseException) -> None:
        """Keeps the first failure, for later calls to raise again."""
        self._appends = False
        if isinstance(error, S3dlioError):
            self._failure = copy_of(error)
        else:
            text = f"{operation} {self._uri}: broken off by {type(error).__name__}"
            self._failure = S3dlioError(text, operation=operation, uri=str(self._uri))

    def _forked(self, operation: str) -> ForkedError:
        text = f"{operation} {self._uri}: the writer was made by the parent of this process"
        return ForkedError(text, operation=operation, uri=str(self._uri))

    def _busy(self, operation: str) -> BusyError:
        return BusyError(
            f"{operation} {self._uri}: another thread is using the writer", operation=operation, uri=str(self._uri)
        )

    def __enter__(self) -> Self:
        self._inside = True
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is not None:
            with suppress(BusyError):  # the exception on its way says more
                self.abort()
        elif not self._ended:
            try:
                self.finalize()
            except BaseException:
                with suppress(BusyError):
                    self.abort()
                raise

    def __reduce__(self) -> NoReturn:
        raise TypeError("a writer can be neither copied nor pickled")

    def __del__(self, _warn: Any = warnings.warn) -> None:
        if self._ended or self._pid != os.getpid():
            return
        try:
            if self._failure is None:
                _warn(f"{self!r} was dropped unfinished: nothing is stored", ResourceWarning, source=self)
        finally:
            self._ended = "aborted"
            self._stream.drop()

    def __repr__(self) -> str:
        return f"<ObjectWriter {self._uri} {self._ended or ('failed' if self._failure else 'open')}>"


def open_writer(uri: str, options: WriterOptions | None = None, **settings: Any) -> ObjectWriter:
    """Begins an object at ``uri``; the scheme decides where: ``file``, ``direct`` (files with O_DIRECT), ``s3``, ``az``
    or ``memory``.  The URI of a path is ``Path(path).as_uri()``: of files it is percent-decoded (RFC 8089).

    Settings are those of `WriterOptions`, as an object or as keywords:
    ``open_writer(uri, compression='zstd', level=6)``.  How S3 and Azure are reached is
    said by `configure_s3` and `configure_azure`.
    """
    return ObjectWriter(parse_uri(uri), writer_options(options, settings))
