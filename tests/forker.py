"""A program that forks in the middle of writing and reading, and prints what became of children and parent.

Its argument is a JSON list of jobs: engine, scheme, folder, compression, writer ('ours', or a planted fault), mode
('between' calls, 'inside' one, or children that are still there 'after' the parent has finished), forks, and deadline,
the seconds after which a child counts as hung.
"""

from __future__ import annotations

import atexit
import gc
import json
import os
import random
import signal
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

import s3dlio

BLOCK = 64 << 10
POOL = random.Random(1).randbytes(1 << 20)

# How a child ends: with or without the interpreter, or before that with what else it does.
ENDINGS = ("_exit", "exit", "close", "drop", "own", "fork")


class Plain:
    """A planted fault: a writer that knows nothing of forks.  The child's bytes end up in the parent's file."""

    def __init__(self, path: str) -> None:
        self._fd = os.open(path, os.O_CREAT | os.O_TRUNC | os.O_WRONLY)

    def write_chunk(self, chunk: bytes) -> None:
        os.write(self._fd, chunk)

    def finalize(self) -> None:
        os.close(self._fd)


class Locked:
    """A planted fault: a writer with a lock that another thread holds when the process forks."""

    def __init__(self, path: str) -> None:
        self._plain = Plain(path)
        self._lock = threading.Lock()

    def write_chunk(self, chunk: bytes) -> None:
        with self._lock:
            self._plain.write_chunk(chunk)
            time.sleep(0.01)

    def finalize(self) -> None:
        self._plain.finalize()


def open_writer(job: dict[str, Any]) -> Any:
    if job["writer"] != "ours":
        return {"plain": Plain, "locked": Locked}[job["writer"]](f"{job['folder']}/a")
    return s3dlio.open_writer(
        f"{job['scheme']}://{job['folder']}/a",
        compression=job["compression"],
        level=1,
        threads=2,
        buffer_size=BLOCK,
        in_flight=4,
        durability="none",
    )


def must_be_forked(call: Callable[..., object], *arguments: object) -> None:
    """At once: a call that waited would wait for threads that a child does not have."""
    began = time.monotonic()
    try:
        call(*arguments)
    except s3dlio.ForkedError:
        assert time.monotonic() - began < 5
    else:
        raise AssertionError(f"{call} worked in a child")


def leave_with(writer: Any) -> None:
    with writer:
        pass


def must_be_useless(writer: Any, readers: list[Any]) -> None:
    for call in (writer.finalize, writer.stats, writer.bytes_written, writer.compressed_bytes, writer.checksum):
        must_be_forked(call)
    must_be_forked(writer.write_chunk, b"child")
    must_be_forked(leave_with, writer)
    writer.abort()
    with suppress(KeyError), writer:
        raise KeyError
    # What Python has buffered is the child's own copy; for the rest the file would have to be read.
    for reader in readers:
        must_be_forked(reader.read)


def write_and_read(job: dict[str, Any], name: str) -> None:
    for compression in (None, "zstd"):
        uri = f"{job['scheme']}://{job['folder']}/{name}{'.zst' if compression else ''}"
        s3dlio.put(uri, POOL, compression=compression, threads=2, buffer_size=BLOCK, durability="none")
        with s3dlio.open_reader(uri, decompress=bool(compression)) as reader:
            assert reader.read() == POOL
        s3dlio.delete(uri)


def has_ended(pid: int, seconds: float) -> bool:
    """Whether the child ends by itself, and well."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            code = os.waitstatus_to_exitcode(status)
            assert code == 0, f"a child ended with {code}"
            return True
        time.sleep(0.001)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return False


class Parent:
    def __init__(self, job: dict[str, Any]) -> None:
        os.environ["S3DLIO_IO_ENGINE"] = job["engine"]
        self.job = job
        self.result = {"forks": 0, "inside": 0, "hung": 0, "harmed": 0}
        self.written = bytearray()
        self.writer = open_writer(job)
        place = f"{job['scheme']}://{job['folder']}/b"
        # Larger than what Python and the decompressor hold of it.
        s3dlio.put(place, POOL * 8, durability="none")
        s3dlio.put(place, POOL * 8, durability="none", compression="zstd", level=1)
        self.readers = [
            s3dlio.open_reader(place, buffer_size=BLOCK),
            s3dlio.open_reader(f"{place}.zst", decompress=True, buffer_size=BLOCK),
        ]
        self.is_inside = False
        self.forking, self.ended = threading.Event(), threading.Event()
        self.children: list[int] = []
        self.gate = os.pipe()

    def write(self) -> None:
        """Several blocks, with an odd end."""
        start = len(self.written) % 1000
        chunk = memoryview(POOL)[start : start + 5 * BLOCK + start]
        self.is_inside = True
        self.writer.write_chunk(chunk)
        self.is_inside = False
        self.written += chunk

    def write_all_the_time(self) -> None:
        while not self.ended.is_set():
            self.write()
            self.forking.wait(timeout=0.02)  # now and then while a child ends, without a pause around the fork

    def read(self, number: int) -> None:
        for reader in self.readers:
            assert reader.read(5001) == (POOL * 2)[number * 5001 :][:5001]

    def fork(self, ending: str) -> None:
        inside = self.is_inside
        pid = os.fork()
        if pid == 0:
            try:
                self.be_child(ending)
            except Exception:
                traceback.print_exc()
                os._exit(1)
        self.forking.clear()
        self.result["forks"] += 1
        self.result["inside"] += inside
        self.children.append(pid)

    def be_child(self, ending: str) -> NoReturn:
        if self.job["mode"] == "after":
            os.close(self.gate[1])
            os.read(self.gate[0], 1)
        if self.job["writer"] != "ours":
            self.writer.write_chunk(b"child")
            os._exit(0)
        must_be_useless(self.writer, self.readers)
        if ending == "close":
            for reader in self.readers:
                reader.close()
        elif ending == "drop":
            del self.writer, self.readers
            gc.collect()
        elif ending == "own":
            write_and_read(self.job, f"child-{os.getpid()}")
        elif ending == "fork":
            pid = os.fork()
            must_be_useless(self.writer, self.readers)
            if pid:
                assert has_ended(pid, self.job["deadline"])
        elif ending == "_exit":
            os._exit(0)
        sys.exit(0)

    def wait_for_children(self) -> None:
        while self.children:
            self.result["hung"] += not has_ended(self.children.pop(), self.job["deadline"])

    def finish(self) -> None:
        self.writer.finalize()
        name = f"{self.job['folder']}/a"
        if self.job["compression"]:
            with s3dlio.open_reader(f"file://{name}.zst", decompress=True) as reader:
                data = reader.read()
        else:
            data = Path(name).read_bytes()
        harmed = data != self.written
        if self.job["writer"] == "ours":
            harmed |= self.writer.checksum() != f"crc32c:{s3dlio.crc32c(self.written):08x}"
        self.result["harmed"] += harmed
        for reader in self.readers:
            with reader:
                assert reader.read() == (POOL * 8)[self.job["forks"] * 5001 :]


def run(job: dict[str, Any]) -> dict[str, int]:
    parent = Parent(job)
    thread = threading.Thread(target=parent.write_all_the_time, daemon=True)
    if job["mode"] == "inside":
        thread.start()
    for number in range(job["forks"]):
        if job["mode"] == "inside":
            parent.forking.set()
            time.sleep(0.001 * (number % 5))
        else:
            parent.write()
        parent.read(number)
        parent.fork(ENDINGS[number % len(ENDINGS)])
        if job["mode"] != "after":
            parent.wait_for_children()
    parent.ended.set()
    if job["mode"] == "inside":
        thread.join(timeout=30)
        assert not thread.is_alive()
    else:
        parent.write()
    parent.finish()
    os.close(parent.gate[1])
    parent.wait_for_children()
    os.close(parent.gate[0])
    return parent.result


if __name__ == "__main__":
    warnings.simplefilter("ignore")  # fork beside threads
    atexit.register(gc.collect)
    print(json.dumps([run(job) for job in json.loads(sys.argv[1])]))
