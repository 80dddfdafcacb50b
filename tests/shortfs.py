"""The FUSE file system of faults/shortfs.c, which cuts transfers short and fails where it is told to."""

from __future__ import annotations

import mmap
import os
import shlex
import struct
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from harness import cannot, need_tools

# The operations and the fields of a rule, as in shortfs.c.
OPS = ("open", "create", "read", "write", "direct", "truncate", "fsync", "flush", "release", "rename", "fsyncdir")
OPS += ("mkdir", "unlink")
FIELDS = ("calls", "fired", "nth", "error", "every", "limit", "delay_ms")

EVERY_TIME = -1  # from the first call on
HALF = 0


class ShortFs:
    """A mounted file system: what stands at ``mount`` lies in ``behind``, and obeys the rules."""

    def __init__(self, mode: str, mount: Path, behind: Path, control: mmap.mmap) -> None:
        self.mode = mode
        self.mount = mount
        self.behind = behind
        self._control = control

    def rule(self, op: str, **fields: int) -> None:
        for name, value in fields.items():
            struct.pack_into("q", self._control, self._place(op, name), value)

    def count(self, op: str, field: str = "calls") -> int:
        number: int = struct.unpack_from("q", self._control, self._place(op, field))[0]
        return number

    def fired(self) -> int:
        return sum(self.count(op, "fired") for op in OPS)

    def reset(self) -> None:
        self._control[:] = bytes(len(self._control))

    def settle(self) -> None:
        """Waits for the release of files, which the kernel does not wait for: else it would count for the next."""
        deadline = time.monotonic() + 10
        while self.count("release") < sum(self.count(op) - self.count(op, "fired") for op in ("open", "create")):
            assert time.monotonic() < deadline, "a file was not released"
            time.sleep(0.001)

    def _place(self, op: str, field: str) -> int:
        return 8 * (OPS.index(op) * len(FIELDS) + FIELDS.index(field))


def build(folder: Path) -> Path:
    """The program, compiled into ``folder``."""
    need_tools("cc", "pkg-config", "fusermount3")
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        cannot("/dev/fuse may not be opened")
    flags = subprocess.run(
        ["pkg-config", "--cflags", "--libs", "fuse3"], capture_output=True, text=True, check=False, timeout=10
    )
    if flags.returncode != 0:
        cannot(f"libfuse3 is not installed: {flags.stderr}")
    made = folder / "shortfs"
    source = str(Path(__file__).parent / "faults/shortfs.c")
    command = ["cc", "-O1", "-Wall", "-Wextra", "-Werror", "-D_FILE_OFFSET_BITS=64", source, "-o", str(made)]
    subprocess.run([*command, *shlex.split(flags.stdout)], check=True, timeout=60)
    return made


@contextmanager
def mounted(program: Path, mode: str, folder: Path) -> Iterator[ShortFs]:
    """Mounted in ``folder`` for as long as the block lasts."""
    behind, mount, control = folder / "behind", folder / "mount", folder / "control"
    behind.mkdir()
    mount.mkdir()
    control.write_bytes(bytes(8 * len(OPS) * len(FIELDS)))
    with control.open("r+b") as file, mmap.mmap(file.fileno(), 0) as shared:
        process = subprocess.Popen([program, mode, control, behind, mount, "-f"], stderr=subprocess.PIPE, text=True)
        try:
            deadline = time.monotonic() + 10
            while not os.path.ismount(mount):
                if process.poll() is not None or time.monotonic() > deadline:
                    process.kill()
                    cannot(f"no FUSE here: {process.communicate(timeout=10)[1]}")
                time.sleep(0.005)
            yield ShortFs(mode, mount, behind, shared)
        finally:
            # Also when the process is dead: the mount, which stat(2) then fails on, outlives it.
            for command in (["fusermount3", "-u", mount], ["fusermount3", "-u", "-z", mount]):
                if subprocess.run(command, capture_output=True, check=False, timeout=10).returncode == 0:
                    break
            try:
                process.communicate(timeout=10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.communicate(timeout=10)
