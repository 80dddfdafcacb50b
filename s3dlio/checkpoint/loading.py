"""The bytes of a shard, read from a store with each of its pieces compared with its checksum."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from s3dlio import _cancel
from s3dlio._checksum import checksum_text, crc32c
from s3dlio._errors import CorruptDataError, InvalidInputError, StorageError
from s3dlio._many import for_each
from s3dlio._native import ffi, new_bytes, pointer
from s3dlio._reader import ObjectReader, ZstdReader
from s3dlio._stores.registry import store_for
from s3dlio._uri import Uri
from s3dlio.checkpoint.documents import is_damage
from s3dlio.checkpoint.layout import Shard

if TYPE_CHECKING:
    from concurrent.futures import Future, ThreadPoolExecutor

    from typing_extensions import Buffer

    from s3dlio._stores.base import Source

# Is told the count of bytes so far.
Progress = Callable[[int], object]

# Bytes that are read, decompressed or compared in one step.
_STEP = 4 << 20

# Pieces that are read at once.
_THREADS = 4


def load_shard(base: Uri, shard: Shard, into: Buffer | None = None, progress: Progress | None = None) -> bytes | int:
    """Returns the bytes of a shard, or fills memory and returns their count.

    Raises CorruptDataError that names shard and offset; memory that was given holds anything then.
    """
    if shard.raw_size is None:
        return _load_of_unknown_size(base, shard, into)
    report = progress or (lambda nbytes: None)
    if into is None:
        content = _room_for(base, shard, shard.raw_size)
        _fill(base, shard, pointer(content), report)
        return content
    data = pointer(into, writable=True)
    _check_room(base, shard, shard.raw_size, len(data))
    _fill(base, shard, data[0 : shard.raw_size], report)
    return shard.raw_size


def _room_for(base: Uri, shard: Shard, nbytes: int) -> bytes:
    try:
        return new_bytes(nbytes)
    except (MemoryError, OverflowError):
        with _opened(base, shard):
            pass  # if the manifest lies, this says so
        raise MemoryError(f"load {base.below(shard.key)}: {nbytes} bytes are more than there is memory for") from None


def _check_room(base: Uri, shard: Shard, size: int, room: int) -> None:
    if room < size:
        text = f"load {base.below(shard.key)}: it has {size} bytes, and there is room for {room}"
        raise InvalidInputError(text, operation="load", uri=str(base.below(shard.key)))


def _load_of_unknown_size(base: Uri, shard: Shard, into: Buffer | None) -> bytes | int:
    """A compressed shard whose record tells nothing of what it holds."""
    with _decoded(base, shard) as (reader, _):
        content = reader.readall()
    if into is None:
        return content
    data = pointer(into, writable=True)
    _check_room(base, shard, len(content), len(data))
    ffi.memmove(data, content, len(content))
    return len(content)


def _fill(base: Uri, shard: Shard, data: Any, report: Progress) -> None:
    if shard.is_compressed:
        _decompress(base, shard, data, report)
    else:
        _read(base, shard, data, report)


@contextmanager
def _opened(base: Uri, shard: Shard) -> Iterator[Source]:
    uri = base.below(shard.key)
    source = store_for(uri).open(uri, once=True)
    try:
        if source.size != shard.size:
            where = min(source.size, shard.size)
            raise _damage(uri, shard, where, f"it has {source.size} bytes instead of {shard.size}")
        yield source
    finally:
        source.close()


def _damage(uri: Uri, shard: Shard, offset: int, what: str) -> CorruptDataError:
    text = f"load {uri}: the shard of rank {shard.rank} is damaged at byte {offset}: {what}"
    return CorruptDataError(text, operation="load", uri=str(uri))


def _new_thread() -> ThreadPoolExecutor:
    from concurrent.futures import ThreadPoolExecutor  # it cannot be imported by a program that saves at its exit

    return ThreadPoolExecutor(1, "s3dlio-checkpoint")


def _read(base: Uri, shard: Shard, data: Any, report: Progress) -> None:
    """Several pieces at once, each read and compared in one thread.  Memory that is new costs as much as a fast disk:
    so no thread waits for another one's."""
    uri = base.below(shard.key)
    done = 0
    turn = threading.Lock()
    with ExitStack() as opened:
        # A source serves one thread at a time.
        sources = [opened.enter_context(_opened(base, shard))]

        def read_piece(span: tuple[int, int, int]) -> None:
            nonlocal done
            begin, end, expected = span
            try:
                source = sources.pop()
            except IndexError:
                source = opened.enter_context(_opened(base, shard))
            part = data[begin:end]
            _read_exactly(source, uri, shard, begin, part)
            sources.append(source)
            found = crc32c(ffi.buffer(part))
            if found != expected:
                _raise_mismatch(uri, shard, begin, found, expected)
            with turn:
                done += end - begin
                report(done)

        for_each(list(shard.spans()), read_piece, _THREADS)


def _read_exactly(source: Source, uri: Uri, shard: Shard, begin: int, part: Any) -> None:
    try:
        count = source.readinto(begin, part) if len(part) else 0
    except StorageError as error:
        if not is_damage(error):
            raise
        raise _damage(uri, shard, begin, f"or after: {error}") from error
    if count < len(part):
        raise _damage(uri, shard, begin + count, "it ends there")


def _raise_mismatch(uri: Uri, shard: Shard, begin: int, found: int, expected: int) -> None:
    end = next(end for start, end, _ in shard.spans() if start == begin)
    what = f"its bytes up to {end} have the checksum {checksum_text(found)} instead of {checksum_text(expected)}"
    raise _damage(uri, shard, begin, what)


def _steps(shard: Shard) -> Iterator[tuple[int, int, int, int, int]]:
    """Of each step the begin and end, and those and the checksum of its piece."""
    for begin, end, crc in shard.spans():
        for at in range(begin, end, _STEP):
            yield at, min(at + _STEP, end), begin, end, crc


class _Ahead:
    """The stored bytes of a shard as a `Source` for who reads them from beginning to end.  Another thread is one step
    ahead, and compares each piece with its checksum."""

    def __init__(self, source: Source, uri: Uri, shard: Shard, pool: ThreadPoolExecutor) -> None:
        self._source, self._uri, self._shard, self._pool = source, uri, shard, pool
        self.cancellation = _cancel.Cancellation()
        self._steps = _steps(shard)
        self._spare = [bytearray(_STEP), bytearray(_STEP)]
        self._crc = 0
        self._chunk = memoryview(b"")
        self._position = 0
        self._next = self._begin_step()

    @property
    def size(self) -> int:
        return self._shard.size

    def _begin_step(self) -> Future[memoryview] | None:
        step = next(self._steps, None)
        if step is None:
            return None
        self._spare.reverse()
        return self._pool.submit(self._step, self._spare[0], *step)

    def _step(self, room: bytearray, at: int, until: int, begin: int, end: int, crc: int) -> memoryview:
        with self.cancellation.of_this_thread():
            view = memoryview(room)[: until - at]
            _read_exactly(self._source, self._uri, self._shard, at, pointer(view, writable=True))
            self._crc = crc32c(view, 0 if at == begin else self._crc)
            if until == end and self._crc != crc:
                _raise_mismatch(self._uri, self._shard, begin, self._crc, crc)
            return view

    def readinto(self, start: int, data: Any) -> int:
        assert start == self._position, "it is read from beginning to end"
        if not self._chunk:
            if self._next is None:
                return 0
            # Let go of first: an error that lies in it would hold on to itself, and to all that is being loaded.
            step, self._next = [self._next], None
            self._chunk = step.pop().result()
            self._next = self._begin_step()
        count = min(len(data), len(self._chunk))
        ffi.memmove(data, self._chunk[:count], count)
        self._chunk = self._chunk[count:]
        self._position += count
        return count

    def can_have(self, crc32c: int) -> bool:
        return True

    def close(self) -> None:
        pass

    def finish_piece(self) -> None:
        """Reads on until all that was read is compared."""
        scratch = ffi.new("char[]", _STEP)
        end = next((end for _, end, _ in self._shard.spans() if end >= self._position), 0)
        while self._position < end:
            self.readinto(self._position, scratch)


@contextmanager
def _decoded(base: Uri, shard: Shard) -> Iterator[tuple[ZstdReader, _Ahead]]:
    """What a compressed shard holds, for who reads it from beginning to end."""
    uri = base.below(shard.key)
    with _opened(base, shard) as source, _new_thread() as pool:
        ahead = _Ahead(source, uri, shard, pool)
        stored = ObjectReader(ahead, uri)
        try:
            yield ZstdReader(stored), ahead
        except CorruptDataError as error:
            if error.operation == "load":
                raise
            raise _damage(uri, shard, stored.tell(), f"or before: {error}") from None
        except BaseException:
            ahead.cancellation.cancel()
            raise


def _decompress(base: Uri, shard: Shard, data: Any, report: Progress) -> None:
    done = crc = 0
    with _decoded(base, shard) as (reader, _):
        while done < len(data):
            count = reader.readinto(ffi.buffer(data + done, min(_STEP, len(data) - done)))
            if count == 0:
                break
            crc = crc32c(ffi.buffer(data + done, count), crc)
            done += count
            report(done)
        is_more = reader.readinto(bytearray(1)) > 0
    uri = base.below(shard.key)
    if is_more or done < len(data):
        what = f"it holds {'more' if is_more else done} bytes instead of {len(data)}"
        raise _damage(uri, shard, shard.size, what)
    if shard.raw_checksum not in (None, checksum_text(crc)):
        what = f"it decompresses to bytes of the checksum {checksum_text(crc)} instead of {shard.raw_checksum}"
        raise _damage(uri, shard, shard.size, what)


def load_range(base: Uri, shard: Shard, offset: int, length: int, verify: bool) -> bytes:
    """Bytes of a shard from ``offset`` on, fewer at its end."""
    if shard.is_compressed:
        return _range_of_compressed(base, shard, offset, length, verify)
    stop = max(offset, min(offset + length, shard.size))
    content = _room_for(base, shard, max(0, stop - offset))
    data = pointer(content)
    uri = base.below(shard.key)
    with _opened(base, shard) as source:
        if not verify:
            _read_exactly(source, uri, shard, offset, data)
            return content
        for begin, end, expected in shard.spans():
            low, high = max(begin, offset), min(end, stop)
            if low < high:
                crc = _skim(source, uri, shard, begin, low, 0)
                part = data[low - offset : high - offset]
                _read_exactly(source, uri, shard, low, part)
                crc = _skim(source, uri, shard, high, end, crc32c(ffi.buffer(part), crc))
                if crc != expected:
                    _raise_mismatch(uri, shard, begin, crc, expected)
    return content


def _skim(source: Source, uri: Uri, shard: Shard, begin: int, end: int, crc: int) -> int:
    """Reads bytes for their checksum alone."""
    room = bytearray(min(_STEP, end - begin))
    for at in range(begin, end, _STEP):
        part = memoryview(room)[: min(_STEP, end - at)]
        _read_exactly(source, uri, shard, at, pointer(part, writable=True))
        crc = crc32c(part, crc)
    return crc


def _range_of_compressed(base: Uri, shard: Shard, offset: int, length: int, verify: bool) -> bytes:
    """By decompressing all that is before it."""
    if shard.raw_size is None:
        with _decoded(base, shard) as (reader, ahead):
            reader.seek(offset)
            pieces = []
            while length > 0 and (piece := reader.read(min(_STEP, length))):
                pieces.append(piece)
                length -= len(piece)
            if verify:
                ahead.finish_piece()
        return b"".join(pieces)
    size = max(0, min(length, shard.raw_size - offset))
    content = _room_for(base, shard, size)
    data = pointer(content)
    done = 0
    with _decoded(base, shard) as (reader, ahead):
        reader.seek(offset)
        while done < size and (count := reader.readinto(ffi.buffer(data + done, size - done))) > 0:
            done += count
        if verify:
            ahead.finish_piece()
    return content if done == size else content[:done]
