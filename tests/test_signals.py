"""Ctrl-C anywhere in short calls, by real signals."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType, FunctionType
from typing import Any

import pytest

import s3dlio
from s3dlio._stores.file import FileStream


def is_inside(function: FunctionType, frame: FrameType | None) -> bool:
    """Whether the function is on the stack."""
    while frame is not None and frame.f_code is not function.__code__:
        frame = frame.f_back
    return frame is not None


@pytest.fixture
def interrupts() -> Iterator[None]:
    """KeyboardInterrupt a moment after the timer was set, at any bytecode of a writer or what it calls."""

    def interrupt(_: int, frame: FrameType | None) -> None:
        if is_inside(s3dlio.ObjectWriter.write_chunk, frame):
            raise KeyboardInterrupt
        signal.setitimer(signal.ITIMER_REAL, 0.00005)

    before = signal.signal(signal.SIGALRM, interrupt)
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


def test_interrupted_small_chunk_ends_the_writer_or_was_never_taken(interrupts: None, tmp_path: Path) -> None:
    # The fast way left the writer open with the chunk taken: whoever tried again stored it twice.
    caught = ended = 0
    deadline = time.monotonic() + 60
    while caught < 300 and time.monotonic() < deadline:
        writer = s3dlio.open_writer(f"file://{tmp_path}/a", durability="none")
        writer.write_chunk(b"x")
        done = 1
        signal.setitimer(signal.ITIMER_REAL, 0.0004)
        try:
            while True:
                writer.write_chunk(b"y")
                done += 1
        except KeyboardInterrupt:
            caught += 1
        signal.setitimer(signal.ITIMER_REAL, 0)
        if "failed" in repr(writer):
            ended += 1
        else:
            assert writer.bytes_written() == done
        # Another thread is not kept waiting.
        thread = threading.Thread(target=writer.stats, daemon=True)
        thread.start()
        thread.join(30)
        assert not thread.is_alive()
        writer.abort()
    assert caught == 300
    assert ended > 0
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def handled() -> Iterator[Callable[[Callable[[], object]], list[BaseException]]]:
    """What a signal handler does once it finds itself inside of a write, and what that raised."""
    before = signal.getsignal(signal.SIGALRM)
    raised: list[BaseException] = []

    def have(work: Callable[[], object]) -> list[BaseException]:
        def handle(_: int, frame: FrameType | None) -> None:
            if not is_inside(FileStream.write, frame):
                signal.setitimer(signal.ITIMER_REAL, 0.02)
                return
            try:
                work()
            except s3dlio.S3dlioError as error:
                raised.append(error)

        signal.signal(signal.SIGALRM, handle)
        signal.setitimer(signal.ITIMER_REAL, 0.02)
        return raised

    yield have
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("call", ["write_chunk", "finalize"])
@pytest.mark.parametrize("settings", [{"direct": True, "in_flight": 1}, {"compression": "zstd", "threads": 0}])
def test_signal_handler_inside_a_call_is_refused(
    handled: Callable[..., list[BaseException]], disk_path: Path, call: str, settings: dict[str, Any]
) -> None:
    # Its bytes came to stand in the middle of the chunk, or half of the chunk was made an object.
    chunk = bytes(range(256)) * (1 << 20)
    writer = s3dlio.open_writer(f"file://{disk_path}/a", buffer_size=65536, **settings)
    raised = handled(lambda: writer.write_chunk(b"handler") if call == "write_chunk" else writer.finalize())
    writer.write_chunk(chunk)
    assert [type(error) for error in raised] == [s3dlio.BusyError]
    assert "this thread is inside of 'write'" in str(raised[0])
    writer.write_chunk(b"end")
    writer.finalize()
    with s3dlio.open_reader(writer.uri, decompress=bool(settings.get("compression"))) as reader:
        assert reader.read() == chunk + b"end"


def test_signal_handler_inside_a_call_may_abort(handled: Callable[..., list[BaseException]], disk_path: Path) -> None:
    writer = s3dlio.open_writer(f"file://{disk_path}/a", buffer_size=65536, in_flight=1, direct=True)
    raised = handled(writer.abort)
    with pytest.raises(s3dlio.ClosedError):
        writer.write_chunk(bytes(1 << 28))
    assert raised == []
    assert list(disk_path.iterdir()) == []


@pytest.mark.parametrize("call", ["write_chunk", "finalize"])
def test_signal_handler_inside_a_shard_is_refused_and_the_shard_stays(
    handled: Callable[..., list[BaseException]], disk_path: Path, call: str
) -> None:
    store = s3dlio.CheckpointStore(f"file://{disk_path}")
    data = bytes(range(256)) * (1 << 20)
    writer = store.writer(1, 0)
    stream = writer.get_distributed_shard_stream(1, 0, "demo")
    raised = handled(stream.finalize if call == "finalize" else lambda: stream.write_chunk(b"handler"))
    stream.write_chunk(data)
    assert [type(error) for error in raised] == [s3dlio.BusyError]
    stream.write_chunk(data)
    writer.finalize_distributed_checkpoint(1, 0, "demo", [stream.finalize()])
    assert store.load_latest() == data + data
