"""States of a disk after a loss of power at any moment.

A disk logs its writes and flushes while programs write to it.  From the log come the states that the disk may be in
after a loss of power: all that was written before a flush, and any part of what was written since.  Each is mounted.
"""

from __future__ import annotations

import os
import random
import subprocess
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from logdisk import Event, Flush, Mark, Write, logged_disk, make_image, mounted, read_log
from mounts import run

# A disk may keep a part of a write; what the file systems take for one piece is never larger.
PIECE = 4096


@dataclass
class Promised:
    """The versions that were begun and acknowledged under each name."""

    begun: dict[str, int] = field(default_factory=dict)
    acknowledged: dict[str, int] = field(default_factory=dict)
    # Older ones than this may be deleted.
    doomed: dict[str, int] = field(default_factory=dict)

    def note(self, mark: Mark) -> None:
        what, version, name = mark.text.split(" ")
        {"begin": self.begun, "done": self.acknowledged, "doom": self.doomed}[what][name] = int(version)


@dataclass(frozen=True)
class Load:
    """A program that writes files: it is run with the folder and the disk's control file, and then the arguments."""

    start: Sequence[str | Path]
    arguments: Sequence[str]
    engine: str


def search(
    kind: str, place: Path, loads: list[Load], count: int, seed: int, look: Callable[[Promised, Crash], None]
) -> tuple[Promised, int]:
    """Runs the programs, lets ``look`` look at ``count`` states of ``place / "mount"`` after a loss of power, and
    returns all that was promised, and in how many states something was lost."""
    choose = random.Random(seed)
    events = run_loads(kind, place, loads)
    platter = Platter(events, place)
    promised = Promised()
    noted = nlossy = 0
    try:
        for crash in choose_crashes(events, choose, count):
            for event in events[noted : crash.at]:
                if isinstance(event, Mark):
                    promised.note(event)
            noted = crash.at
            nlossy += platter.crash(crash, choose) > 0
            with mounted(kind, str(platter.image), place / "mount"):
                look(promised, crash)
    finally:
        platter.close()
    return promised, nlossy


def run_loads(kind: str, place: Path, loads: list[Load]) -> list[Event]:
    """Lets the programs write, all at once, to a new file system, of which a copy is kept; returns the disk's log."""
    image, log, mount = place / "written", place / "log", place / "mount"
    make_image(kind, image)
    run("cp", "--sparse=always", str(image), str(place / "before"))
    mount.mkdir()
    with logged_disk(image, log) as disk:
        with mounted(kind, disk.device, mount), ExitStack() as stack:
            running = [
                stack.enter_context(
                    subprocess.Popen(
                        [*load.start, mount, disk.control, *load.arguments],
                        env=os.environ | {"S3DLIO_IO_ENGINE": load.engine},
                    )
                )
                for load in loads
            ]
            stack.callback(lambda: [load.kill() for load in running])
            assert [load.wait(timeout=120) for load in running] == [0] * len(loads)
        assert disk.counts()[2:] == (0, 0)
    return read_log(log)


@dataclass(frozen=True)
class Crash:
    """The power fails after ``at`` events.  Of the writes since the last flush each is kept with this chance, or each
    piece of it."""

    at: int
    chance: float
    torn: bool


def choose_crashes(events: list[Event], choose: random.Random, count: int) -> list[Crash]:
    """Half of them lose nothing that was written: every moment, or a sample with the moments beside a flush or a mark
    first.  The others lose some or all that was not flushed.  A count of 0: every moment, and as many of the others."""
    moments = range(len(events) + 1)
    edges = sorted({at + side for at, event in enumerate(events) if not isinstance(event, Write) for side in (0, 1)})
    unsafe = unflushed_moments(events)
    between = sorted(set(moments) - set(edges))
    count = count or 2 * len(moments)
    whole = count // 2
    if whole >= len(moments):
        chosen = list(moments)
    elif whole >= len(edges):
        chosen = edges + choose.sample(between, whole - len(edges))
    else:
        chosen = choose.sample(edges, whole)
    crashes = [Crash(at, 1.0, False) for at in chosen]
    while len(crashes) < count:
        crashes.append(Crash(choose.choice(unsafe), choose.choice((0.0, 0.1, 0.5, 0.9)), choose.random() < 0.5))
    return sorted(crashes, key=lambda crash: crash.at)


def unflushed_moments(events: list[Event]) -> list[int]:
    """Where a write has not been flushed yet."""
    moments = []
    unsafe = False
    for at, event in enumerate(events):
        unsafe = isinstance(event, Write) or (unsafe and not isinstance(event, Flush))
        if unsafe:
            moments.append(at + 1)
    return moments


def keep_some(events: list[Event], crash: Crash, choose: random.Random) -> tuple[list[Write], int]:
    """What the disk has kept of writes that were not flushed, and how many pieces it has not."""
    writes = [event for event in events if isinstance(event, Write)]
    if crash.torn:
        writes = [
            Write(write.offset + begin, write.data[begin : begin + PIECE])
            for write in writes
            for begin in range(0, len(write.data), PIECE)
        ]
    kept = [write for write in writes if choose.random() < crash.chance]
    return kept, len(writes) - len(kept)


class Platter:
    """The image of the disk at growing moments."""

    def __init__(self, events: list[Event], place: Path) -> None:
        self.events = events
        self.image = place / "crashed"
        self.durable = os.open(place / "before", os.O_RDWR)
        self.at = 0

    def close(self) -> None:
        os.close(self.durable)

    def crash(self, crash: Crash, choose: random.Random) -> int:
        """Makes ``image`` what this crash leaves; returns how much was lost."""
        flushed = max((at + 1 for at in range(crash.at) if isinstance(self.events[at], Flush)), default=0)
        for event in self.events[self.at : flushed]:
            if isinstance(event, Write):
                os.pwrite(self.durable, event.data, event.offset)
        self.at = flushed
        # Always a new file: the last one may still be mounted in a name space that somebody else has made meanwhile
        # (mount_namespaces(7)), and mount(8) would show that state again.
        self.image.unlink(missing_ok=True)
        image = os.open(self.image, os.O_RDWR | os.O_CREAT | os.O_EXCL)
        try:
            copy_data(self.durable, image)
            kept, ndropped = keep_some(self.events[flushed : crash.at], crash, choose)
            for write in kept:
                os.pwrite(image, write.data, write.offset)
        finally:
            os.close(image)
        return ndropped


def copy_data(source: int, target: int) -> None:
    """Copies a sparse file to an empty one."""
    size = os.fstat(source).st_size
    os.ftruncate(target, size)
    end = 0
    while True:
        try:
            begin = os.lseek(source, end, os.SEEK_DATA)
        except OSError:  # ENXIO: no data after this
            return
        end = os.lseek(source, begin, os.SEEK_HOLE)
        os.pwrite(target, os.pread(source, end - begin, begin), begin)
