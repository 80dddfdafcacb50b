"""Files of any length from memory at any address, on each file system: what is read back is what was written, and what
is said of O_DIRECT is so."""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import random
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from harness import effort, flags_of_open_files, new_seed
from mounts import mounted

import s3dlio

KINDS = ("ext4", "xfs", "btrfs", "tmpfs", "overlay")
ENGINES = ("uring", "threads", "")  # without a choice, a file of less than a block is written by one call
BLOCK = 64 << 10
SIZES = [0, 1, 511, 512, 513, 4095, 4096, 4097]
SIZES += [blocks * BLOCK + more for blocks in (1, 5) for more in (-1, 0, 1, 512, 4097)]
POOL = random.Random("alignment").randbytes(16 << 20)


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Path]]:
    """A folder on each file system."""
    with contextlib.ExitStack() as stack:
        yield {kind: stack.enter_context(mounted(kind, 96, tmp_path_factory.mktemp(kind))) for kind in KINDS}


def odd_memory(size: int, shift: int) -> memoryview:
    """Writable memory that begins ``shift`` bytes after a page."""
    return memoryview(mmap.mmap(-1, size + shift + mmap.PAGESIZE))[shift : shift + size]


def write(writer: Any, data: memoryview, chunk: int) -> None:
    for start in range(0, len(data), chunk):
        writer.write_chunk(data[start : start + chunk])


def read_odd_ranges(uri: str, data: memoryview, choose: random.Random, ranges: int) -> int:
    """Reads ranges into memory with guards around it.  Returns how many are not as they should be."""
    wrong = 0
    with s3dlio.open_reader(uri, buffer_size=1) as reader:
        for _ in range(ranges):
            start = choose.randrange(len(data) + 1)
            size = choose.choice((1, 511, 512, 4096, 4097, len(data)))
            shift = choose.choice((0, 1, 511, 512, 4095))
            memory = odd_memory(size + 128, shift)
            memory[:] = b"\xaa" * len(memory)
            reader.seek(start)
            count = reader.readinto(memory[64 : 64 + size])
            there = data[start : start + size]
            wrong += memory[: 64 + count] != b"\xaa" * 64 + bytes(there)
            wrong += memory[64 + count :] != b"\xaa" * (len(memory) - 64 - count)
    return wrong


def resident_pages(path: Path) -> int:
    """How many pages of a file the page cache holds, by mincore(2)."""
    size = path.stat().st_size
    libc = ctypes.CDLL(None, use_errno=True)
    with path.open("r+b") as file, mmap.mmap(file.fileno(), size) as pages:
        held = (ctypes.c_ubyte * -(-size // mmap.PAGESIZE))()
        address = ctypes.c_char.from_buffer(pages)
        result = libc.mincore(ctypes.c_void_p(ctypes.addressof(address)), ctypes.c_size_t(size), held)
        del address
        assert result == 0, os.strerror(ctypes.get_errno())
    return sum(one & 1 for one in held)


def check_file(writer: Any, folder: Path, data: memoryview, chunk: int, count: Counter[str]) -> None:
    """Writes ``data`` to the file 'a', and counts what is not as it should be."""
    with writer:
        write(writer, data, chunk)
        (flags,) = flags_of_open_files(folder)
    stats = writer.stats()
    count["files"] += 1
    count["differ"] += (folder / "a").read_bytes() != data
    count["wrong checksums"] += stats.crc32c != s3dlio.crc32c(data)
    count["wrong about O_DIRECT"] += stats.direct != bool(flags & os.O_DIRECT)
    count["without a reason"] += stats.direct == (stats.direct_reason is not None)


@pytest.mark.timeout(effort(300, 3600))
def test_files_of_any_length_from_any_memory_are_exact_everywhere(
    places: dict[str, Path], monkeypatch: pytest.MonkeyPatch, figure: Callable[[str], None]
) -> None:
    seed = new_seed()
    choose = random.Random(seed)
    count: Counter[str] = Counter()
    for kind, folder in places.items():
        for engine in ENGINES:
            monkeypatch.setenv("S3DLIO_IO_ENGINE", engine)
            for size in SIZES * effort(2, 40):
                data = odd_memory(size, choose.choice((0, 1, 8, 511, 512, 513, 4095)))
                start = choose.randrange(len(POOL) - size)
                data[:] = POOL[start : start + size]
                uri = f"direct://{folder}/a"
                durability = choose.choice(("full", "data", "none", "none", "none"))
                writer = s3dlio.open_writer(uri, buffer_size=BLOCK, durability=durability)
                check_file(writer, folder, data, choose.choice((size + 1, 7777, 4096, 65537, 1 + size // 3)), count)
                # What an overlay does depends on what lies below.
                assert kind == "overlay" or writer.stats().direct == (kind != "tmpfs")
                if engine:
                    assert writer.stats().io_engine == {"uring": "io_uring", "threads": "threads"}[engine]
                count["ranges differ"] += read_odd_ranges(uri, data, choose, 5)
        assert set(os.listdir(folder)) - {"lost+found"} == {"a"}
    bad = ("differ", "wrong checksums", "wrong about O_DIRECT", "without a reason", "ranges differ")
    figure(
        f"alignment: {' '.join(places)}, {count['files']} files, {', '.join(f'{count[name]} {name}' for name in bad)}, "
        f"seed {seed}"
    )
    assert not any(count[name] for name in bad)


class Padded:
    """A planted fault: pads the last block without cutting the file, and says that it is direct."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("wb")

    def write_chunk(self, chunk: memoryview) -> None:
        self._file.write(chunk)

    def stats(self) -> SimpleNamespace:
        return SimpleNamespace(crc32c=0, direct=True, direct_reason="none")

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        self._file.write(bytes(-self._file.tell() % 4096))
        self._file.close()


def test_writer_that_pads_and_is_not_direct_is_seen(places: dict[str, Path]) -> None:
    count: Counter[str] = Counter()
    for size in (4096, 4097):
        data = memoryview(POOL)[:size]
        check_file(Padded(places["ext4"] / "a"), places["ext4"], data, 1000, count)
    assert count == {
        "files": 2,
        "differ": 1,
        "wrong checksums": 2,
        "wrong about O_DIRECT": 2,
        "without a reason": 2,
    }
    assert read_odd_ranges(f"direct://{places['ext4']}/a", memoryview(POOL)[1:4098], random.Random(1), 5) > 0


@pytest.mark.parametrize("engine", ENGINES[:2])
def test_long_files_that_leave_the_page_cache_are_exact_everywhere(
    places: dict[str, Path], monkeypatch: pytest.MonkeyPatch, engine: str
) -> None:
    monkeypatch.setenv("S3DLIO_IO_ENGINE", engine)
    longest = 16 << 20  # that stays there
    count: Counter[str] = Counter()
    for kind, folder in places.items():
        for size in (longest, longest + BLOCK + 1, longest + 2 * BLOCK + 4095):
            data = odd_memory(size, 511)
            data[:] = (POOL * 2)[:size]
            writer = s3dlio.open_writer(f"file://{folder}/a", buffer_size=BLOCK, durability="data")
            check_file(writer, folder, data, 777_777, count)
            assert writer.stats().direct == (size > longest and kind != "tmpfs")
    assert count["files"] == 3 * len(places)
    assert not count["differ"] + count["wrong checksums"] + count["wrong about O_DIRECT"]


@pytest.mark.parametrize("engine", ENGINES[:2])
def test_large_reads_of_any_range_into_any_memory_are_exact_everywhere(
    places: dict[str, Path], monkeypatch: pytest.MonkeyPatch, engine: str
) -> None:
    monkeypatch.setenv("S3DLIO_IO_ENGINE", engine)
    choose = random.Random(engine)
    # More than the 4 MiB that a reader asks for at once.
    data = memoryview(POOL)[: (9 << 20) + 4097]
    for kind, folder in places.items():
        s3dlio.put(f"file://{folder}/a", data, durability="none")
        for scheme in ("direct", "file"):
            assert not read_odd_ranges(f"{scheme}://{folder}/a", data, choose, 8), f"{kind} {scheme}"
            assert s3dlio.get(f"{scheme}://{folder}/a") == data


def test_compressed_files_of_odd_lengths_are_exact_everywhere(places: dict[str, Path]) -> None:
    for kind, folder in places.items():
        for size in (0, 1, 4096, 3 * BLOCK + 1):
            uri = f"direct://{folder}/a.zst"
            with s3dlio.open_writer(uri, compression="zstd", buffer_size=BLOCK, durability="none") as writer:
                write(writer, memoryview(POOL)[7 : 7 + size], 7777)
            assert (folder / "a.zst").stat().st_size == writer.compressed_bytes()
            with s3dlio.open_reader(uri, decompress=True) as reader:
                assert reader.read() == POOL[7 : 7 + size], f"{kind} {size}"


def test_what_is_said_of_o_direct_is_so(places: dict[str, Path]) -> None:
    """By what the page cache holds afterwards: nothing, but for a last page that ftruncate(2) may have to touch."""
    data = POOL[: 20 * BLOCK + 5]
    pages = len(data) // mmap.PAGESIZE
    for kind, folder in places.items():
        for scheme in ("direct", "file"):
            with s3dlio.open_writer(f"{scheme}://{folder}/a", buffer_size=BLOCK) as writer:
                writer.write_chunk(data)
            held = resident_pages(folder / "a")
            if writer.stats().direct:
                assert held <= 1, kind
            else:
                # Under pressure the kernel may have taken some already.
                assert held > pages / 2, f"{kind} {scheme}"


def test_required_o_direct_is_refused_where_it_is_not_to_be_had(places: dict[str, Path]) -> None:
    for kind in ("ext4", "xfs", "btrfs"):
        with s3dlio.open_writer(f"file://{places[kind]}/a", require_direct=True) as writer:
            writer.write_chunk(b"x")
        assert writer.stats().direct
    with pytest.raises(s3dlio.UnsupportedError, match="O_DIRECT was required"):
        s3dlio.open_writer(f"file://{places['tmpfs']}/a", require_direct=True)
