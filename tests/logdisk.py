"""Disks to break: a block device whose writes and flushes are logged, or fail when asked to (``faults/logdisk.c``)."""

from __future__ import annotations

import functools
import os
import struct
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from harness import cannot, need_root, need_tools
from mounts import mounted_at, run

SOURCE = Path(__file__).parent / "faults" / "logdisk.c"
# File systems that write what they need at once, not later in a thread of their own; large enough for a direct writer
# to reserve space ahead, which it does where sixteen times that is free.
MKFS = {
    "ext4": ("1G", "mkfs.ext4 -q -F -b 4096 -m 0 -N 1024 -J size=4 -E lazy_itable_init=0,lazy_journal_init=0"),
    "xfs": ("1G", "mkfs.xfs -q -f"),
    "btrfs": ("1G", "mkfs.btrfs -q -f"),
}
MOUNT_OPTIONS = {"ext4": "noatime", "xfs": "noatime,nouuid", "btrfs": "noatime"}


def need_logdisk() -> None:
    need_root()
    need_tools("cc", "pkg-config", "losetup", "mkfs.ext4", "mkfs.xfs", "mkfs.btrfs", "fusermount3")
    if not Path("/dev/fuse").exists() or not Path("/dev/loop-control").exists():
        cannot("no /dev/fuse or no /dev/loop-control")
    if subprocess.run(["pkg-config", "--exists", "fuse3"], check=False).returncode != 0:
        cannot("libfuse3-dev is not installed")


@functools.cache
def program() -> str:
    """The compiled logdisk.c, in ``build/``."""
    made = SOURCE.parent.parent.parent / "build" / "logdisk"
    if not made.exists() or made.stat().st_mtime < SOURCE.stat().st_mtime:
        made.parent.mkdir(exist_ok=True)
        flags = run("pkg-config", "--cflags", "--libs", "fuse3").split()
        with tempfile.TemporaryDirectory(dir=made.parent) as folder:
            run("cc", "-std=c11", "-O2", "-Wall", "-Wextra", "-Werror", str(SOURCE), "-o", f"{folder}/logdisk", *flags)
            Path(f"{folder}/logdisk").rename(made)
    return str(made)


def make_image(kind: str, image: Path) -> None:
    """An empty file system in a sparse file."""
    size, mkfs = MKFS[kind]
    run("truncate", "-s", size, str(image))
    run(*mkfs.split(), str(image))
    run("fallocate", "--dig-holes", str(image))


@contextmanager
def loop_device(file: Path) -> Iterator[str]:
    device = run("losetup", "--find", "--show", str(file))
    try:
        yield device
    finally:
        run("losetup", "--detach", device)


@contextmanager
def mounted(kind: str, device: str, folder: Path) -> Iterator[None]:
    """Mounts a device, or an image by a loop device of its own."""
    is_device = Path(device).is_block_device()
    with mounted_at(folder, "-t", kind, "-o", MOUNT_OPTIONS[kind] + ("" if is_device else ",loop"), device):
        yield
    if is_device:
        wait_until_free(device)


def wait_until_free(device: str) -> None:
    """A name space that somebody else has made meanwhile (mount_namespaces(7)) keeps a file system mounted, and the
    next mount would be of the same one, with all that it has in memory."""
    end = time.monotonic() + 60
    while True:
        try:
            os.close(os.open(device, os.O_RDONLY | os.O_EXCL))
            return
        except OSError:
            assert time.monotonic() < end, f"{device} stays mounted"
            time.sleep(0.01)


@dataclass
class Disk:
    """A block device over an image."""

    device: str
    control: Path

    def tell(self, command: str) -> None:
        fd = os.open(self.control, os.O_WRONLY)
        try:
            os.write(fd, command.encode())
        finally:
            os.close(fd)

    def counts(self) -> tuple[int, int, int, int]:
        """Writes and flushes done, writes and flushes failed."""
        nwrites, nflushes, nfailed_writes, nfailed_flushes = map(int, self.control.read_text().split())
        return nwrites, nflushes, nfailed_writes, nfailed_flushes


@contextmanager
def logged_disk(image: Path, log: Path | None = None) -> Iterator[Disk]:
    with tempfile.TemporaryDirectory(prefix="logdisk-") as name:
        folder = Path(name)
        with subprocess.Popen(
            [program(), str(image), str(log or ""), name], stderr=subprocess.PIPE, text=True
        ) as process:
            try:
                end = time.monotonic() + 30
                while not (folder / "disk").exists():
                    assert process.poll() is None, process.communicate()[1]
                    assert time.monotonic() < end, "logdisk does not mount"
                    time.sleep(0.005)
                with loop_device(folder / "disk") as device:
                    # FUSE would break up what is longer; and of a write of which only the first part was stored, the
                    # loop driver says that it is done (seen on Linux 6.18).
                    Path(f"/sys/block/{Path(device).name}/queue/max_sectors_kb").write_text("512")
                    yield Disk(device, folder / "control")
            finally:
                with suppress(subprocess.CalledProcessError):
                    run("fusermount3", "-u", "-z", name)
                try:
                    process.wait(timeout=30)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait(timeout=30)


# What a log tells.


@dataclass(frozen=True)
class Write:
    offset: int
    data: memoryview


@dataclass(frozen=True)
class Flush:
    pass


@dataclass(frozen=True)
class Mark:
    text: str


Event = Write | Flush | Mark


def read_log(log: Path) -> list[Event]:
    data = memoryview(log.read_bytes())
    events: list[Event] = []
    record = struct.Struct("@QQQ")
    at = 0
    while at < len(data):
        kind, offset, nbytes = record.unpack_from(data, at)
        body = data[at + record.size : at + record.size + nbytes]
        at += record.size + nbytes
        match chr(kind):
            case "W":
                events.append(Write(offset, body))
            case "F":
                events.append(Flush())
            case "M":
                events.append(Mark(str(body, "utf-8")))
    assert at == len(data)
    return events
