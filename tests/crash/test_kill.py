"""A writer killed at any moment leaves the whole old file or the whole new one."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

import s3dlio

KILLS = 100

# Rewrites the file for ever; every version is a repetition of its number, which is also its last four bytes.
REWRITE = """
import itertools, sys
import s3dlio
uri, size, compression = sys.argv[1], int(sys.argv[2]), sys.argv[3] or None
for version in itertools.count(int(sys.argv[4])):
    with s3dlio.open_writer(uri, compression=compression, buffer_size=65536, level=1) as writer:
        for _ in range(8):
            writer.write_chunk(version.to_bytes(4, "big") * (size // 32))
    if version == int(sys.argv[4]):
        print("begun", flush=True)
"""

# The same, written in place: a fault that the test must be able to see.
REWRITE_IN_PLACE = """
import itertools, sys
path, size = sys.argv[1].removeprefix("file://"), int(sys.argv[2])
for version in itertools.count(int(sys.argv[4])):
    with open(path, "wb", buffering=0) as file:
        for _ in range(8):
            file.write(version.to_bytes(4, "big") * (size // 32))
    if version == int(sys.argv[4]):
        print("begun", flush=True)
"""

SIZE = 1 << 20


def rewrite_and_kill(code: str, uri: str, compression: str, first: int, choose: random.Random, engine: str) -> None:
    """Starts a writer, lets it run for a random while once it has written its first version, and kills it."""
    with subprocess.Popen(
        [sys.executable, "-c", code, uri, str(SIZE), compression, str(first)],
        stdout=subprocess.PIPE,
        env=os.environ | ({"S3DLIO_IO_ENGINE": engine} if engine else {}),
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"begun\n"
        time.sleep(choose.uniform(0, 0.03))
        process.kill()
        process.wait(timeout=30)


def is_whole(data: bytes) -> bool:
    return len(data) == SIZE and data == data[:4] * (SIZE // 4)


@pytest.mark.parametrize(
    ("scheme", "compression", "engine"),
    [("file", "", ""), ("direct", "", "uring"), ("direct", "", "threads"), ("file", "zstd", "")],
)
def test_killed_rewrite_leaves_a_whole_file(
    disk_path: Path, scheme: str, compression: str, engine: str, capsys: pytest.CaptureFixture[str]
) -> None:
    seed = random.randrange(2**32)
    choose = random.Random(seed)
    uri = f"{scheme}://{disk_path}/a"
    name = "a.zst" if compression else "a"
    torn = 0
    for number in range(KILLS // 4):
        rewrite_and_kill(REWRITE, uri, compression, number * 1_000_000, choose, engine)
        with s3dlio.open_reader(f"file://{disk_path}/{name}", decompress=bool(compression)) as reader:
            torn += not is_whole(reader.read())
    # What a kill between link and rename may leave behind, the next writer of this name takes away.
    with s3dlio.open_writer(uri, compression=compression or None) as writer:
        writer.write_chunk(b"\1\2\3\4" * (SIZE // 4))
    with capsys.disabled():
        what = f"{scheme} {compression or 'plain'} {engine or 'auto'}"
        print(f"\nkill9 {what}: {KILLS // 4} kills, {torn} torn, seed {seed}")
    assert torn == 0
    assert os.listdir(disk_path) == [name]


def test_killed_rewrite_in_place_is_seen_to_tear(disk_path: Path) -> None:
    """The planted fault: a test that did not see this one would prove nothing."""
    choose = random.Random(1)
    for number in range(KILLS):
        rewrite_and_kill(REWRITE_IN_PLACE, f"file://{disk_path}/a", "", number * 1_000_000, choose, "")
        if not is_whole((disk_path / "a").read_bytes()):
            return
    pytest.fail("no torn file in as many kills")
