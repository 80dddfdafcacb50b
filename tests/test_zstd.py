"""Other zstd readers read what the encoder writes, and the decoder what other encoders write."""

from __future__ import annotations

import functools
import io
import random
import subprocess
from collections.abc import Callable

import pytest
import zstandard
from harness import need_tools

import s3dlio

SEAL_SIZE = 16  # zstd.h


def text(size: int) -> bytes:
    choose = random.Random(size)
    some = [choose.randbytes(choose.randrange(3, 9)) for _ in range(1000)]
    return b"".join(choose.choices(some, k=size // 3 + 1))[:size]


CONTENTS = {
    "empty": b"",
    "a byte": b"x",
    "zeros": bytes(1_000_000),
    "noise": random.Random(1).randbytes(140_000),
    "text": text(140_000),
}
# A frame that leaves out the size of its content may also ask for the largest window, as at level 22.
DECOMPRESSOR = zstandard.ZstdDecompressor(max_window_size=1 << 27)


@functools.cache
def compressed(content: bytes, *, level: int = 3, threads: int = 0, piece: int = 100_000) -> bytes:
    with s3dlio.open_writer("memory://zstd/a", compression="zstd", level=level, threads=threads) as writer:
        for start in range(0, len(content), piece):
            writer.write_chunk(content[start : start + piece])
    return s3dlio.get(writer.uri)


def ours(stored: bytes) -> bytes:
    s3dlio.put("memory://zstd/b.zst", stored)
    with s3dlio.open_reader("memory://zstd/b.zst", decompress=True) as reader:
        return reader.read()


def tool(name: str, *options: str) -> Callable[[bytes], bytes]:
    def run(stored: bytes) -> bytes:
        need_tools(name)
        return subprocess.run([name, *options], input=stored, stdout=subprocess.PIPE, check=True, timeout=60).stdout

    return run


def stream_reader(read_across_frames: bool) -> Callable[[bytes], bytes]:
    def read(stored: bytes) -> bytes:
        return DECOMPRESSOR.stream_reader(io.BytesIO(stored), read_across_frames=read_across_frames).read()

    return read


def decompressobj(stored: bytes) -> bytes:
    one = DECOMPRESSOR.decompressobj()
    content = b"".join(one.decompress(stored[start : start + 1000]) for start in range(0, len(stored), 1000))
    assert one.eof
    assert stored.endswith(one.unused_data)
    return content


READERS: dict[str, Callable[[bytes], bytes]] = {
    "ours": ours,
    "zstd -dc": tool("zstd", "-dcq"),
    "pzstd -dc": tool("pzstd", "-dcq"),
    "decompress()": lambda stored: DECOMPRESSOR.decompress(stored, max_output_size=20 << 20),
    "stream_reader()": stream_reader(False),
    "stream_reader(read_across_frames=True)": stream_reader(True),
    "decompressobj()": decompressobj,
}
READERS_OF_MANY_FRAMES = ("ours", "zstd -dc", "pzstd -dc", "stream_reader(read_across_frames=True)")


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("level", range(1, 23))
def test_object_is_read_by_every_reader(level: int, reader: str) -> None:
    for content in CONTENTS.values():
        assert READERS[reader](compressed(content, level=level)) == content


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("threads", [1, 2])
def test_object_of_several_threads_is_read_by_every_reader(threads: int, reader: str) -> None:
    content = text(9 << 20)
    for level in (1, 3):
        assert READERS[reader](compressed(content, level=level, threads=threads, piece=1 << 20)) == content
    assert READERS[reader](compressed(b"", threads=threads)) == b""


@pytest.mark.parametrize("reader", READERS_OF_MANY_FRAMES)
def test_objects_put_together_are_one_stream_to_every_reader_of_many_frames(reader: str) -> None:
    assert READERS[reader](b"".join(map(compressed, CONTENTS.values()))) == b"".join(CONTENTS.values())


def test_zstd_tool_finds_the_object_sound() -> None:
    need_tools("zstd")
    for content in CONTENTS.values():
        stored = compressed(content)
        subprocess.run(["zstd", "-tq"], input=stored, check=True, timeout=60)
        cut = subprocess.run(["zstd", "-tq"], input=stored[:-1], stderr=subprocess.DEVNULL, check=False, timeout=60)
        assert cut.returncode != 0


def skippable(kind: int, content: bytes) -> bytes:
    return bytes([0x50 | kind, 0x2A, 0x4D, 0x18]) + len(content).to_bytes(4, "little") + content


@pytest.mark.parametrize(
    "encode",
    [
        pytest.param(tool("zstd", "-cq"), id="zstd"),
        pytest.param(tool("zstd", "-9cq", "--no-check"), id="zstd --no-check"),
        pytest.param(tool("zstd", "-cq", "-T2", "--long=27"), id="zstd --long"),
        # A frame to be skipped stands before each of its frames, of four bytes: how many it has.
        pytest.param(tool("pzstd", "-cq", "-p2"), id="pzstd"),
        pytest.param(zstandard.compress, id="zstandard"),
        pytest.param(zstandard.ZstdCompressor(write_content_size=False, write_checksum=True).compress, id="like ours"),
    ],
)
def test_streams_of_others_are_read(encode: Callable[[bytes], bytes]) -> None:
    for content in (*CONTENTS.values(), text(9 << 20)):
        stored = encode(content)
        assert ours(stored) == content
        assert ours(stored + stored) == content + content
        assert ours(stored + compressed(content) + stored) == content * 3
        for kind in range(16):
            other = skippable(kind, b"1234") + skippable(kind, b"12345678")
            assert ours(other + stored + other) == content


def test_object_is_the_frame_of_libzstd_with_a_mark_and_a_seal() -> None:
    for content in CONTENTS.values():
        stored = compressed(content)
        frame, seal = stored[:-SEAL_SIZE], stored[-SEAL_SIZE:]
        assert frame[6:12] == bytes(6)
        assert seal == skippable(3, b"s3dl" + s3dlio.crc32c(frame).to_bytes(4, "little"))
        assert ours(frame[:6] + frame[12:]) == content
