"""A compressed object that is damaged or cut anywhere is an error, never other bytes.

A zstd frame (RFC 8878) has some bits that mean nothing for its content: the unused bit of its header, the size of the
window, reserved bits, and padding behind the tables of a block.  A decoder may not, or need not, look at them, and the
checksum is that of the content.  Such a flip is counted as harmless: what is read is what was written.
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
                return "harmless" if reader.read() == self.content else "wrong"
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
            self.count["short" if result == "harmless" else result] += 1


@pytest.fixture
def victim(disk_path: Path) -> Iterator[Callable[..., Victim]]:
    made: list[Victim] = []

    def make(content: bytes, **options: Any) -> Victim:
        made.append(Victim(disk_path, content, **options))
        return made[-1]

    yield make
    for one in made:
        one.close()


SHORT_OBJECTS = {
    "empty": b"",
    "a byte": b"x",
    "a raw block": random.Random(1).randbytes(600),
    "repeated bytes": bytes(300_000),
    "two blocks": random.Random(2).randbytes(300) * 600,
}


@pytest.mark.timeout(effort(300, 3600))
def test_every_flipped_bit_and_every_cut_is_detected(
    victim: Callable[..., Victim], figure: Callable[[str], None]
) -> None:
    whole = victim(words(7000), threads=0)
    assert 4096 <= len(whole.stored) < 4500
    whole.flip(range(len(whole.stored) * 8))
    whole.cut(range(len(whole.stored)))
    # Several jobs of the compressor's threads; each reading takes a hundred times as long.
    jobs = victim(words(7000) * 700, threads=2, level=1)
    jobs.flip(range(0, len(jobs.stored) * 8, effort(61, 1)))
    jobs.cut(range(0, len(jobs.stored), effort(61, 1)))
    total = whole.count + jobs.count
    for content in SHORT_OBJECTS.values():
        short = victim(content, threads=0)
        short.flip(range(len(short.stored) * 8))
        short.cut(range(len(short.stored)))
        total += short.count
    figure(
        f"damage: {total['flips']} flips and {total['cuts']} cuts, {total['detected']} detected, {total['harmless']} "
        f"flips of bits without a meaning, {total['wrong']} read as other bytes, {total['short']} cuts not seen"
    )
    assert not total["wrong"] + total["short"]
    assert total["detected"] + total["harmless"] == total["flips"] + total["cuts"]
    assert whole.count["harmless"] < whole.count["flips"] / 1000


def test_flip_in_a_frame_without_a_checksum_is_seen_to_go_through(victim: Callable[..., Victim]) -> None:
    """The planted fault: content checksum flag (RFC 8878, 3.1.1.1.1) and checksum taken away."""
    bare = victim(words(7000), threads=0)
    header = bytearray(bare.stored[:-4])
    header[4] &= ~4
    bare.store(bytes(header))
    assert bare.read() == "harmless"
    bare.flip(range(0, len(bare.stored) * 8, 7))
    assert bare.count["wrong"] > 100


def test_what_stands_behind_the_frame_is_seen(victim: Callable[..., Victim]) -> None:
    one = victim(words(7000), threads=0)
    frame = one.stored
    for tail in (b"\0", b"x", bytes(4096), frame[: len(frame) // 2], frame[:4], frame[:-1]):
        one.store(frame + tail)
        assert one.read() == "detected", tail[:20]
    # Frames one after the other, and skippable ones, are as good as one (RFC 8878, 3.1); so where frames were put
    # together by others than this library, a cut between them cannot be seen.
    one.content += one.content
    one.store(frame + b"\x50\x2a\x4d\x18\x03\0\0\0abc" + frame)
    assert one.read() == "harmless"
    one.cut(range(len(frame) + 1, len(one.stored)))
    assert one.count == {"cuts": len(frame) + 10, "detected": len(frame) + 9, "wrong": 1}
