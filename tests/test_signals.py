"""Ctrl-C anywhere in short calls, by real signals."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

import pytest

import s3dlio


@pytest.fixture
def interrupts() -> Iterator[None]:
    """KeyboardInterrupt a moment after the timer was set, at any bytecode of a writer or what it calls."""

    def interrupt(_: int, frame: FrameType | None) -> None:
        while frame is not None:
            if frame.f_code is s3dlio.ObjectWriter.write_chunk.__code__:
                raise KeyboardInterrupt
            frame = frame.f_back
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
