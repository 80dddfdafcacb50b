"""The stage as stores with remote blocks use it: slow, acknowledged from other threads, and failing."""

from __future__ import annotations

import queue
import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import s3dlio
from s3dlio._native import pointer
from s3dlio._options import WriterOptions
from s3dlio._stores.base import Block, StagedStream
from s3dlio._uri import parse_uri

URI = parse_uri("memory://stage/a")
BLOCK = 64 << 10


class SlowSink:
    """Stores blocks in threads of its own, in any order."""

    name = "slow"

    def __init__(self, threads: int = 3, delay: float = 0.0, fail_at: int | None = None) -> None:
        self.stream: StagedStream
        self.stored: dict[int, bytes] = {}
        self.blocks: dict[int, tuple[int, int]] = {}
        self.in_flight = 0
        self.most_in_flight = 0
        self.size = -1
        self._delay = delay
        self._fail_at = fail_at
        self._lock = threading.Lock()
        self._queue: queue.Queue[Block | None] = queue.Queue()
        self._threads = [threading.Thread(target=self._work) for _ in range(threads)]
        for thread in self._threads:
            thread.start()

    def put(self, block: Block) -> None:
        with self._lock:
            self.in_flight += 1
            self.most_in_flight = max(self.most_in_flight, self.in_flight)
        self._queue.put(block)

    def _work(self) -> None:
        choose = random.Random()
        while (block := self._queue.get()) is not None:
            time.sleep(choose.uniform(0, self._delay))
            if block.index == self._fail_at:
                self.stream.fail(s3dlio.StorageError("put a: the planted failure"))
            self.stored[block.index] = bytes(block.data)
            self.blocks[block.index] = (block.offset, block.crc32c)
            with self._lock:
                self.in_flight -= 1
            block.release()

    def commit(self, size: int, crc32c: int) -> None:
        self.abort()
        self.size = size
        assert s3dlio.crc32c(self.data()) == crc32c

    def abort(self) -> None:
        for _ in self._threads:
            self._queue.put(None)
        for thread in self._threads:
            thread.join(timeout=30)
            assert not thread.is_alive()
        self._threads = []

    def data(self) -> bytes:
        return b"".join(self.stored[index] for index in range(len(self.stored)))


@contextmanager
def staged(sink: SlowSink, **settings: object) -> Iterator[StagedStream]:
    sink.stream = StagedStream(sink, URI, WriterOptions(buffer_size=BLOCK, **settings))  # type: ignore[arg-type]
    try:
        yield sink.stream
    finally:
        sink.abort()


@settings(deadline=None, max_examples=30)
@given(
    sizes=st.lists(st.sampled_from([0, 1, 100, BLOCK - 1, BLOCK, BLOCK + 1, 5 * BLOCK]), max_size=12),
    compression=st.sampled_from([None, "zstd"]),
    in_flight=st.integers(1, 5),
)
def test_blocks_put_together_are_the_stream(sizes: list[int], compression: str | None, in_flight: int) -> None:
    sink = SlowSink(delay=0.0005)
    data = [random.Random(number).randbytes(size) for number, size in enumerate(sizes)]
    with staged(sink, compression=compression, in_flight=in_flight) as stream:
        for chunk in data:
            stream.write(pointer(chunk))
        stream.finish()
    assert sink.size == len(sink.data()) == stream.stats().compressed_bytes
    assert sink.most_in_flight <= in_flight + 1
    offset = 0
    for index, (begin, crc) in sorted(sink.blocks.items()):
        assert begin == offset
        assert crc == s3dlio.crc32c(sink.stored[index])
        offset += len(sink.stored[index])
    if compression is None:
        assert sink.data() == b"".join(data)
    assert stream.stats().crc32c == s3dlio.crc32c(b"".join(data))


def test_writer_waits_for_the_sink_and_says_how_long() -> None:
    sink = SlowSink(threads=1, delay=0.3)
    with staged(sink, in_flight=1) as stream:
        stream.write(pointer(bytes(8 * BLOCK)))
        stream.finish()
    assert stream.stats().wait_seconds > 0
    assert sink.data() == bytes(8 * BLOCK)


def test_failure_of_the_sink_wakes_the_writer_and_sticks() -> None:
    sink = SlowSink(threads=1, delay=0.05, fail_at=2)
    with staged(sink, in_flight=1) as stream:
        for _ in range(2):
            with pytest.raises(s3dlio.StorageError, match="the planted failure"):
                for _ in range(100):
                    stream.write(pointer(bytes(BLOCK)))
        with pytest.raises(s3dlio.StorageError, match="the planted failure"):
            stream.finish()
    assert len(sink.stored) < 10


def test_sink_that_never_acknowledges_ends_in_a_time_out() -> None:
    class DeadSink(SlowSink):
        def put(self, block: Block) -> None:
            pass

    began = time.monotonic()
    with staged(DeadSink(), in_flight=1, timeout=0.3) as stream:
        with pytest.raises(s3dlio.TimedOutError, match=r"no block was stored for 0\.3 s"):
            stream.write(pointer(bytes(10 * BLOCK)))
        assert time.monotonic() - began < 5


def test_block_released_twice_is_an_error_and_lent_once() -> None:
    # The second release put the block on the free list again, and two blocks shared its memory.
    class TwiceSink(SlowSink):
        errors = 0

        def put(self, block: Block) -> None:
            self.stored[block.index] = bytes(block.data)
            block.release()
            try:
                block.release()
            except s3dlio.InvalidInputError:
                self.errors += 1

    sink = TwiceSink()
    data = random.Random(1).randbytes(20 * BLOCK)
    with staged(sink, in_flight=2) as stream:
        stream.write(pointer(data))
        stream.finish()
    assert sink.errors == 20
    assert sink.data() == data


def test_finished_stream_gives_its_blocks_back_and_keeps_its_figures() -> None:
    sink = SlowSink()
    with staged(sink) as stream:
        stream.write(pointer(bytes(5 * BLOCK)))
        stream.finish()
        assert stream._stage is None
        assert stream.stats().bytes_written == 5 * BLOCK
        assert stream.stats().visible
