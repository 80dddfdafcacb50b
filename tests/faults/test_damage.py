"""A compressed object that is damaged or cut anywhere is an error: every bit of it, and every length.

Some bits of a zstd frame (RFC 8878) mean nothing for its content: the unused one of its header, a larger window,
padding behind the tables of a block.  Its own checksum is that of the content, and sees no such flip; the seal behind
the frame (zstd.h) does.  So the frame without it is the planted fault here.
"""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from harness import effort

import s3dlio


def words(size: int, vocabulary: int = 300) -> bytes:
    """Bytes that compress as text does."""
    choose = random.Random(size)
    some = [choose.randbytes(choose.randrange(3, 9)) for _ in range(vocabulary)]
    return b"".join(choose.choices(some, k=size // 3))[:size]


class Victim:
    """A stored object, to be damaged in its file and read through the library."""

    def __init__(self, folder: Path, content: bytes, **options: Any) -> None:
        self.uri = f"file://{folder}/a.zst"
        self.content = content
        with s3dlio.open_writer(self.uri, compression="zstd", durability="none", **options) as writer:
            for start in range(0, len(content), 100_000):
                writer.write_chunk(content[start : start + 100_000])
        self.stored = (folder / "a.zst").read_bytes()
        self.count: Counter[str] = Counter()
        self._fd = os.open(folder / "a.zst", os.O_RDWR)

    def close(self) -> None:
        os.close(self._fd)

    def store(self, stored: bytes) -> None:
        os.ftruncate(self._fd, 0)
        os.pwrite(self._fd, stored, 0)
        self.stored = stored

    def read(self) -> str:
        try:
            with s3dlio.open_reader(self.uri, decompress=True, buffer_size=4096) as reader:
                return "unseen" if reader.read() == self.content else "wrong"
        except s3dlio.CorruptDataError:
            return "detected"
        except s3dlio.StorageError as error:
            # A window of more than 128 MiB: no damage, had the frame been written with one.
            assert "zstd library refused" in str(error)
            return "detected"

    def flip(self, bits: range) -> None:
        for bit in bits:
            byte = self.stored[bit // 8]
            os.pwrite(self._fd, bytes([byte ^ 1 << bit % 8]), bit // 8)
            result = self.read()
            os.pwrite(self._fd, bytes([byte]), bit // 8)
            self.count["flips"] += 1
            self.count[result] += 1

    def cut(self, lengths: range) -> None:
        for length in lengths:
            os.ftruncate(self._fd, length)
            result = self.read()
            os.pwrite(self._fd, self.stored[length:], length)
            self.count["cuts"] += 1
            self.count[result] += 1


@pytest.fixture
def victim(disk_path: Path) -> Iterator[Callable[..., Victim]]:
    made: list[Victim] = []

    def make(content: bytes, **options: Any) -> Victim:
        made.append(Victim(disk_path, content, **options))
        return made[-1]

    yield make
    for one in made:
        one.close()


# Stored in 4 KiB and a little more: content, level, and the step through its bits in `make test`.
LONG_OBJECTS = {
    "text": (words(7000), 3, 1),
    "noise": (random.Random(3).randbytes(4096), 3, 1),
    "noise and text": (random.Random(4).randbytes(2048) + words(3600), 3, 7),
    "text at level 1": (words(5500), 1, 7),
    "text at level 19": (words(8400), 19, 7),
}
SHORT_OBJECTS = {
    "empty": b"",
    "a byte": b"x",
    "a raw block": random.Random(1).randbytes(600),
    "repeated bytes": bytes(300_000),
    "two blocks": random.Random(2).randbytes(300) * 600,
}


@pytest.mark.timeout(effort(300, 3600))
def test_every_flipped_bit_and_every_cut_is_an_error(
    victim: Callable[..., Victim], figure: Callable[[str], None]
) -> None:
    total: Counter[str] = Counter()
    for content, level, step in LONG_OBJECTS.values():
        long = victim(content, threads=0, level=level)
        assert 4096 <= len(long.stored) < 5120
        long.flip(range(0, len(long.stored) * 8, effort(step, 1)))
        long.cut(range(0, len(long.stored), effort(step, 1)))
        total += long.count
    for content in SHORT_OBJECTS.values():
        short = victim(content, threads=0)
        short.flip(range(len(short.stored) * 8))
        short.cut(range(len(short.stored)))
        total += short.count
    # Several jobs of the compressor's threads; each reading takes a hundred times as long.
    jobs = victim(words(7000) * 700, threads=2, level=1)
    jobs.flip(range(0, len(jobs.stored) * 8, effort(61, 1)))
    jobs.cut(range(0, len(jobs.stored), effort(61, 1)))
    total += jobs.count
    figure(
        f"damage: {total['flips']} flips and {total['cuts']} cuts of {len(LONG_OBJECTS | SHORT_OBJECTS) + 1} objects, "
        f"{total['detected']} detected, {total['unseen']} not seen, {total['wrong']} read as other bytes"
    )
    assert total == {"flips": total["flips"], "cuts": total["cuts"], "detected": total["flips"] + total["cuts"]}


def plain(stored: bytes) -> bytes:
    """The frame as libzstd makes it: mark and seal taken away (zstd.h)."""
    assert stored[6:12] == bytes(6)
    return stored[:6] + stored[12:-16]


def test_flips_in_a_frame_without_a_seal_are_seen_to_go_through(victim: Callable[..., Victim]) -> None:
    """The first planted fault."""
    one = victim(words(7000), threads=0)
    one.store(plain(one.stored))
    one.flip(range(len(one.stored) * 8))
    assert 9 <= one.count["unseen"] < one.count["flips"] / 500
    assert one.count["detected"] + one.count["unseen"] == one.count["flips"]


def test_flips_in_a_frame_without_any_checksum_are_seen_to_change_the_content(victim: Callable[..., Victim]) -> None:
    """The second: content checksum flag (RFC 8878, 3.1.1.1.1) and checksum taken away as well."""
    bare = victim(words(7000), threads=0)
    header = bytearray(plain(bare.stored)[:-4])
    header[4] &= ~4
    bare.store(bytes(header))
    assert bare.read() == "unseen"
    bare.flip(range(0, len(bare.stored) * 8, 7))
    assert bare.count["wrong"] > 100


def test_what_stands_behind_the_frame_is_seen(victim: Callable[..., Victim]) -> None:
    one = victim(words(7000), threads=0)
    sealed = one.stored
    frame, seal = sealed[:-16], sealed[-16:]
    for tail in (b"\0", b"x", bytes(4096), sealed[: len(sealed) // 2], sealed[:4], sealed[:-1], frame, seal):
        one.store(sealed + tail)
        assert one.read() == "detected", tail[:20]
    for stored in (frame + sealed, frame + frame + seal, frame + b"\x50\x2a\x4d\x18\0\0\0\0" + seal, seal):
        one.store(stored)
        assert one.read() == "detected"
    # Frames one after the other, and skippable ones, are as good as one (RFC 8878, 3.1); so where objects were put
    # together by others than this library, a cut between them cannot be seen.
    one.content += one.content
    one.store(sealed + b"\x50\x2a\x4d\x18\x03\0\0\0abc" + sealed)
    assert one.read() == "unseen"
    one.cut(range(len(sealed) + 1, len(one.stored)))
    assert one.count == {"cuts": len(sealed) + 10, "detected": len(sealed) + 9, "wrong": 1}
