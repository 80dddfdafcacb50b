"""What writes a stream of equal chunks: contenders of several benchmarks.  Each is called as
``write(path, nbytes, chunk_nbytes, durable)``."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import race

Write = Callable[[str, int, int, bool], None]
CHUNK = 8 * race.MIB


def streams(contest: race.Race) -> None:
    """The cases of a short stream and a long one, durable."""
    for mib in contest.pick(full=(512, 4096), quick=(64,)):
        nbytes = mib * race.MIB
        room = nbytes + race.GIB  # of which the page cache takes the most
        arguments = (nbytes, CHUNK, True)
        contest.case(f"{mib} MiB", arguments, nbytes / 1e9, "GB/s", check=race.of_size(nbytes), room=room)


@lru_cache(1)
def chunk_of(nbytes: int) -> bytes:
    return os.urandom(nbytes)


def ours(scheme: str, **settings: Any) -> Write:
    import s3dlio

    def write(path: str, nbytes: int, chunk_nbytes: int, durable: bool) -> None:
        chunk = chunk_of(chunk_nbytes)
        durability = "full" if durable else "none"
        with s3dlio.open_writer(f"{scheme}://{path}", durability=durability, **settings) as writer:
            write_chunk = writer.write_chunk
            for _ in range(nbytes // chunk_nbytes):
                write_chunk(chunk)
        if scheme == "direct" and not writer.stats().direct:
            raise OSError(f"no O_DIRECT here: {writer.stats().direct_reason}")

    return write


def python_open(buffering: int) -> Write:
    def write(path: str, nbytes: int, chunk_nbytes: int, durable: bool) -> None:
        chunk = chunk_of(chunk_nbytes)
        with Path(path).open("wb", buffering) as file:
            write_chunk = file.write
            for _ in range(nbytes // chunk_nbytes):
                write_chunk(chunk)
            if durable:
                file.flush()
                os.fsync(file.fileno())

    return write


def reference(scheme: str) -> Write:
    import s3dlio

    create = s3dlio.create_direct_filesystem_writer if scheme == "direct" else s3dlio.create_filesystem_writer

    def write(path: str, nbytes: int, chunk_nbytes: int, durable: bool) -> None:
        chunk = chunk_of(chunk_nbytes)
        writer = create(f"{scheme}://{path}")
        write_chunk = writer.write_chunk
        for _ in range(nbytes // chunk_nbytes):
            write_chunk(chunk)
        writer.finalize()
        if durable:
            race.fsync(path)

    return write
