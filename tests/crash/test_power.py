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
from logdisk import MKFS, Event, Flush, Mark, Write, logged_disk, make_image, mounted, need_logdisk, read_log
from mounts import run
from power_load import ENGINES, which_version

import s3dlio

WITHOUT_FSYNC = s3dlio.WriterOptions(durability="none")
LOAD = Path(__file__).parent.parent / "power_load.py"
# A disk may keep a part of a write; what the file systems take for one piece is never larger.
PIECE = 4096
HIDDEN = re.compile(r"\.(.*)\.s3dlio-\d+")
# A process without /proc can make no file without a name, and writes under a hidden one from the beginning.
WITHOUT_PROC = ("unshare", "--mount", "sh", "-c", 'mount -t tmpfs tmpfs /proc && exec "$@"', "sh")


def run_load(kind: str, place: Path, how: str, rounds: int) -> list[Event]:
    """Lets the engines write, all at once, to a new file system, of which a copy is kept; returns the disk's log."""
    image, log = place / "written", place / "log"
    make_image(kind, image)
    run("cp", "--sparse=always", str(image), str(place / "before"))
    (place / "mount").mkdir()
    start = WITHOUT_PROC if how == "named" else ()
    with logged_disk(image, log) as disk:
        with mounted(kind, disk.device, place / "mount"), ExitStack() as stack:
            loads = [
                stack.enter_context(
                    subprocess.Popen(
                        [*start, sys.executable, LOAD, place / "mount", disk.control, how, str(rounds)],
                        env=os.environ | {"S3DLIO_IO_ENGINE": engine},
                    )
                )
                for engine in ENGINES
            ]
            stack.callback(lambda: [load.kill() for load in loads])
            assert [load.wait(timeout=120) for load in loads] == [0] * len(ENGINES)
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


# What must be there.


@dataclass
class Promised:
    """The versions of each file that were begun and acknowledged."""

    begun: dict[str, int] = field(default_factory=dict)
    acknowledged: dict[str, int] = field(default_factory=dict)

    def note(self, mark: Mark) -> None:
        what, version, name = mark.text.split(" ")
        (self.begun if what == "begin" else self.acknowledged)[name] = int(version)

    def owner(self, folder: Path, name: str) -> str | None:
        """The file in the making that may have a hidden name for ``name`` in ``folder``, which is its own or, while
        that is missing, one above."""
        for file in sorted(self.begun, key=lambda file: Path(file).parent != folder):
            in_the_making = self.begun[file] > self.acknowledged.get(file, -1)
            if in_the_making and Path(file).name == name and folder in Path(file).parents:
                return file
        return None


@dataclass
class Found:
    """What was wrong in the states looked at."""

    states: int = 0
    lossy: int = 0
    hidden: int = 0
    swept: int = 0
    lost: list[str] = field(default_factory=list)
    torn: list[str] = field(default_factory=list)
    stray: list[str] = field(default_factory=list)

    def look(self, folder: Path, promised: Promised, crash: Crash) -> None:
        self.states += 1
        versions = {}
        abandoned = []
        for path in folder.rglob("*"):
            if not path.is_file():
                continue
            hidden = HIDDEN.fullmatch(path.name)
            name = str(path.relative_to(folder))
            if hidden:
                owner = promised.owner(path.relative_to(folder).parent, hidden[1])
                if owner:
                    abandoned.append((path, folder / owner))
                else:
                    self.stray.append(f"{crash}: {name}")
            elif name not in promised.begun:
                self.stray.append(f"{crash}: {name}")
            else:
                versions[name] = which_version(path, name, promised.begun[name])
                if versions[name] is None:
                    self.torn.append(f"{crash}: {name}")
        for name, version in promised.acknowledged.items():
            there = versions.get(name, -1)
            if there is not None and there < version:
                self.lost.append(f"{crash}: {name}: version {there} instead of {version}")
        self.hidden += len(abandoned) > 0
        for path, owner in abandoned:
            if path.parent == owner.parent:  # goes when the file is replaced
                for _ in range(2):
                    s3dlio.put(f"file://{owner}", b"", WITHOUT_FSYNC)
                self.swept += not path.exists()
                if path.exists():
                    self.stray.append(f"{crash}: {path} after the next writer")


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


@pytest.mark.timeout(3000)
@pytest.mark.parametrize(
    ("kind", "how", "count"),
    [
        ("ext4", "full", effort(200, 0)),
        ("xfs", "full", effort(150, 0)),
        ("btrfs", "full", effort(50, 500)),
        ("ext4", "named", effort(50, 500)),
        ("xfs", "named", effort(50, 500)),
    ],
)
def test_acknowledged_files_after_a_loss_of_power_are_there_and_whole(
    kind: str, how: str, count: int, memory_path: Path, figure: Callable[[str], None]
) -> None:
    need_logdisk()
    seed = new_seed()
    found, promised = search(kind, memory_path, how, 2 if count == 0 else effort(2, 6), count, seed)
    named = " without O_TMPFILE" if how == "named" else ""
    figure(
        f"power loss: {kind}{named} {found.states} states, {found.lossy} without some unflushed writes, {found.hidden}"
        f" with hidden names, {len(found.lost)} acknowledged files lost, {len(found.torn)} torn, seed {seed}"
    )
    assert len(promised.acknowledged) >= 8
    assert found.states == count or (count == 0 and found.states > 300)
    assert found.lossy > found.states // 5
    if named:
        assert found.hidden
        assert found.swept
    assert (found.lost, found.torn, found.stray) == ([], [], [])


# Planted faults: a search that did not see these would prove nothing.


@pytest.mark.parametrize("kind", MKFS)
def test_files_acknowledged_without_fsync_are_seen_to_be_lost(kind: str, memory_path: Path) -> None:
    need_logdisk()
    found, _ = search(kind, memory_path, "none", 1, 25, 1)
    assert found.lost


@pytest.mark.parametrize("kind", MKFS)
def test_files_acknowledged_without_fsync_of_the_folder_are_seen_to_be_lost(kind: str, memory_path: Path) -> None:
    need_logdisk()
    found, _ = search(kind, memory_path, "data", 2, 50, 1)
    assert found.lost
    assert not found.torn  # what durability='data' promises


@pytest.mark.parametrize("kind", MKFS)
def test_files_written_in_place_are_seen_to_be_torn(kind: str, memory_path: Path) -> None:
    need_logdisk()
    found, _ = search(kind, memory_path, "in place", 1, 25, 1)
    assert found.torn
