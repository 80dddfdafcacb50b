"""File systems of the tests' own, each in an image file, mounted for as long as a block lasts."""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from harness import cannot, need_root, need_tools

# The least that each mkfs accepts, in MiB: mkfs.xfs(8) refuses less than 300, mkfs.btrfs(8) about 110.
MIN_SIZE_MIB = {"ext4": 1, "xfs": 300, "btrfs": 128, "tmpfs": 1, "overlay": 1}

_MKFS = {"ext4": ("mkfs.ext4", "-q", "-F", "-m", "0"), "xfs": ("mkfs.xfs", "-q"), "btrfs": ("mkfs.btrfs", "-q")}


@contextmanager
def mounted(kind: str, size_mib: int, tmp: Path, options: str = "") -> Iterator[Path]:
    """A file system of ``kind`` and this size, or of the least that its mkfs accepts, mounted in a new folder below
    ``tmp``, which must be on a disk.  An overlay lies over an ext4 of that size."""
    need_root()
    size_mib = max(size_mib, MIN_SIZE_MIB[kind])
    place = Path(tempfile.mkdtemp(prefix=f"{kind}-", dir=tmp))
    if kind == "overlay":
        with mounted("ext4", size_mib, tmp, options) as below:
            for name in ("lower", "upper", "work"):
                (below / name).mkdir()
            layers = f"lowerdir={below}/lower,upperdir={below}/upper,workdir={below}/work"
            with _mounted(place, "-t", "overlay", "-o", layers, "overlay"):
                yield place
        return
    if kind == "tmpfs":
        with _mounted(place, "-t", "tmpfs", "-o", f"size={size_mib}m,{options}".rstrip(","), "tmpfs"):
            yield place
        return
    need_tools(_MKFS[kind][0])
    image = place.with_suffix(".img")
    with image.open("xb") as file:
        file.truncate(size_mib << 20)
    try:
        run(*_MKFS[kind], str(image))
        with _mounted(place, "-o", f"loop,{options}".rstrip(","), str(image)):
            yield place
    finally:
        image.unlink()


@contextmanager
def _mounted(place: Path, *arguments: str) -> Iterator[None]:
    with ExitStack() as stack:
        try:
            stack.enter_context(mounted_at(place, *arguments))
        except subprocess.CalledProcessError as error:
            cannot(f"mount {' '.join(arguments)}: {error.stderr.strip()}")
        yield


@contextmanager
def mounted_at(place: Path, *arguments: str) -> Iterator[None]:
    """What mount(8) makes of these arguments and the folder ``place``."""
    try:
        run("mount", *arguments, str(place))
        yield
    finally:
        _unmount(place)


def _unmount(place: Path) -> None:
    deadline = time.monotonic() + 10
    try:
        while _is_mounted(place):
            try:
                run("umount", str(place))
            except (subprocess.CalledProcessError, subprocess.TimeoutExpired):
                # A loop device lets go of its image, which may lie here, some time after its own umount(8).
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.05)
    finally:
        if _is_mounted(place):
            run("umount", "-l", str(place))  # what still uses it keeps it, but under no name


def _is_mounted(place: Path) -> bool:
    """As the kernel tells it: a file system that has shut itself down has no answer for stat(2)."""
    return f" {place.absolute()} " in Path("/proc/self/mountinfo").read_text()


def run(*command: str) -> str:
    """What an administrator's program prints; it must succeed."""
    path = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=os.environ | {"PATH": path})
    try:
        done.check_returncode()
    except subprocess.CalledProcessError as error:
        error.add_note(done.stderr)
        raise
    return done.stdout.strip()
