"""Writers to be killed: each writes version after version, to one name or each to a new one."""

from __future__ import annotations

import itertools
import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import victims

import s3dlio

BLOCK = 64 << 10
# A file of less than a block, one of exactly one, and some of which several are in flight at once.
SIZES = (0, 5000, BLOCK, 5 * BLOCK + 1, 9000, 16 * BLOCK, 2 * BLOCK - 1, 12)
POOL = random.Random("versions").randbytes(2 << 20)  # does not compress


def content(version: int) -> bytes:
    """The bytes of a version: no two of them agree in any place, but by chance."""
    size = SIZES[version % len(SIZES)]
    start = version * 512 % (len(POOL) - size)
    return (version.to_bytes(8, "big") + POOL[start : start + size])[:size]


def rewrite(shared: victims.Shared, job: dict[str, Any]) -> None:
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


def write_whole(shared: victims.Shared, job: dict[str, Any], data: bytes) -> None:
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


def write_in_place(shared: victims.Shared, job: dict[str, Any], data: bytes) -> None:
    with Path(job["folder"], "a").open("wb", buffering=0) as file:
        shared.phase = "write"
        for piece in pieces(data):
            file.write(piece)


def write_under_other_names(shared: victims.Shared, job: dict[str, Any], data: bytes) -> None:
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


if __name__ == "__main__":
    s3dlio.exists("file:///")  # what is imported at the first use
    victims.serve(rewrite)
