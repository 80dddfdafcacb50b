"""Objects as seekable file objects."""

from __future__ import annotations

import io
import os
from typing import TYPE_CHECKING, Any

from s3dlio._errors import InvalidInputError
from s3dlio._logging import TRACE, logger
from s3dlio._native import check, ffi, lib, new_bytes, new_handle, pointer
from s3dlio._options import whole_number
from s3dlio._stores.registry import store_for
from s3dlio._uri import parse_uri

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from s3dlio._stores.base import Source
    from s3dlio._uri import Uri

MAX_BUFFER_SIZE = 1 << 30
_ZSTD_INPUT_SIZE = 1 << 20


def read_range(source: Source, start: int, length: int) -> bytes:
    """``length`` bytes from ``start`` on, fewer at the end of the object, without a copy in between."""
    data = new_bytes(max(0, min(length, source.size - start)))
    count = source.readinto(start, pointer(data)) if data else 0
    return data if count == len(data) else data[:count]


class ObjectReader(io.RawIOBase):
    """The bytes of an object, unbuffered: each read is a request to the store."""

    def __init__(self, source: Source, uri: Uri) -> None:
        self._source = source
        self._uri = uri
        self._position = 0

    @property
    def name(self) -> str:
        return str(self._uri)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        self._check_open()
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._check_open()
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._source.size}
        if whence not in base:
            raise InvalidInputError(f"seek {self._uri}: whence must be 0, 1 or 2, not {whence!r}")
        if base[whence] + offset < 0:
            raise InvalidInputError(f"seek {self._uri}: position {base[whence] + offset} is before the beginning")
        self._position = base[whence] + offset
        return self._position

    def readinto(self, buffer: Buffer) -> int:
        self._check_open()
        count = self._source.readinto(self._position, pointer(buffer, writable=True))
        logger.log(TRACE, "read %s: %d bytes from %d on", self._uri, count, self._position)
        self._position += count
        return count

    def readall(self) -> bytes:
        self._check_open()
        data = read_range(self._source, self._position, self._source.size)
        self._position += len(data)
        return data

    def close(self) -> None:
        if not self.closed:
            self._source.close()
        super().close()

    def _check_open(self) -> None:
        if self.closed:
            raise ValueError("I/O operation on closed file")


class ZstdReader(io.RawIOBase):
    """The decompressed bytes of a zstd stream.  Seeking forward decompresses what is passed over, seeking back starts
    again from the beginning.

    A damaged or truncated stream raises CorruptDataError, never ends early.  The checksum stands behind the last byte:
    so the reader is always one byte ahead, and a read that takes just the whole content has met the end as well.
    """

    def __init__(self, raw: ObjectReader) -> None:
        self._raw = raw
        self._input = bytearray(_ZSTD_INPUT_SIZE)
        self._data = ffi.from_buffer(self._input)
        self._start()

    def _start(self) -> None:
        self._decoder = new_handle("s3dlio_zstd_decoder")
        check(lib.s3dlio_zstd_decoder_new(self._decoder), "decompress", self._raw.name)
        self._in = ffi.new("struct s3dlio_zstd_in *", {"data": self._data, "nbytes": 0, "pos": 0})
        self._out = ffi.new("struct s3dlio_zstd_out *")
        self._ahead = ffi.new("char[1]")
        self._is_ahead = False
        self._position = 0
        self._in_step = True  # whether the decoder is at this position

    @property
    def name(self) -> str:
        return self._raw.name

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        self._check_open()
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._check_open()
        before = self._position
        try:
            if whence == os.SEEK_END:
                self._skip(None)
            if whence != os.SEEK_SET:
                offset += self._position
            if offset < 0:
                raise InvalidInputError(f"seek {self.name}: position {offset} is before the beginning")
            if offset < self._position:
                self._restart()
            self._skip(offset)
        except BaseException:
            self._moved_nothing(before)
            raise
        return self._position

    # No context manager: Ctrl-C within its end would come after the bytes are passed over.
    def _moved_nothing(self, before: int) -> None:
        """A call that fails moves nothing, also when Ctrl-C breaks it off: what it has passed over is read again."""
        self._position, self._in_step = before, False

    def _restart(self) -> None:
        self._raw.seek(0)
        self._start()

    def _skip(self, position: int | None) -> None:
        scratch = memoryview(bytearray(1 << 20))
        while position is None or self._position < position:
            wanted = len(scratch) if position is None else min(len(scratch), position - self._position)
            if self.readinto(scratch[:wanted]) == 0:
                break

    def readinto(self, buffer: Buffer) -> int:
        self._check_open()
        data = pointer(buffer, writable=True)
        count = 0
        if len(data) == 0:
            return 0
        before = self._position
        try:
            if not self._in_step:
                self._restart()
                self._skip(before)
            if self._is_ahead:
                data[0] = self._ahead[0]
                count = 1
            if count < len(data):
                count += self._decompress(data + count, len(data) - count)
            self._is_ahead = count > 0 and self._decompress(self._ahead, 1) == 1
            self._position = before + count
        except BaseException:
            self._moved_nothing(before)
            raise
        return count

    def _decompress(self, data: Any, room: int) -> int:
        """At least one byte, unless the stream has ended as it should."""
        self._out.data, self._out.nbytes, self._out.pos = data, room, 0
        while self._out.pos == 0:
            ended = False
            if self._in.pos == self._in.nbytes:
                self._in.nbytes = self._raw.readinto(self._input)
                self._in.pos = 0
                ended = self._in.nbytes == 0
            check(lib.s3dlio_zstd_decoder_read(self._decoder[0], self._in, self._out), "decompress", self.name)
            if ended and self._out.pos == 0:
                check(lib.s3dlio_zstd_decoder_end(self._decoder[0]), "decompress", self.name)
                break
        return int(self._out.pos)

    def close(self) -> None:
        self._raw.close()
        super().close()

    def _check_open(self) -> None:
        if self.closed:
            raise ValueError("I/O operation on closed file")


def open_reader(uri: str, *, decompress: bool = False, buffer_size: int | None = None) -> io.BufferedReader:
    """Opens an object for reading, as a seekable binary file object.

    ``read``, ``readinto`` (into your memory, without a copy for large requests), ``seek``, ``tell`` and iteration work
    as for a file; all reads see the version that was opened.  ``decompress=True`` reads a zstd stream's content: then
    seeking back starts again from the beginning, and damage raises CorruptDataError.  The name's ending decides
    nothing.  ``buffer_size`` is in bytes, 1 to 1 GiB, ``None`` 1 MiB, and 8 MiB where each read is a request over the
    network; reads above it go straight to the store.
    """
    parsed = parse_uri(uri)
    store = store_for(parsed)
    buffer_size = store.read_size if buffer_size is None else whole_number("buffer_size", buffer_size)
    if not 1 <= buffer_size <= MAX_BUFFER_SIZE:
        raise InvalidInputError(f"buffer_size must be 1 to {MAX_BUFFER_SIZE}, not {buffer_size}", uri=uri)
    raw = ObjectReader(store.open(parsed), parsed)
    return io.BufferedReader(ZstdReader(raw) if decompress else raw, buffer_size)
