"""Writers to be killed: a server that has imported everything and forks one for each kill, which takes 2 ms, not 100.

Run with the descriptor of a `Shared`.  Each line of its input is a job; it answers with the process id of the writer,
which writes version after version until it is killed, and to "reap" with how that process ended.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import mmap
import os
import random
import select
import subprocess
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import s3dlio

BLOCK = 64 << 10
# A file of less than a block, one of exactly one, and some of which several are in flight at once.
SIZES = (0, 5000, BLOCK, 5 * BLOCK + 1, 9000, 16 * BLOCK, 2 * BLOCK - 1, 12)
POOL = random.Random("versions").randbytes(2 << 20)  # does not compress

PHASES = ("start", "open", "write", "finalize", "between")


class Shared:
    """What a writer tells of itself, in memory that outlives it."""

    def __init__(self, fd: int) -> None:
        self._map = mmap.mmap(fd, mmap.PAGESIZE)
        self._words = memoryview(self._map).cast("Q")

    def close(self) -> None:
        self._words.release()
        self._map.close()

    @property
    def phase(self) -> str:
        return PHASES[self._words[0]]

    @phase.setter
    def phase(self, phase: str) -> None:
        self._words[0] = PHASES.index(phase)

    @property
    def begun(self) -> int:
        """The last version that the writer began."""
        return self._words[1]

    @begun.setter
    def begun(self, version: int) -> None:
        self._words[1] = version

    @property
    def acknowledged(self) -> int:
        """The last version that the writer was told to be in place."""
        return self._words[2]

    @acknowledged.setter
    def acknowledged(self, version: int) -> None:
        self._words[2] = version


def content(version: int) -> bytes:
    """The bytes of a version: no two of them agree in any place, but by chance."""
    size = SIZES[version % len(SIZES)]
    start = version * 512 % (len(POOL) - size)
    return (version.to_bytes(8, "big") + POOL[start : start + size])[:size]


def rewrite(shared: Shared, job: dict[str, Any]) -> None:
    """Writes version after version, to one name or each to a new one, until the server is gone."""
    os.environ["S3DLIO_IO_ENGINE"] = job["engine"]
    server = os.getppid()
    if job["chroot"]:
        os.chroot(job["folder"])
        job["folder"] = ""
    write = WRITERS[job["writer"]]
    for version in itertools.count(job["first"]):
        if os.getppid() != server:
            return
        data = content(version)
        shared.begun = version
        shared.phase = "open"
        write(shared, job, data)
        shared.acknowledged = version
        shared.phase = "between"


def pieces(data: bytes) -> Iterator[bytes]:
    return (data[start : start + 30_000] for start in range(0, len(data), 30_000))


def write_whole(shared: Shared, job: dict[str, Any], data: bytes) -> None:
    uri = f"{job['scheme']}://{job['folder']}/{shared.begun if job['new'] else 'a'}"
    if job["put"]:
        shared.phase = "finalize"
        s3dlio.put(uri, data, **job["options"])
        return
    writer = s3dlio.open_writer(uri, **job["options"])
    shared.phase = "write"
    for piece in pieces(data):
        writer.write_chunk(piece)
    shared.phase = "finalize"
    if job["writer"] == "early":
        shared.acknowledged = shared.begun
    writer.finalize()


def write_in_place(shared: Shared, job: dict[str, Any], data: bytes) -> None:
    with Path(job["folder"], "a").open("wb", buffering=0) as file:
        shared.phase = "write"
        for piece in pieces(data):
            file.write(piece)


def write_under_other_names(shared: Shared, job: dict[str, Any], data: bytes) -> None:
    hidden = Path(job["folder"], f"a.{shared.begun}")
    shared.phase = "write"
    hidden.write_bytes(data)
    shared.phase = "finalize"
    hidden.rename(hidden.with_name("a"))


# The first is what is tested; the others do what the test must be able to see.
WRITERS = {
    "whole": write_whole,
    "early": write_whole,
    "in place": write_in_place,
    "other names": write_under_other_names,
}


class Server:
    """The server, as the test sees it; ``under`` is a command to run it with, such as strace."""

    def __init__(self, *under: str) -> None:
        fd = os.memfd_create("shared")
        os.ftruncate(fd, mmap.PAGESIZE)
        self.shared = Shared(fd)
        self._process = subprocess.Popen(
            [*under, sys.executable, __file__, str(fd)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            pass_fds=[fd],
        )
        os.close(fd)

    def _ask(self, line: str) -> int:
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        stdin.write(line.encode() + b"\n")
        if not select.select([stdout], [], [], 60)[0]:
            raise TimeoutError(f"no answer to {line}")
        return int(stdout.readline())

    def start(self, **job: Any) -> int:
        """Starts a writer; its id is taken until `reap`."""
        self.shared.phase = "start"
        self.shared.begun = self.shared.acknowledged = 0
        return self._ask(json.dumps(job))

    def reap(self) -> int:
        """Waits until the writer has ended, and says how."""
        return self._ask("reap")

    def close(self) -> None:
        """The server ends with its input, and a writer that still runs with the server."""
        try:
            self._process.communicate(timeout=30)
        finally:
            self._process.kill()
            self._process.wait(timeout=30)
            self.shared.close()


@contextlib.contextmanager
def server(*under: str) -> Iterator[Server]:
    it = Server(*under)
    try:
        yield it
    finally:
        it.close()


def serve(shared: Shared) -> None:
    s3dlio.exists("file:///")  # what is imported at the first use
    pid = 0
    for line in sys.stdin:
        if line == "reap\n":
            answer = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        else:
            answer = pid = os.fork()
            if pid == 0:
                try:
                    rewrite(shared, json.loads(line))
                except BaseException:
                    traceback.print_exc()
                finally:
                    os._exit(1)
        print(answer, flush=True)


if __name__ == "__main__":
    serve(Shared(int(sys.argv[1])))
