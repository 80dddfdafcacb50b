"""How much memory a stream to S3 takes, however long it is."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest
import s3_sink
import servers
from memory_use import NOW

MIB = 1 << 20

# docs/s3.md, "Memory": the blocks of the stream, and so much beside them.
BESIDE = 24 * MIB

# Prints by how many bytes the peak is above what the process had before, with a client that is there already.
PROGRAM = (
    NOW
    + """
import sys
import s3dlio

how, size, buffer_size, in_flight = sys.argv[1], *map(int, sys.argv[2:])
chunk = memoryview(bytearray(b"x" * (4 << 20)))
s3dlio.put("s3://tests/before", b"x")
before, hoard = now("VmRSS"), []
if how == "multipart writer":
    writer = s3dlio.MultipartUploadWriter("tests", "a", part_size=buffer_size, max_in_flight=in_flight)
    write = writer.write
else:
    writer = s3dlio.open_writer("s3://tests/a", buffer_size=buffer_size, in_flight=in_flight)
    write = writer.write_chunk
with writer:
    for _ in range(0, size, len(chunk)):
        write(chunk)
        if how == "hoards":
            hoard.append(bytes(chunk))
print(now("VmHWM") - before)
"""
)


@pytest.fixture(scope="module")
def sink() -> Iterator[str]:
    """The URL of a server that keeps nothing: neither memory nor disk is taken by what it is sent."""
    with subprocess.Popen(
        [sys.executable, s3_sink.__file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        yield process.stdout.readline().strip()
        process.stdin.close()
        process.wait(20)


def peak(sink: str, how: str, size: int, buffer_size: int, in_flight: int) -> int:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, how, *map(str, (size, buffer_size, in_flight))],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
        env=os.environ | servers.environment(sink),
    )
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


def bound(buffer_size: int, in_flight: int) -> int:
    return buffer_size * (in_flight + 1) + BESIDE


@pytest.mark.parametrize(
    ("how", "size", "buffer_size", "in_flight"),
    [
        ("writer", 2048 * MIB, 8 * MIB, 8),
        ("writer", 512 * MIB, 5 * MIB, 2),
        ("writer", 1024 * MIB, 16 * MIB, 4),
        ("multipart writer", 512 * MIB, 8 * MIB, 4),
    ],
)
def test_stream_stays_within_the_memory_that_is_documented(
    sink: str, how: str, size: int, buffer_size: int, in_flight: int, figure: Callable[[str], None]
) -> None:
    taken, allowed = peak(sink, how, size, buffer_size, in_flight), bound(buffer_size, in_flight)
    figure(
        f"s3 memory: {how}, {size // MIB} MiB in parts of {buffer_size // MIB}, {in_flight} under way: "
        f"{taken / MIB:.0f} of {allowed // MIB} MiB"
    )
    assert buffer_size * in_flight < taken <= allowed


def test_writer_that_keeps_what_it_is_given_is_caught(sink: str) -> None:
    """A planted fault."""
    assert peak(sink, "hoards", 256 * MIB, 5 * MIB, 2) > bound(5 * MIB, 2)
