"""What every writer promises, run on every store."""

from __future__ import annotations

import array
import contextlib
import gc
import io
import mmap
import os
import pickle
import random
import tarfile
import threading
import warnings
from typing import Any

import crc32c as independent
import numpy as np
import pytest
from places import Place

import s3dlio

KIB = 1 << 10
BLOCK = 64 * KIB
SIZES = (0, 1, 511, 512, 513, 4095, 4096, 4097, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK, 20 * BLOCK + 12345)


def pattern(size: int, seed: int = 0) -> bytes:
    return random.Random(seed).randbytes(size)


def chunks(data: bytes, seed: int) -> list[bytes]:
    """The data cut into pieces of very different sizes."""
    cutter = random.Random(seed)
    result = []
    while data:
        size = cutter.choice((0, 1, 7, 100, 4096, 50_000, 300_000))
        result.append(data[:size])
        data = data[size:]
    return result


@pytest.mark.parametrize("size", SIZES)
def test_object_of_any_size_equals_its_chunks(place: Place, size: int) -> None:
    data = pattern(size)
    with s3dlio.open_writer(place.uri("a"), buffer_size=BLOCK) as writer:
        for chunk in chunks(data, seed=size):
            writer.write_chunk(chunk)
    assert s3dlio.get(place.uri("a")) == data
    assert writer.checksum() == f"crc32c:{independent.crc32c(data):08x}"
    assert (writer.bytes_written(), writer.compressed_bytes()) == (size, size)
    assert s3dlio.stat(place.uri("a"))["size"] == size
    assert place.leftovers() == []


@pytest.mark.parametrize("size", [0, 1, BLOCK, 20 * BLOCK + 12345])
@pytest.mark.parametrize("level", [1, 19])
def test_compressed_object_is_a_zstd_frame_of_its_chunks(place: Place, size: int, level: int) -> None:
    data = pattern(size // 2) + bytes(size - size // 2)
    writer = s3dlio.open_writer(place.uri("a"), compression="zstd", level=level, buffer_size=BLOCK)
    for chunk in chunks(data, seed=size):
        writer.write_chunk(chunk)
    raw, stored = writer.finalize()
    assert writer.uri == place.uri("a.zst")
    assert not s3dlio.exists(place.uri("a"))
    assert raw == size
    assert stored == s3dlio.stat(place.uri("a.zst"))["size"] == writer.compressed_bytes()
    assert writer.checksum() == f"crc32c:{independent.crc32c(data):08x}"
    with s3dlio.open_reader(place.uri("a.zst"), decompress=True) as reader:
        assert reader.read() == data


def test_compressed_name_with_suffix_keeps_it(place: Place) -> None:
    with s3dlio.open_writer(place.uri("a.zst"), compression="zstd") as writer:
        writer.write_chunk(b"x")
    assert writer.uri == place.uri("a.zst")
    assert s3dlio.list(place.base) == [place.uri("a.zst")]


@pytest.mark.parametrize("durability", ["none", "data", "full"])
def test_every_durability_stores_the_object(place: Place, durability: str) -> None:
    data = pattern(3 * BLOCK + 5)
    s3dlio.put(place.uri("a"), data, durability=durability, buffer_size=BLOCK)
    assert s3dlio.get(place.uri("a")) == data


def test_nothing_is_visible_before_finalize(place: Place) -> None:
    writer = s3dlio.open_writer(place.uri("a"), buffer_size=BLOCK)
    writer.write_chunk(pattern(30 * BLOCK))
    assert not s3dlio.exists(place.uri("a"))
    assert s3dlio.list(place.base) == []
    writer.finalize()
    assert s3dlio.exists(place.uri("a"))


def test_old_object_stays_until_finalize(place: Place) -> None:
    s3dlio.put(place.uri("a"), b"old")
    writer = s3dlio.open_writer(place.uri("a"), buffer_size=BLOCK)
    writer.write_chunk(pattern(30 * BLOCK))
    assert s3dlio.get(place.uri("a")) == b"old"
    writer.finalize()
    assert s3dlio.get(place.uri("a")) == pattern(30 * BLOCK)
    assert place.leftovers() == []


def test_abort_leaves_the_old_object_and_nothing_else(place: Place) -> None:
    s3dlio.put(place.uri("a"), b"old")
    for name in ("a", "new", "deep/er/new"):
        writer = s3dlio.open_writer(place.uri(name), buffer_size=BLOCK)
        writer.write_chunk(pattern(30 * BLOCK))
        writer.abort()
        writer.abort()
        with pytest.raises(s3dlio.ClosedError, match="aborted"):
            writer.finalize()
    assert s3dlio.list(place.base) == [place.uri("a")]
    assert s3dlio.get(place.uri("a")) == b"old"
    assert place.leftovers() == []


def test_exception_in_with_aborts_and_is_kept(place: Place) -> None:
    class OwnError(Exception):
        pass

    with pytest.raises(OwnError), s3dlio.open_writer(place.uri("a")) as writer:
        writer.write_chunk(b"x")
        raise OwnError
    assert not s3dlio.exists(place.uri("a"))
    assert place.leftovers() == []


def test_dropped_writer_warns_and_stores_nothing(place: Place) -> None:
    writer = s3dlio.open_writer(place.uri("a"), buffer_size=BLOCK)
    writer.write_chunk(pattern(30 * BLOCK))
    with pytest.warns(ResourceWarning, match="dropped unfinished"):
        del writer
        gc.collect()
    assert not s3dlio.exists(place.uri("a"))
    assert place.leftovers() == []


def test_finalized_writer_is_dropped_in_silence(place: Place) -> None:
    writer = s3dlio.open_writer(place.uri("a"))
    writer.finalize()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        del writer
        gc.collect()
    assert s3dlio.get(place.uri("a")) == b""


def test_calls_after_finalize_raise_and_keep_the_object(place: Place) -> None:
    writer = s3dlio.open_writer(place.uri("a"))
    writer.write_chunk(b"abc")
    assert writer.finalize() == (3, 3)
    with pytest.raises(s3dlio.ClosedError, match="finalized"):
        writer.write_chunk(b"more")
    with pytest.raises(s3dlio.ClosedError, match="finalized"):
        writer.finalize()
    writer.abort()
    assert s3dlio.get(place.uri("a")) == b"abc"
    assert writer.bytes_written() == 3


def buffers() -> dict[str, tuple[Any, bytes]]:
    mapped = mmap.mmap(-1, 5)
    mapped[:] = b"mmap!"
    return {
        "bytes": (b"abc", b"abc"),
        "bytearray": (bytearray(b"abc"), b"abc"),
        "memoryview": (memoryview(b"abcdef")[1:4], b"bcd"),
        "mmap": (mapped, b"mmap!"),
        "array": (array.array("d", [1.5, 2.5]), array.array("d", [1.5, 2.5]).tobytes()),
        "float16": (np.arange(6, dtype=np.float16).reshape(2, 3), np.arange(6, dtype=np.float16).tobytes()),
        "big-endian": (np.arange(6, dtype=">i8"), np.arange(6, dtype=">i8").tobytes()),
        "row": (np.arange(12, dtype=np.int32).reshape(3, 4)[1], np.arange(4, 8, dtype=np.int32).tobytes()),
        "empty": (np.zeros((0, 4)), b""),
        "read-only": (np.frombuffer(b"abcd", dtype=np.uint16), b"abcd"),
    }


@pytest.mark.parametrize("kind", buffers())
def test_any_contiguous_buffer_is_stored_by_its_bytes(place: Place, kind: str) -> None:
    buffer, expected = buffers()[kind]
    with s3dlio.open_writer(place.uri("a")) as writer:
        writer.write_chunk(buffer)
        writer.write_owned_bytes(buffer)
    assert s3dlio.get(place.uri("a")) == expected * 2


@pytest.mark.parametrize(
    ("chunk", "error"),
    [
        ("text", TypeError),
        (None, TypeError),
        (3, TypeError),
        ([1, 2], TypeError),
        (np.arange(12).reshape(3, 4)[:, 1], ValueError),
        (np.asfortranarray(np.arange(12).reshape(3, 4)), ValueError),
        (memoryview(b"abcdef")[::2], ValueError),
    ],
)
def test_wrong_chunk_is_refused_and_the_writer_goes_on(place: Place, chunk: Any, error: type[Exception]) -> None:
    with s3dlio.open_writer(place.uri("a")) as writer:
        writer.write_chunk(b"before ")
        with pytest.raises(error):
            writer.write_chunk(chunk)
        writer.write_chunk(b"after")
    assert s3dlio.get(place.uri("a")) == b"before after"


def test_chunk_may_be_reused_at_once(place: Place) -> None:
    chunk = bytearray(BLOCK)
    with s3dlio.open_writer(place.uri("a"), buffer_size=BLOCK, in_flight=2) as writer:
        for value in range(40):
            chunk[:] = bytes([value]) * BLOCK
            writer.write_chunk(chunk)
            chunk[:] = b"\xff" * BLOCK
    assert s3dlio.get(place.uri("a")) == b"".join(bytes([value]) * BLOCK for value in range(40))


def test_checksum_and_counts_are_right_all_along(place: Place) -> None:
    data = pattern(5 * BLOCK + 77)
    with s3dlio.open_writer(place.uri("a"), buffer_size=BLOCK) as writer:
        assert writer.checksum() == "crc32c:00000000"
        done = 0
        for chunk in chunks(data, seed=1):
            writer.write_chunk(chunk)
            done += len(chunk)
            assert writer.bytes_written() == done
            assert writer.checksum() == f"crc32c:{independent.crc32c(data[:done]):08x}"


def test_second_thread_gets_an_error_and_no_chunk_is_torn(place: Place) -> None:
    errors: list[s3dlio.BusyError] = []
    written = []
    writer = s3dlio.open_writer(place.uri("a"), buffer_size=BLOCK)
    start = threading.Barrier(2)

    def work(value: int) -> None:
        chunk = bytes([value]) * 1_000_000
        start.wait(timeout=30)
        for _ in range(100):
            try:
                writer.write_chunk(chunk)
                written.append(value)
            except s3dlio.BusyError as error:
                errors.append(error)

    threads = [threading.Thread(target=work, args=(value,)) for value in (1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
        assert not thread.is_alive()
    writer.finalize()
    data = s3dlio.get(place.uri("a"))
    assert len(data) == 1_000_000 * len(written)
    parts = {data[at : at + 1_000_000] for at in range(0, len(data), 1_000_000)}
    assert parts <= {bytes([1]) * 1_000_000, bytes([2]) * 1_000_000}
    assert all("another thread" in str(error) for error in errors)


def test_many_writers_at_once_are_independent(place: Place) -> None:
    failures: list[BaseException] = []

    def work(number: int) -> None:
        try:
            data = pattern(10 * BLOCK + number, seed=number)
            for round_ in range(3):
                s3dlio.put(place.uri(f"{number}/{round_}"), data, buffer_size=BLOCK)
                assert s3dlio.get(place.uri(f"{number}/{round_}")) == data
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
        assert not thread.is_alive()
    assert failures == []
    assert len(s3dlio.list(place.base)) == 24


def test_two_writers_of_one_name_store_one_whole_object(place: Place) -> None:
    objects = [pattern(20 * BLOCK + number, seed=number) for number in range(6)]
    writers = [s3dlio.open_writer(place.uri("a"), buffer_size=BLOCK) for _ in objects]
    for writer, data in zip(writers, objects, strict=True):
        writer.write_chunk(data)
    overtaken = []

    def finalize(writer: s3dlio.ObjectWriter) -> None:
        try:
            writer.finalize()
        except s3dlio.CorruptDataError as error:
            overtaken.append(str(error))

    threads = [threading.Thread(target=finalize, args=[writer]) for writer in writers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
        assert not thread.is_alive()
    assert s3dlio.get(place.uri("a")) in objects
    assert len(overtaken) <= (len(writers) - 1 if place.is_remote else 0)
    assert all("another writer" in text for text in overtaken)
    assert s3dlio.list(place.base) == [place.uri("a")]
    assert place.leftovers() == []


def test_writer_in_a_forked_child_raises_and_the_parent_goes_on(place: Place) -> None:
    data = pattern(30 * BLOCK)
    writer = s3dlio.open_writer(place.uri("a"), buffer_size=BLOCK)
    writer.write_chunk(data)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # fork beside threads
        pid = os.fork()
    if pid == 0:
        code = 1
        try:
            writer.write_chunk(b"child")
        except s3dlio.ForkedError:
            code = 2
        try:
            writer.bytes_written()
        except s3dlio.ForkedError:
            code += 100
        try:
            writer.abort()
            del writer
            gc.collect()
            code += 10
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(wait_for(pid)) == 112
    writer.write_chunk(data)
    writer.finalize()
    assert s3dlio.get(place.uri("a")) == data * 2


def wait_for(pid: int, seconds: float = 30) -> int:
    """Waits for a child, and kills one that hangs."""
    timer = threading.Timer(seconds, os.kill, (pid, 9))
    timer.start()
    try:
        return os.waitpid(pid, 0)[1]
    finally:
        timer.cancel()
        timer.join()


def test_debug_log_names_object_bytes_and_engine(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG", logger="s3dlio")
    with s3dlio.open_writer(place.uri("a")) as writer:
        writer.write_chunk(b"x" * 1000)
    (message,) = [record.getMessage() for record in caplog.records]
    assert place.uri("a") in message
    assert "1000 bytes" in message
    assert writer.stats().io_engine in message


def test_stats_describe_what_was_written(place: Place) -> None:
    block = max(BLOCK, place.smallest_block)
    with s3dlio.open_writer(place.uri("a"), buffer_size=BLOCK) as writer:
        writer.write_chunk(pattern(2 * block + 1))
    stats = writer.stats()
    assert (stats.blocks, stats.block_size, stats.bytes_written) == (3, block, 2 * block + 1)
    assert stats.direct == place.base.startswith("direct:")
    assert stats.direct_reason is None
    if place.engine:
        assert stats.io_engine == {"uring": "io_uring", "threads": "threads"}[place.engine]


def test_small_chunks_of_any_type_are_counted_and_stored(place: Place) -> None:
    with s3dlio.open_writer(place.uri("a"), buffer_size=65536) as writer:
        expected = b""
        for number in range(3000):
            chunk = bytes([number % 256]) * (number % 100)
            expected += chunk
            writer.write_chunk((chunk, bytearray(chunk), memoryview(chunk))[number % 3])
            if number % 500 == 0:
                assert writer.bytes_written() == len(expected)
                assert writer.checksum() == f"crc32c:{s3dlio.crc32c(expected):08x}"
    assert s3dlio.get(place.uri("a")) == expected


def test_small_chunk_after_the_end_or_a_failure_is_refused(place: Place) -> None:
    writer = s3dlio.open_writer(place.uri("a"))
    writer.write_chunk(b"x")
    writer.write_chunk(b"y")
    writer.abort()
    with pytest.raises(s3dlio.ClosedError):
        writer.write_chunk(b"z")
    with s3dlio.open_writer(place.uri("a")) as writer:
        writer.write_chunk(b"x")
    with pytest.raises(s3dlio.ClosedError):
        writer.write_chunk(b"z")
    assert s3dlio.get(place.uri("a")) == b"x"


def test_put_of_any_size_and_type_is_read_back(place: Place) -> None:
    for size in (0, 1, 70_000, (1 << 20) + 1, 5_000_001):
        data = os.urandom(size)
        s3dlio.put(place.uri("a"), data)
        assert s3dlio.get(place.uri("a")) == data
        s3dlio.put(place.uri("a"), memoryview(data), durability="none")
        assert s3dlio.get(place.uri("a")) == data
        s3dlio.put(place.uri("a"), bytearray(data), compression="zstd")
        with s3dlio.open_reader(place.uri("a.zst"), decompress=True) as reader:
            assert reader.read() == data
    assert place.leftovers() == []


def test_writer_is_a_file_object_for_what_saves_to_one(place: Place) -> None:
    array = np.arange(100_000).reshape(10, -1)
    with s3dlio.open_writer(place.uri("a")) as writer:
        assert (writer.writable(), writer.readable(), writer.seekable(), writer.closed) == (True, False, False, False)
        assert writer.write(b"head") == 4
        assert writer.write(array[:1]) == array[:1].nbytes
        assert (
            writer.write(np.array(["2020-01-01"], "M8[s]")) == 8
        )  # which has bytes, but no format of the buffer protocol
        writer.flush()
        assert writer.tell() == 12 + array[:1].nbytes
        pickle.dump({"step": 64, "weights": array}, writer, protocol=5)
        np.save(writer, array)
        writer.writelines([b"one", b"two"])
        with pytest.raises(s3dlio.UnsupportedError, match="being written"):
            writer.read()
    with s3dlio.open_reader(place.uri("a")) as reader:
        assert reader.read(4 + array[:1].nbytes) == b"head" + array[:1].tobytes()
        reader.seek(8, os.SEEK_CUR)
        assert np.array_equal(pickle.load(reader)["weights"], array)
        assert np.array_equal(np.load(reader), array)
        assert reader.read() == b"onetwo"


def test_containers_go_through_a_writer(place: Place) -> None:
    with s3dlio.open_writer(place.uri("tar")) as writer, tarfile.open(fileobj=writer, mode="w|") as archive:
        info = tarfile.TarInfo("inside")
        info.size = 5
        archive.addfile(info, io.BytesIO(b"12345"))
    with s3dlio.open_reader(place.uri("tar")) as reader, tarfile.open(fileobj=reader) as archive:
        assert archive.extractfile("inside").read() == b"12345"
    with s3dlio.open_writer(place.uri("npz")) as writer:
        np.savez(writer, a=np.arange(5))
    with s3dlio.open_reader(place.uri("npz")) as reader:
        assert np.array_equal(np.load(reader)["a"], np.arange(5))
    with s3dlio.open_writer(place.uri("text")) as writer, io.TextIOWrapper(writer, encoding="utf-8") as text:
        text.write("gr\u00fc\u00df dich")
    assert s3dlio.get(place.uri("text")) == "gr\u00fc\u00df dich".encode()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning")
@pytest.mark.parametrize("wrapper", [io.TextIOWrapper, io.BufferedWriter, contextlib.closing])
def test_wrapper_that_closes_the_writer_completes_nothing(place: Place, wrapper: Any) -> None:
    # Whoever wraps a writer closes it also after an exception and when it is dropped: half an object appeared.
    s3dlio.put(place.uri("a"), b"before")
    with pytest.raises(ZeroDivisionError), s3dlio.open_writer(place.uri("a")) as writer, wrapper(writer):
        writer.write(b"half")
        raise ZeroDivisionError
    with pytest.raises(s3dlio.ClosedError), wrapper(s3dlio.open_writer(place.uri("a"))):
        raise ZeroDivisionError
    wrapped = wrapper(s3dlio.open_writer(place.uri("a")))
    del wrapped
    gc.collect()
    writer = s3dlio.open_writer(place.uri("a"))
    writer.write(b"half")
    with pytest.raises(s3dlio.ClosedError, match="nothing is stored"):
        writer.close()
    assert s3dlio.get(place.uri("a")) == b"before"
    with s3dlio.open_writer(place.uri("a")) as writer:
        writer.write(b"whole")
        writer.close()
        assert writer.closed
        with pytest.raises(s3dlio.ClosedError, match="already closed"):
            writer.write(b"more")
    writer.close()
    assert s3dlio.get(place.uri("a")) == b"whole"
    assert place.leftovers() == []


def test_array_of_objects_is_refused_and_harms_nothing(place: Place) -> None:
    # Its bytes are addresses: they were stored.
    objects = np.array([object()])
    records = np.zeros(3, [("Open", "f8"), ("close", "f8")])
    s3dlio.put(place.uri("a"), records)
    assert s3dlio.get(place.uri("a")) == records.tobytes()
    with s3dlio.open_writer(place.uri("a")) as writer:
        with pytest.raises(TypeError, match="array of Python objects"):
            writer.write_chunk(objects)
        with pytest.raises(TypeError, match="encode it first"):
            writer.write_chunk("text")
        writer.write_chunk(b"good")
    with pytest.raises(TypeError, match="array of Python objects"):
        s3dlio.put(place.uri("a"), objects)
    assert s3dlio.get(place.uri("a")) == b"good"
