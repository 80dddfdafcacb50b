"""A disk that fails: what was acknowledged is there, and everything else was an error."""

from __future__ import annotations

import json
import os
import random
import re
import select
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from device_load import NEW, OLD
from harness import effort, new_seed
from logdisk import logged_disk, make_image, mounted, need_logdisk
from mounts import mounted_at, run
from power_load import ENGINES, which_version

LOAD = Path(__file__).parent.parent / "device_load.py"
HIDDEN = re.compile(r"\..*\.s3dlio-\d+")
# A writer waits for the device at most this long here: all that it does is to be told of an error.
MAX_SECONDS = 30
# A single error may meet the data of one file alone; with many of them the file system gives up.
TIMES = (1, 1, 2, 5, 1 << 30)


@dataclass
class Tally:
    """How the writers ended, and what was wrong."""

    failed: Counter[str] = field(default_factory=Counter)
    verified: int = 0
    silent: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        steps = ", ".join(f"{count} in {step}" for step, count in sorted(self.failed.items()))
        return (
            f"{self.failed.total()} failed loudly ({steps}), {self.verified} succeeded and verified,"
            f" {len(self.silent)} silent"
        )

    def runs(self) -> int:
        return self.failed.total() + self.verified + len(self.silent)

    def judge(self, folder: Path, report: dict[str, Any]) -> None:
        """Compares what writers were told with what is there when the disk is well again."""
        there = {str(path.relative_to(folder)): path for path in folder.rglob("*") if path.is_file()}
        for name, end in report["ends"].items():
            path = there.pop(name, None)
            version = which_version(path, name, 1) if path else -1
            old = 0 if name in OLD else -1
            where = f"{name}: version {version}: {end}"
            if end["error"] is None:
                self.verified += version == 1
                if version != 1:
                    self.silent.append(where)
                continue
            self.failed[end.get("operation", "told")] += 1
            if version not in ((old, 1) if end["visible"] else (old,)):
                self.wrong.append(f"not the old state: {where}")
            if "uri" in end and not (is_named(end, name) and end["sticks"]):
                self.wrong.append(f"not the error it should be: {where}")
            if end["seconds"] > MAX_SECONDS:
                self.wrong.append(f"took its time: {where}")
        # What a dead file system does not let go of is left to the next writer, but never under a visible name.
        self.wrong += [f"left behind: {name}" for name, path in there.items() if not HIDDEN.fullmatch(path.name)]
        if report["leaked"]:
            self.wrong.append(f"{report['leaked']} descriptors left open")


def is_named(end: dict[str, Any], name: str) -> bool:
    return (
        end["operation"] in ("open", "write", "finalize")
        and end["uri"].endswith(f"/{name}")
        and end["error"].startswith(f"{end['operation']} {end['uri']}: ")
        and end["errno"] is not None
    )


@contextmanager
def started_load(folder: Path, how: str, engine: str, seed: int) -> Iterator[Callable[[], dict[str, Any]]]:
    """A child that has made the old files; calling what this gives lets it go on, and brings its report."""
    with subprocess.Popen(
        [sys.executable, LOAD, folder, how, str(seed)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"S3DLIO_IO_ENGINE": engine},
    ) as process:
        try:
            assert process.stdout is not None
            assert select.select([process.stdout], [], [], 120)[0], "the old files take too long"
            assert process.stdout.readline() == "ready\n"

            def go_on() -> dict[str, Any]:
                lines, _ = process.communicate("go\n", timeout=120)
                assert process.returncode == 0
                report: dict[str, Any] = json.loads(lines)
                return report

            yield go_on
        finally:
            process.kill()


def break_disk(kind: str, place: Path, how: str, engine: str, choose: random.Random, tally: Tally) -> int:
    """One disk that begins to fail at some moment and is mounted again when it is well; returns how often it failed."""
    image, folder = place / "image", place / "mount"
    folder.mkdir(exist_ok=True)
    image.unlink(missing_ok=True)
    make_image(kind, image)
    what = choose.choice(("write", "write", "fsync", "both"))
    errno = choose.choice((5, 5, 28))
    skip, every, times = choose.choice((0, 1, choose.randrange(60))), choose.choice((1, 1, 2, 7)), choose.choice(TIMES)
    with logged_disk(image) as disk:
        try:
            with mounted(kind, disk.device, folder):
                with started_load(folder, how, engine, choose.randrange(2**32)) as go_on:
                    run("sync", "--file-system", str(folder))
                    disk.tell(f"fail {what} {errno} {skip} {every} {times}")
                    report = go_on()
                if choose.random() < 0.5:
                    disk.tell("heal")
        finally:
            disk.tell("heal")
        with mounted(kind, disk.device, folder):
            tally.judge(folder, report)
        return sum(disk.counts()[2:])


def overfill_disk(kind: str, place: Path, how: str, engine: str, choose: random.Random, tally: Tally, room: int) -> int:
    """A disk with space for what is written to it, over an image with ``room`` for less: the page cache takes it all,
    and what the disk does not take shows later.  Returns how often it failed."""
    memory, folder = place / "memory", place / "mount"
    for made in (memory, folder):
        made.mkdir(exist_ok=True)
    with mounted_at(memory, "-t", "tmpfs", "-o", "size=1g", "tmpfs"):
        make_image(kind, memory / "image")
        with logged_disk(memory / "image") as disk:
            with mounted(kind, disk.device, folder):
                with started_load(folder, how, engine, choose.randrange(2**32)) as go_on:
                    run("sync", "--file-system", str(folder))
                    space = os.statvfs(memory)
                    used = (space.f_blocks - space.f_bfree) * space.f_frsize
                    resize(memory, used + room)
                    report = go_on()
                if choose.random() < 0.5:
                    resize(memory, 1 << 30)
            resize(memory, 1 << 30)
            with mounted(kind, disk.device, folder):
                tally.judge(folder, report)
            return sum(disk.counts()[2:])


def resize(memory: Path, nbytes: int) -> None:
    run("mount", "-o", f"remount,size={nbytes}", str(memory))


@pytest.mark.timeout(3000)
@pytest.mark.parametrize("kind", ["ext4", "xfs"])
def test_device_errors_are_raised_and_leave_the_old_state(
    kind: str, memory_path: Path, figure: Callable[[str], None]
) -> None:
    need_logdisk()
    seed = new_seed()
    choose = random.Random(seed)
    tally = Tally()
    disks = effort(12, 200)
    fired = sum(
        break_disk(kind, memory_path, "full", ENGINES[number % 3], choose, tally) > 0 for number in range(disks)
    )
    figure(f"device EIO: {kind} {tally.runs()} runs on {fired} failing disks, {tally}, seed {seed}")
    assert (tally.silent, tally.wrong) == ([], [])
    assert fired > disks // 2
    assert tally.failed["finalize"]
    assert tally.verified


@pytest.mark.timeout(3000)
@pytest.mark.parametrize("kind", ["ext4", "xfs"])
def test_delayed_write_errors_are_raised_and_leave_the_old_state(
    kind: str, memory_path: Path, figure: Callable[[str], None]
) -> None:
    need_logdisk()
    seed = new_seed()
    choose = random.Random(seed)
    tally = Tally()
    disks = effort(8, 100)
    fired = 0
    for number in range(disks):
        room = choose.randrange(400_000) if number else 64 << 20  # the first has enough
        engine = ENGINES[number % 3]
        fired += overfill_disk(kind, memory_path, "full", engine, choose, tally, room) > 0
    figure(f"delayed errors: {kind} {tally.runs()} runs on {fired} failing disks, {tally}, seed {seed}")
    assert (tally.silent, tally.wrong) == ([], [])
    assert fired > disks // 4
    assert tally.failed["finalize"]
    assert tally.verified >= len(OLD + NEW)


# Planted faults: a check that did not see these would prove nothing.


@pytest.mark.parametrize("how", ["no fsync", "repeated fsync"])
@pytest.mark.parametrize("kind", ["ext4", "xfs"])
def test_files_acknowledged_on_a_failing_device_are_seen_to_be_lost(kind: str, how: str, memory_path: Path) -> None:
    need_logdisk()
    choose = random.Random(1)
    tally = Tally()
    for _ in range(20):
        break_disk(kind, memory_path, how, "threads", choose, tally)
        if tally.silent:
            return
    pytest.fail("nothing lost on as many disks")


@pytest.mark.parametrize("kind", ["ext4", "xfs"])
def test_files_acknowledged_before_a_delayed_error_are_seen_to_be_lost(kind: str, memory_path: Path) -> None:
    need_logdisk()
    choose = random.Random(1)
    tally = Tally()
    for _ in range(10):
        overfill_disk(kind, memory_path, "no fsync", "threads", choose, tally, 0)
        if tally.silent:
            return
    pytest.fail("nothing lost on as many disks")
