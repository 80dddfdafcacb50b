"""A loss of power at any moment: every acknowledged file is there, and none is torn.

A disk logs its writes and flushes while files are written to it.  From the log come the states that a disk may be in
after a loss of power: all that was written before a flush, and any part of what was written since.  Each is mounted.
"""

from __future__ import annotations

import os
import random
import re
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from harness import effort, new_seed
from logdisk import Event, Flush, Mark, Write, logged_disk, make_image, mounted, need_logdisk, read_log, run
from power_load import which_version

LOAD = Path(__file__).parent.parent / "power_load.py"
# A disk may keep a part of a write; what the file systems take for one piece is never larger.
PIECE = 4096
HIDDEN = re.compile(r"\.(.*)\.s3dlio-\d+")


def run_load(kind: str, place: Path, how: str, rounds: int) -> list[Event]:
    """Lets two engines write at once to a new file system; the image stays as it was before."""
    image, log = place / "written", place / "log"
    make_image(kind, image)
    run("cp", "--sparse=always", str(image), str(place / "before"))
    (place / "mount").mkdir()
    with logged_disk(image, log) as disk:
        with mounted(kind, disk.device, place / "mount"), ExitStack() as stack:
            loads = [
                stack.enter_context(
                    subprocess.Popen(
                        [sys.executable, LOAD, place / "mount", disk.control, how, str(rounds)],
                        env=os.environ | {"S3DLIO_IO_ENGINE": engine},
                    )
                )
                for engine in ("uring", "threads")
            ]
            stack.callback(lambda: [load.kill() for load in loads])
            assert [load.wait(timeout=120) for load in loads] == [0, 0]
        assert disk.counts()[2:] == (0, 0)
    return read_log(log)


# States of the disk.


@dataclass(frozen=True)
class Crash:
    """The power fails after ``at`` events.  Of the writes since the last flush each is kept with this chance, or each
    piece of it."""

    at: int
    chance: float
    torn: bool


def choose_crashes(events: list[Event], choose: random.Random, count: int) -> list[Crash]:
    """Half of them lose nothing that was written: every moment, or a sample with the moments beside a flush or a mark
    first.  The others lose some or all that was not flushed."""
    moments = range(len(events) + 1)
    edges = sorted({at + side for at, event in enumerate(events) if not isinstance(event, Write) for side in (0, 1)})
    unsafe = unflushed_moments(events)
    between = sorted(set(moments) - set(edges))
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
        image = os.open(self.image, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
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


# What must be there.


@dataclass
class Promised:
    """The versions of each file that were begun and acknowledged."""

    begun: dict[str, int] = field(default_factory=dict)
    acknowledged: dict[str, int] = field(default_factory=dict)

    def note(self, mark: Mark) -> None:
        what, version, name = mark.text.split(" ")
        (self.begun if what == "begin" else self.acknowledged)[name] = int(version)

    def in_the_making(self, name: str) -> bool:
        return self.begun.get(name, -1) > self.acknowledged.get(name, -1)


@dataclass
class Found:
    """What was wrong in the states looked at."""

    states: int = 0
    lossy: int = 0
    lost: list[str] = field(default_factory=list)
    torn: list[str] = field(default_factory=list)
    stray: list[str] = field(default_factory=list)

    def look(self, folder: Path, promised: Promised, crash: Crash) -> None:
        self.states += 1
        versions = {}
        for path in folder.rglob("*"):
            if not path.is_file():
                continue
            hidden = HIDDEN.fullmatch(path.name)
            name = str(path.relative_to(folder).with_name(hidden[1] if hidden else path.name))
            if hidden and not promised.in_the_making(name):
                self.stray.append(f"{crash}: {path.name}")
            elif not hidden and name not in promised.begun:
                self.stray.append(f"{crash}: {name}")
            elif not hidden:
                versions[name] = which_version(path, name, promised.begun[name])
                if versions[name] is None:
                    self.torn.append(f"{crash}: {name}")
        for name, version in promised.acknowledged.items():
            there = versions.get(name, -1)
            if there is not None and there < version:
                self.lost.append(f"{crash}: {name}: version {there} instead of {version}")


def search(kind: str, place: Path, how: str, rounds: int, count: int, seed: int) -> tuple[Found, Promised]:
    """Writes files as ``how`` says and looks at ``count`` states after a loss of power."""
    choose = random.Random(seed)
    events = run_load(kind, place, how, rounds)
    platter = Platter(events, place)
    promised = Promised()
    found = Found()
    noted = 0
    try:
        for crash in choose_crashes(events, choose, count):
            for event in events[noted : crash.at]:
                if isinstance(event, Mark):
                    promised.note(event)
            noted = crash.at
            found.lossy += platter.crash(crash, choose) > 0
            with mounted(kind, str(platter.image), place / "mount"):
                found.look(place / "mount", promised, crash)
    finally:
        platter.close()
    return found, promised


@pytest.mark.parametrize("kind", ["ext4", "xfs"])
def test_acknowledged_files_after_a_loss_of_power_are_there_and_whole(
    kind: str, memory_path: Path, figure: Callable[[str], None]
) -> None:
    need_logdisk()
    seed = new_seed()
    count = effort(250, 4000)
    found, promised = search(kind, memory_path, "full", effort(2, 12), count, seed)
    figure(
        f"power loss: {kind} {found.states} states, {found.lossy} of them without some unflushed writes, "
        f"{len(found.lost)} acknowledged files lost, {len(found.torn)} torn, seed {seed}"
    )
    assert len(promised.acknowledged) >= 24
    assert found.states == count
    assert found.lossy > count // 4
    assert (found.lost, found.torn, found.stray) == ([], [], [])


# Planted faults: a search that did not see these would prove nothing.


@pytest.mark.parametrize("kind", ["ext4", "xfs"])
def test_files_acknowledged_without_fsync_are_seen_to_be_lost(kind: str, memory_path: Path) -> None:
    need_logdisk()
    found, _ = search(kind, memory_path, "none", 1, 25, 1)
    assert found.lost


@pytest.mark.parametrize("kind", ["ext4", "xfs"])
def test_files_acknowledged_without_fsync_of_the_folder_are_seen_to_be_lost(kind: str, memory_path: Path) -> None:
    need_logdisk()
    found, _ = search(kind, memory_path, "data", 2, 50, 1)
    assert found.lost
    assert not found.torn  # what durability='data' promises
    assert not found.stray


@pytest.mark.parametrize("kind", ["ext4", "xfs"])
def test_files_written_in_place_are_seen_to_be_torn(kind: str, memory_path: Path) -> None:
    need_logdisk()
    found, _ = search(kind, memory_path, "in place", 1, 25, 1)
    assert found.torn
