"""Runs tests/faults/driver.c under strace(1), makes one of its system calls fail, and judges what came of it."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
from collections import Counter
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path

import numpy as np

import s3dlio

BLOCK = 64 << 10
OFF, PREFER, AUTO = 0, 1, 3  # enum s3dlio_direct
NAME = "a"
OLD = b"what was there before\n" * 500
ABANDONED = b"left behind by a killed process"
DEADLINE = 60  # seconds; the library itself waits ten for transfers that do not end

ERRORS = ("EIO", "ENOSPC", "EDQUOT", "EINTR", "EAGAIN", "ENOMEM")
# More that the kernel is known to say there.
MORE_ERRORS = {
    "access": ("ENOENT", "EACCES"),
    "openat": ("EMFILE", "EOPNOTSUPP", "ENOENT", "EACCES"),
    "pwrite64": ("EINVAL", "EFBIG"),
    "linkat": ("EEXIST", "ENOENT", "EPERM"),
    "renameat": ("ENOENT", "EXDEV"),
    "mkdirat": ("EROFS",),
    "fallocate": ("EOPNOTSUPP",),
    "fcntl": ("EINVAL",),
    "io_uring_setup": ("ENOSYS", "EPERM", "EMFILE"),
    "io_uring_register": ("EPERM", "EBUSY"),
    "io_uring_enter": ("EBUSY", "EBADF"),
    "flock": ("ENOLCK",),
    "clone3": ("EPERM",),
}
# No faults here: the C library aborts or spins where a lock's own call fails, and takes the others for granted; brk(2)
# has no such failure.
EXEMPT = {"futex", "rt_sigprocmask", "rt_sigaction", "rt_sigreturn", "set_robust_list", "rseq", "brk", "exit"}
EXEMPT |= {"getppid", "restart_syscall", "clock_nanosleep", "sched_yield"}


@dataclass(frozen=True)
class Scenario:
    """What the driver is asked to do."""

    engine: str = ""
    direct: int = 0  # enum s3dlio_direct
    level: int = 0
    # What the folder holds before: nothing, the old file, not even the folder, or also an abandoned hidden name.
    state: str = "new"
    nbytes: int = 5 * BLOCK + 12345
    durability: int = 0
    # Without O_TMPFILE the file has a hidden name from the beginning.
    tmpfile: bool = True
    wrong: str = ""
    put: bool = False  # in one call
    block: int = BLOCK

    def path(self, folder: Path) -> Path:
        return folder / "new/deeper" / NAME if self.state == "folders" else folder / NAME

    def arguments(self, folder: Path) -> list[str]:
        words = [str(self.path(folder)), str(self.nbytes), f"block={self.block}", "in_flight=1"]
        words += [
            f"direct={self.direct}",
            f"level={self.level}",
            f"durability={self.durability}",
            f"put={int(self.put)}",
        ]
        return [*words, *([f"wrong={self.wrong}"] if self.wrong else [])]

    def prepare(self, folder: Path) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        folder.chmod(0o777)  # the driver may run as somebody else
        if self.state in ("old", "abandoned"):
            (folder / NAME).write_bytes(OLD)
        if self.state == "abandoned":
            (folder / f".{NAME}.s3dlio-0").write_bytes(ABANDONED)


@dataclass(frozen=True)
class Fault:
    call: str
    number: int  # counted in each thread, from the start of the process on
    error: str
    # Only calls on the file's own folder, which strace then counts alone.
    folder_only: bool = False


@dataclass(frozen=True)
class Call:
    thread: int
    name: str
    text: str  # arguments and result
    number: int
    in_library: bool

    @property
    def injected(self) -> bool:
        return self.text.endswith("(INJECTED)")

    @property
    def fd(self) -> str:
        return re.split(r"[,)]", self.text, maxsplit=1)[0]


def parse(log: str) -> list[Call]:
    """The calls of a log of `strace -f`, in the order of their beginnings."""
    calls: list[Call] = []
    unfinished: dict[int, int] = {}
    counts: Counter[tuple[int, str]] = Counter()
    marks = 0
    for line in log.splitlines():
        if resumed := re.match(r"(\d+) +<\.\.\. \w+ resumed>(.*)", line):
            at = unfinished.pop(int(resumed[1]), None)
            if at is not None:
                calls[at] = replace(calls[at], text=calls[at].text + resumed[2])
        elif begun := re.match(r"(\d+) +(\w+)\((.*)", line):
            thread, name = int(begun[1]), begun[2]
            counts[thread, name] += 1
            marks += name == "getppid"
            text = begun[3].removesuffix(" <unfinished ...>")
            if text != begun[3]:
                unfinished[thread] = len(calls)
            calls.append(Call(thread, name, text, counts[thread, name], marks == 1))
    return calls


@dataclass
class Run:
    """What the driver did: its exit code (minus the signal), what it said, and its system calls."""

    returncode: int
    statuses: tuple[int, int, int] = (0, 0, 0)
    leaked_fds: int = 0
    engine: str = ""
    direct: bool = False
    calls: list[Call] = field(default_factory=list)

    @property
    def status(self) -> int:
        return next((status for status in self.statuses if status), 0)


class Tracer:
    """Runs the driver in a folder of its own."""

    def __init__(self, driver: Path, folder: Path) -> None:
        self.driver, self.folder, self.log = driver, folder, folder.with_suffix(".log")

    def run(self, scenario: Scenario, *faults: Fault, names: str = "", prepare: bool = True) -> Run:
        if prepare:
            scenario.prepare(self.folder)
        command = ["strace", "-f", "-qqq", "-o", self.log, "-e", "signal=none"]
        if names:
            command += ["-e", f"trace={names}"]
        for fault in faults:
            command += ["-e", f"inject={fault.call}:error={fault.error}:when={fault.number}"]
            if fault.folder_only:
                command += ["-P", scenario.path(self.folder).parent]
        run = self._finish([*command, self.driver, *scenario.arguments(self.folder)], scenario.engine)
        return replace(run, calls=parse(self.log.read_text(errors="replace")))

    def run_under(self, command: list[str], scenario: Scenario, *words: str) -> Run:
        """Without strace, under another program."""
        scenario.prepare(self.folder)
        return self._finish([*command, self.driver, *scenario.arguments(self.folder), *words], scenario.engine)

    def _finish(self, command: list[str | Path], engine: str) -> Run:
        environment = {"PATH": os.environ["PATH"], "S3DLIO_IO_ENGINE": engine}
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, start_new_session=True
        ) as process:
            try:
                output, errors = process.communicate(timeout=DEADLINE)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)  # strace and the driver, which would outlive it
                process.communicate()
                return Run(-signal.SIGKILL)
        words = output.split()
        if process.returncode != 0 or len(words) != 6:
            return Run(process.returncode or 1, engine=errors.strip())
        opened, written, closed, leaked, direct = (int(words[i]) for i in (0, 1, 2, 3, 5))
        return Run(0, (opened, written, closed), leaked, words[4], bool(direct))


@cache
def make_data(nbytes: int) -> bytes:
    """What the driver writes."""
    x = np.arange(nbytes, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    return ((x ^ x >> np.uint64(29)) * np.uint64(0xBF58476D1CE4E5B9) >> np.uint64(56)).astype(np.uint8).tobytes()


def is_whole(path: Path, scenario: Scenario) -> bool:
    with s3dlio.open_reader(f"file://{path}", decompress=scenario.level > 0) as reader:
        try:
            return reader.read() == make_data(scenario.nbytes)
        except s3dlio.CorruptDataError:
            return False
