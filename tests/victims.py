"""Processes to be killed: a server that has imported everything and forks one for each kill, which takes 2 ms, not 100.

Each line of its input is a job; it answers with the id of the process that does it, which goes on until it is killed,
and to "reap" with how that process ended.
"""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import random
import select
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any

PHASES = ("start", "open", "write", "finalize", "manifest", "pointer", "between", "delete")


class _Word:
    """A number in the memory of a `Shared`."""

    def __init__(self, index: int) -> None:
        self._index = index

    def __get__(self, shared: Shared, kind: type[Shared]) -> int:
        return shared.words[self._index]

    def __set__(self, shared: Shared, value: int) -> None:
        shared.words[self._index] = value


class Shared:
    """What a process tells of itself, in memory that outlives it."""

    # The last version that it began, and the last that it was told to be in place.
    begun, acknowledged = _Word(1), _Word(2)
    # Older versions than this may be deleted.
    doomed = _Word(3)

    def __init__(self, fd: int) -> None:
        self._map = mmap.mmap(fd, mmap.PAGESIZE)
        self.words = memoryview(self._map).cast("Q")

    def close(self) -> None:
        self.words.release()
        self._map.close()

    @property
    def phase(self) -> str:
        return PHASES[self.words[0]]

    @phase.setter
    def phase(self, phase: str) -> None:
        self.words[0] = PHASES.index(phase)


class Server:
    """The server, as the test sees it: a program that calls `serve`; ``under`` is a command to run it with, such as
    strace."""

    def __init__(self, program: str, *under: str) -> None:
        fd = os.memfd_create("shared")
        os.ftruncate(fd, mmap.PAGESIZE)
        self.shared = Shared(fd)
        self._process = subprocess.Popen(
            [*under, sys.executable, program, str(fd)],
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
        """Starts a process; its id is taken until `reap`."""
        self.shared.phase = "start"
        self.shared.begun = self.shared.acknowledged = self.shared.doomed = 0
        return self._ask(json.dumps(job))

    def reap(self) -> int:
        """Waits until the process has ended, and says how."""
        return self._ask("reap")

    def close(self) -> None:
        """The server ends with its input, and a process that still runs with the server."""
        try:
            self._process.communicate(timeout=30)
        finally:
            self._process.kill()
            self._process.wait(timeout=30)
            self.shared.close()


@contextlib.contextmanager
def server(program: str, *under: str) -> Iterator[Server]:
    it = Server(program, *under)
    try:
        yield it
    finally:
        it.close()


def serve(work: Callable[[Shared, dict[str, Any]], None]) -> None:
    """The program of a server, whose processes do this; it was started with the descriptor of a `Shared`."""
    shared = Shared(int(sys.argv[1]))
    pid = 0
    for line in sys.stdin:
        if line == "reap\n":
            answer = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        else:
            answer = pid = os.fork()
            if pid == 0:
                try:
                    work(shared, json.loads(line))
                except BaseException:
                    traceback.print_exc()
                finally:
                    os._exit(1)
        print(answer, flush=True)


def wait_for_moment(
    shared: Shared, choose: random.Random, first: int, phases: tuple[str, ...], longest: float = 0.02
) -> None:
    """Until a moment that is chosen by the clock, ``longest`` seconds at most, or by what the process is at: the clock
    seldom meets the short phases."""
    if choose.random() < 0.4:
        time.sleep(choose.uniform(0, longest))
        return
    phase = choose.choice(phases)
    version = first + choose.randrange(3)
    spin(lambda: shared.begun > version or (shared.begun == version and shared.phase == phase))
    until = time.perf_counter() + 10 ** choose.uniform(-6, -2.5)
    spin(lambda: time.perf_counter() > until)


def spin(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not is_so():
        assert time.monotonic() < deadline, "the process stands still"
