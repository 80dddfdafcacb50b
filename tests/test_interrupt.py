"""Ctrl-C, and other things that come at any moment: threads, forks, finalizers."""

from __future__ import annotations

import copy
import gc
import io
import itertools
import mmap
import os
import pickle
import random
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

import s3dlio
from s3dlio import _tasks
from s3dlio._reader import ObjectReader

Run = Callable[..., subprocess.CompletedProcess[str]]
BLOCK = 64 << 10


@contextmanager
def interrupted(seconds: float, again: float = 0) -> Iterator[None]:
    """Ctrl-C after so many seconds, and after so many more, unless the block has ended before."""
    signal.setitimer(signal.ITIMER_REAL, seconds, again)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def hard_to_compress(size: int) -> bytes:
    """Bytes of which a high level compresses some 3 MB a second."""
    return os.urandom(size).translate(bytes(byte % 23 for byte in range(256)))


@pytest.fixture(autouse=True)
def _alarm_is_ctrl_c() -> Iterator[None]:
    before = signal.signal(signal.SIGALRM, signal.default_int_handler)
    yield
    signal.signal(signal.SIGALRM, before)


def test_ctrl_c_just_when_the_wait_for_a_task_begins_is_heard() -> None:
    # Python took note of the signal before the main thread was in its wait, which nothing ended then.
    chance = random.Random(1)
    for _ in range(500):
        began = time.monotonic()
        with pytest.raises(KeyboardInterrupt), interrupted(chance.uniform(0.00002, 0.0002), again=2.0):
            _tasks._apart(lambda inbox: inbox.get())  # nothing ever comes
        assert time.monotonic() - began < 1.5


def test_ctrl_c_before_the_task_is_handed_over_does_not_wait_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = _tasks._queue()
    assert jobs is not None

    class Struck:
        def put(self, job: _tasks._Job) -> None:
            monkeypatch.undo()
            handed.append(job)
            if len(handed) == 1:
                raise KeyboardInterrupt
            jobs.put(job)

    handed: list[_tasks._Job] = []
    monkeypatch.setattr(_tasks, "_queue", Struck)
    with pytest.raises(KeyboardInterrupt), interrupted(2.0, again=2.0):
        _tasks._apart(lambda inbox: handed.clear())
    assert len(handed) == 2  # and it was not begun
    assert handed[0].is_over


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("durability", ["none", "data"])  # by the thread itself, by an engine
def test_ctrl_c_at_any_moment_of_small_writes_stays_ctrl_c(disk_path: Path, durability: str) -> None:
    # A signal between taking the lock and the work left the writer locked: leaving `with` then raised BusyError.
    caught = 0
    for number in range(300):
        try:
            with (
                interrupted(0.0005 + number * 0.00001),
                s3dlio.open_writer(f"file://{disk_path}/a", durability=durability, buffer_size=BLOCK) as writer,
            ):
                for _ in range(100_000):
                    writer.write_chunk(b"x")
        except KeyboardInterrupt:
            caught += 1
    assert caught > 250
    gc.collect()
    assert list(disk_path.iterdir()) == []


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_ctrl_c_at_any_moment_of_opening_leaks_nothing(disk_path: Path) -> None:
    (disk_path / "a").write_bytes(b"x")
    caught = 0
    for number in range(300):
        try:
            with interrupted(0.00005 + number * 0.000001):
                for _ in range(100):
                    s3dlio.open_writer(f"file://{disk_path}/b", durability="none").abort()
                    s3dlio.open_reader(f"file://{disk_path}/a").close()
        except KeyboardInterrupt:
            caught += 1
    # Python swallows what a signal raises inside a finalizer.
    assert caught > 250
    # The fixture of all tests counts the descriptors now.


def test_interrupted_chunk_fails_the_writer_with_an_error_of_its_own(disk_path: Path) -> None:
    writer = s3dlio.open_writer(f"file://{disk_path}/a", compression="zstd", level=19, threads=0)
    chunk = hard_to_compress(32 << 20)
    with pytest.raises(KeyboardInterrupt), interrupted(0.5):
        began = time.monotonic()
        writer.write_chunk(chunk)
    assert time.monotonic() - began < 3
    for _ in range(2):
        with pytest.raises(s3dlio.S3dlioError, match="broken off by KeyboardInterrupt"):
            writer.finalize()
    writer.abort()
    assert list(disk_path.iterdir()) == []


def test_abort_does_not_wait_for_a_slow_job_of_the_compressor(
    disk_path: Path, run_python: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    # It waited for the threads of libzstd: 11 s at level 19, minutes at 22.
    code = """
import os, sys, time, s3dlio  # and at the end the program ends with a job under way
writer = s3dlio.open_writer(sys.argv[1], compression="zstd", level=22, threads=2)
writer.write_chunk(os.urandom(1 << 20) * 150)
began = time.monotonic()
writer.abort()
print(time.monotonic() - began)
"""
    done = run_python(code, f"file://{disk_path}/a")
    assert float(done.stdout) < 2
    assert list(disk_path.iterdir()) == []


def test_interrupted_finalize_is_either_done_or_failed(disk_path: Path) -> None:
    outcomes = set()
    slow = hard_to_compress(1_500_000)
    for number in range(120):
        chunk, delay = (slow, 0.05) if number % 10 == 0 else (b"x", 0.00002 + number * 0.000003)
        uri = f"file://{disk_path}/{number}.zst"
        writer = s3dlio.open_writer(uri, durability="none", compression="zstd", level=19, threads=1)
        writer.write_chunk(chunk)
        with suppress(KeyboardInterrupt), interrupted(delay):
            writer.finalize()
        visible = s3dlio.exists(uri)
        assert writer.stats().visible == visible
        outcomes.add(visible)
        writer.abort()
        assert s3dlio.exists(uri) == visible
    assert outcomes == {True, False}


def test_failed_writer_lets_go_of_the_chunk(disk_path: Path) -> None:
    # The error that sticks kept its traceback, and with it the frame that held the chunk.
    chunk = mmap.mmap(-1, 32 << 20)
    writer = s3dlio.open_writer(f"file://{disk_path}/a", compression="zstd", level=19, threads=0)
    chunk[:] = hard_to_compress(len(chunk))
    with pytest.raises(KeyboardInterrupt), interrupted(0.3):
        writer.write_chunk(chunk)
    writer.abort()
    chunk.close()


def test_state_may_be_asked_from_another_thread_all_the_time(disk_path: Path) -> None:
    seen = []
    ended = threading.Event()
    writer = s3dlio.open_writer(f"direct://{disk_path}/a", buffer_size=BLOCK)

    def watch() -> None:
        while not ended.is_set():
            seen.append(writer.bytes_written())
            writer.checksum()

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        for _ in range(300):
            writer.write_chunk(bytes(100_000))
        writer.finalize()
    except s3dlio.BusyError:
        pytest.fail("asking for the state disturbed the writer")
    finally:
        ended.set()
        watcher.join(timeout=30)
    assert seen == sorted(seen)
    assert writer.bytes_written() == 30_000_000


def test_first_use_of_a_store_by_many_threads_makes_one_store(run_python: Run) -> None:
    # Each thread made a store of its own, and the objects in all but one of them were lost.
    code = """
import threading
import s3dlio
start = threading.Barrier(8)
def work(number):
    start.wait()
    s3dlio.put(f"memory://x/{number}", b"x")
threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
for thread in threads: thread.start()
for thread in threads: thread.join()
print(len(s3dlio.list("memory://x")))
"""
    for _ in range(5):
        assert run_python(code).stdout == "8\n"


def test_child_of_a_fork_may_use_the_memory_store(run_python: Run) -> None:
    code = """
import os, sys, threading, warnings
import s3dlio
warnings.simplefilter("ignore")
s3dlio.put("memory://x/a", b"x")  # a fork in the middle of an import is beyond help
def work():
    while True:
        s3dlio.put("memory://x/a", b"x")
threading.Thread(target=work, daemon=True).start()
for _ in range(50):
    pid = os.fork()
    if pid == 0:
        s3dlio.put("memory://x/b", b"x")
        os._exit(len(s3dlio.list("memory://x")))
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) in (1, 2)
print("done", flush=True)
os._exit(0)
"""
    assert run_python(code).stdout == "done\n"


def test_program_that_ends_with_open_writers_ends_well(disk_path: Path, run_python: Run) -> None:
    code = """
import sys, warnings
import s3dlio
warnings.simplefilter("ignore")
keep = []
for number in range(4):
    writer = s3dlio.open_writer(f"{sys.argv[1]}/{number}", compression="zstd" if number % 2 else None)
    writer.write_chunk(bytes(20_000_000))
    writer.self = writer
    keep.append(writer)
keep.append(s3dlio.open_reader("file:///etc/hostname"))
"""
    for scheme in ("file", "direct"):
        run_python(code, f"{scheme}://{disk_path}")
        assert list(disk_path.iterdir()) == []


def test_writer_can_be_neither_copied_nor_pickled(disk_path: Path) -> None:
    # A copy that was dropped aborted the original.
    with s3dlio.open_writer(f"file://{disk_path}/a") as writer:
        for duplicate in (copy.copy, copy.deepcopy, pickle.dumps):
            with pytest.raises(TypeError, match="neither copied nor pickled"):
                duplicate(writer)
    assert (disk_path / "a").exists()


def test_warning_as_error_still_aborts_a_dropped_writer(disk_path: Path, run_python: Run) -> None:
    code = """
import gc, os, sys
import s3dlio
before = len(os.listdir("/proc/self/fd"))
writer = s3dlio.open_writer(sys.argv[1])
writer.write_chunk(bytes(10_000_000))
del writer
gc.collect()
assert len(os.listdir("/proc/self/fd")) == before
"""
    done = run_python(code, f"file://{disk_path}/a")
    assert "dropped unfinished" in done.stderr
    assert list(disk_path.iterdir()) == []


def test_options_of_another_kind_are_a_type_error() -> None:
    with pytest.raises(TypeError, match="WriterOptions"):
        s3dlio.open_writer("memory://a/b", {"level": 3})  # type: ignore[arg-type]


@pytest.mark.parametrize("buffer_size", [1, 65536])
def test_zstd_reader_that_is_broken_off_goes_on_where_it_was(monkeypatch: pytest.MonkeyPatch, buffer_size: int) -> None:
    # What the decoder had passed over was lost without a word, in this and in the next read.
    data = random.Random(1).randbytes(3_500_000)
    s3dlio.put("memory://interrupt/a.zst", data, compression="zstd", level=1)
    calls: list[Callable[[io.BufferedReader], object]] = [
        lambda reader: reader.read(2_500_000),
        lambda reader: reader.read(),
        lambda reader: reader.seek(3_000_000),
        lambda reader: reader.seek(0, os.SEEK_END),
        lambda reader: reader.readinto(bytearray(3_000_000)),
    ]
    readinto = ObjectReader.readinto
    broken_off = 0

    for step, call in itertools.product((1, 2, 3), calls):
        left = step

        def break_off(self: ObjectReader, buffer: bytearray) -> int:
            nonlocal left
            left -= 1
            if left == 0:
                raise KeyboardInterrupt
            return readinto(self, buffer)

        with s3dlio.open_reader("memory://interrupt/a.zst", decompress=True, buffer_size=buffer_size) as reader:
            assert reader.read(1000) == data[:1000]
            with monkeypatch.context() as patch, suppress(KeyboardInterrupt):
                patch.setattr(ObjectReader, "readinto", break_off)
                call(reader)
            broken_off += left <= 0
            position = reader.tell()
            assert reader.read(5000) == data[position : position + 5000], (step, position)
            assert reader.seek(10) == 10
            assert reader.read() == data[10:]
    assert broken_off > 10
