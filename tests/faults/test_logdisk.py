"""The disk of faults/logdisk.c: the log tells what happened in its order, and what shall fail fails."""

from __future__ import annotations

import errno
import mmap
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from logdisk import Disk, Event, Flush, Mark, Write, logged_disk, need_logdisk, read_log

BLOCK = 4096


@contextmanager
def open_disk(place: Path) -> Iterator[tuple[Disk, int]]:
    """A disk of 1 MiB, and a descriptor that writes past the page cache."""
    need_logdisk()
    with (place / "image").open("wb") as image:
        image.truncate(1 << 20)
    with logged_disk(place / "image", place / "log") as disk:
        fd = os.open(disk.device, os.O_RDWR | os.O_DIRECT)
        try:
            yield disk, fd
        finally:
            os.close(fd)


def read_events(place: Path) -> list[Event]:
    """Without the flushes with which a device is opened and closed."""
    events = read_log(place / "log")
    for end in (0, -1):
        while isinstance(events[end], Flush):
            events.pop(end)
    return events


def put(fd: int, number: int) -> None:
    with mmap.mmap(-1, BLOCK) as block:
        block[:] = bytes([number]) * BLOCK
        assert os.pwrite(fd, block, number * BLOCK) == BLOCK


def test_writes_flushes_and_marks_are_logged_in_order(memory_path: Path) -> None:
    with open_disk(memory_path) as (disk, fd):
        put(fd, 3)
        put(fd, 1)
        os.fsync(fd)
        disk.tell("mark one")
        put(fd, 2)
        assert disk.counts()[0] == 3
    events = read_events(memory_path)
    assert [(event.offset, bytes(event.data[:1])) if isinstance(event, Write) else event for event in events] == [
        (3 * BLOCK, b"\3"),
        (BLOCK, b"\1"),
        Flush(),
        Mark("one"),
        (2 * BLOCK, b"\2"),
    ]
    assert (memory_path / "image").read_bytes()[: 4 * BLOCK : BLOCK] == b"\0\1\2\3"


def test_page_cache_of_the_disk_is_logged_before_the_flush_that_wrote_it(memory_path: Path) -> None:
    with open_disk(memory_path) as (disk, _):
        cached = os.open(disk.device, os.O_RDWR)
        try:
            os.pwrite(cached, b"x" * BLOCK, 5 * BLOCK)
            assert disk.counts()[0] == 0
            os.fsync(cached)
            disk.tell("mark flushed")
        finally:
            os.close(cached)
    written, flushed, marked = read_events(memory_path)
    assert (written, flushed, marked) == (Write(5 * BLOCK, memoryview(b"x" * BLOCK)), Flush(), Mark("flushed"))


def test_writes_and_flushes_that_shall_fail_fail_and_are_counted(memory_path: Path) -> None:
    with open_disk(memory_path) as (disk, fd):
        disk.tell(f"fail write {errno.EIO} 1 2 2")
        ends = []
        for number in range(1, 8):
            try:
                put(fd, number)
                ends.append(0)
            except OSError as error:
                ends.append(error.errno)
        assert ends == [0, errno.EIO, 0, errno.EIO, 0, 0, 0]
        disk.tell(f"fail fsync {errno.EIO} 0 1 1")
        with pytest.raises(OSError, match="Input/output error"):
            os.fsync(fd)
        os.fsync(fd)
        assert disk.counts()[0] == 5
        assert disk.counts()[2:] == (2, 1)
    assert (memory_path / "image").read_bytes()[: 8 * BLOCK : BLOCK] == b"\0\1\0\3\0\5\6\7"
