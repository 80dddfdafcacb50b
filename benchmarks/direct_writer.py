"""The direct writer, durable and with CRC32C, against a bare C loop, open().write() and the reference, both with
fsync(): a stream in chunks of 8 MiB."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import race
from race import BUILD, MIB, Contender, Race, Unavailable

CHUNK = 8 * MIB


def ours() -> Callable[[str, int], None]:
    import s3dlio

    chunk = os.urandom(CHUNK)

    def write(path: str, nbytes: int) -> None:
        with s3dlio.open_writer(f"direct://{path}", require_direct=True) as writer:
            for _ in range(nbytes // CHUNK):
                writer.write_chunk(chunk)

    return write


def python_open() -> Callable[[str, int], None]:
    chunk = os.urandom(CHUNK)

    def write(path: str, nbytes: int) -> None:
        with Path(path).open("wb", buffering=0) as file:
            for _ in range(nbytes // CHUNK):
                if file.write(chunk) != CHUNK:
                    raise OSError("short write")
            os.fsync(file.fileno())

    return write


def reference() -> Callable[[str, int], None]:
    import s3dlio

    chunk = os.urandom(CHUNK)

    def write(path: str, nbytes: int) -> None:
        writer = s3dlio.create_direct_filesystem_writer(f"direct://{path}")
        for _ in range(nbytes // CHUNK):
            writer.write_chunk(chunk)
        writer.finalize()
        race.fsync(path)

    return write


def bare_loop() -> list[str]:
    program = BUILD / "bare_uring"
    source = Path(__file__).with_name("bare_uring.c")
    command = [os.environ.get("CC", "cc"), "-O2", "-march=native", "-Wall", "-Wextra", str(source), "-luring"]
    try:
        subprocess.run([*command, "-o", str(program)], check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise Unavailable("its C file cannot be compiled") from error
    return [str(program)]


CONTENDERS = (
    Contender("s3dlio, direct://", ours),
    Contender("bare io_uring loop in C", command=bare_loop, target=0.9),
    Contender("open().write(), fsync()", python_open, target=1.2),
    Contender("reference's direct writer, fsync()", reference, target=1.5, python=race.reference_python),
)


def main() -> None:
    with Race(__file__, "Direct writer: a durable stream", CONTENDERS) as contest:
        for mib in contest.pick(full=(512, 4096), quick=(64,)):
            nbytes = mib * MIB
            contest.case(f"{mib} MiB", (nbytes,), nbytes / 1e9, "GB/s", check=race.of_size(nbytes))


if __name__ == "__main__":
    main()
