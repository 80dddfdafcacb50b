"""Transfers that come back short, and calls that fail, on a FUSE file system made for it (shortfs.c)."""

from __future__ import annotations

import errno
import itertools
import os
import random
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from attempts import Outcome, is_loud, judge, store, store_at_once, tree
from harness import effort, new_seed
from shortfs import EVERY_TIME, HALF, OPS, ShortFs, build, mounted

import s3dlio

Figure = Callable[[str], None]


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("shortfs"))


@pytest.fixture
def fuse(program: Path, disk_path: Path, request: pytest.FixtureRequest) -> Iterator[ShortFs]:
    """Mounted in the mode that the test asks for by ``indirect``, else ``direct_io``."""
    with mounted(program, getattr(request, "param", "direct_io"), disk_path) as found:
        yield found


def is_harmless(op: str, nth: int, durability: str) -> bool:
    """Whether the writer may go on when this call fails."""
    # open: of a hidden name, to see whether it is abandoned.  release: after close(2), so that nobody hears of it.
    # flush: in close(2), which after a good fsync(2), or the close of a copy, has nothing to add.
    return op in ("open", "release") or (op == "flush" and (durability != "none" or nth > 1))


in_modes = pytest.mark.parametrize("fuse", ["direct_io", "cached"], indirect=True)

# Each so many-th write takes only so many bytes.  Behind O_DIRECT a transfer goes on from a multiple of 4096.
PATTERNS = [(1, HALF), (2, HALF), (1, 4096), (1, 5000), (2, 1), (3, 4097), (1, 65535), (5, 511), (1, 1)]
SIZES = [1, 4095, 4096, 4097, 65535, 65536, 65537, 131072, 200_001, 655_360, 700_003]
# A file system that takes a byte at a time must not take all night.
MAX_STEPS = 5000


@in_modes
def test_short_writes_store_the_right_bytes(fuse: ShortFs, figure: Figure) -> None:
    choose = random.Random(seed := new_seed())
    cases = list(itertools.product(PATTERNS, SIZES, ("file", "direct"), (None, "zstd")))
    choose.shuffle(cases)
    files = fired = refused = 0
    seen = set()
    for (every, limit), size, scheme, compression in cases[: effort(80, len(cases))]:
        if limit and size / limit > MAX_STEPS * every:
            continue
        data = choose.randbytes(size)
        old = choose.choice((None, b"old" * 1000))
        name = "a.zst" if compression else "a"
        uri = f"{scheme}://{fuse.mount}/{name}"
        if old is None:
            (fuse.behind / name).unlink(missing_ok=True)
        else:
            s3dlio.put(f"file://{fuse.behind}/{name}", old, compression=compression)
        before = tree(fuse.behind)
        fuse.reset()
        fuse.rule("write", every=every, limit=limit)
        options = {"compression": compression, "durability": choose.choice(("none", "full"))}
        if choose.random() < 0.2:
            outcome = store_at_once(uri, data, **options)
        else:
            outcome = store(uri, data, choose, **options)
            # io_uring stores shifted data here (engine.c).
            assert outcome.engine in ("threads", "pwrite")
        fuse.settle()
        assert judge(outcome, fuse.behind / name, old, data, fuse.behind, before) == "", (
            every,
            limit,
            size,
            scheme,
            seed,
        )
        if outcome.error is not None:
            # With O_DIRECT there is no progress in steps below the alignment; and behind the page cache the kernel
            # makes EIO of each short one that would have made the file longer.
            assert scheme == "direct"
            assert fuse.mode == "cached" or (every == 1 and limit < 4096)
            assert is_loud(outcome, (errno.EIO,))
            refused += 1
        files += 1
        fired += fuse.fired()
        seen.add((every, limit, scheme))
    assert fired > files - refused > 20
    figure(
        f"fuse {fuse.mode}: {files} files under {len(seen)} patterns of short writes, 0 differ; "
        f"{fired} writes short, {refused} files refused with EIO, seed {seed}"
    )


@pytest.mark.parametrize("fuse", ["direct_io", "cached", "writeback"], indirect=True)
def test_each_call_that_fails_is_told_and_spares_the_old_file(fuse: ShortFs, figure: Figure) -> None:
    seed = new_seed()
    injected = loud = 0
    for scheme, durability, old in itertools.product(("file", "direct"), ("none", "full"), (None, b"old" * 1000)):
        outcome, wrong = store_while_one_fails(fuse, scheme, durability, old, "write", 0, seed)
        assert (outcome.error, wrong) == (None, "")
        calls = {op: fuse.count(op) for op in OPS if op != "direct"}
        for op, most in calls.items():
            for nth in sorted(set(range(1, min(most, effort(3, 100)) + 1)) | {most} - {0}):
                outcome, wrong = store_while_one_fails(fuse, scheme, durability, old, op, nth, seed)
                what = (op, nth, most, scheme, durability, old is None, seed)
                assert wrong == "", what
                if fuse.fired() == 0:
                    continue  # the kernel makes as many writes as it thinks right
                injected += 1
                if outcome.error is None:
                    assert is_harmless(op, nth, durability), what
                else:
                    assert is_loud(outcome, (errno.EIO,)), what
                    loud += 1
    assert loud > 50
    figure(f"fuse {fuse.mode}: {injected} errors injected, {loud} loud, {injected - loud} without harm, seed {seed}")


def store_while_one_fails(
    fuse: ShortFs, scheme: str, durability: str, old: bytes | None, op: str, nth: int, seed: int
) -> tuple[Outcome, str]:
    """Without an old file there is no folder either: it is made, and taken back."""
    choose = random.Random(seed)
    data = choose.randbytes(300_000)
    shutil.rmtree(fuse.behind / "new", ignore_errors=True)
    place = fuse.behind / "new/deep/a"
    if old is not None:
        place.parent.mkdir(parents=True)
        place.write_bytes(old)
    before = tree(fuse.behind)
    fuse.reset()
    fuse.rule(op, nth=nth, error=errno.EIO)
    outcome = store(f"{scheme}://{fuse.mount}/new/deep/a", data, choose, durability=durability)
    fuse.settle()
    return outcome, judge(outcome, place, old, data, fuse.behind, before)


def test_failing_writes_are_told_with_their_own_error(fuse: ShortFs) -> None:
    (fuse.behind / "a").write_bytes(b"old")
    before = tree(fuse.behind)
    for number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.ENODEV, errno.ESTALE):
        fuse.reset()
        fuse.rule("write", nth=2, error=number)
        outcome = store(f"file://{fuse.mount}/a", bytes(300_000), random.Random(1))
        fuse.settle()
        assert is_loud(outcome, (number,))
        assert judge(outcome, fuse.behind / "a", b"old", b"", fuse.behind, before) == ""


@in_modes
def test_writes_refused_with_o_direct_go_through_the_page_cache(fuse: ShortFs) -> None:
    data = random.Random(1).randbytes(700_003)
    fuse.rule("direct", nth=EVERY_TIME, error=errno.EINVAL)
    before = tree(fuse.behind)
    outcome = store(f"direct://{fuse.mount}/a", data, random.Random(1))
    assert outcome.error is None
    assert not outcome.direct
    assert fuse.count("direct", "fired") > 0
    assert judge(outcome, fuse.behind / "a", None, data, fuse.behind, before) == ""
    assert s3dlio.get(f"direct://{fuse.mount}/a") == data
    required = store(f"direct://{fuse.mount}/b", data, random.Random(1), require_direct=True)
    assert isinstance(required.error, s3dlio.UnsupportedError)
    fuse.settle()
    assert tree(fuse.behind) == before | {fuse.behind / "a"}


@in_modes
def test_short_writes_of_a_large_file_store_the_right_bytes(fuse: ShortFs) -> None:
    # Blocks of 4 MiB take more than one request to the file system (1 MiB), of which each may come back short.  Beyond
    # 16 MiB the file goes on with O_DIRECT; from behind the page cache that would be EIO, as above.
    data = random.Random(1).randbytes(20_000_001)
    before = tree(fuse.behind)
    for buffer_size, limit in itertools.product((65536, 4 << 20), (HALF, 40_000, 65535)):
        fuse.reset()
        fuse.rule("write", every=3, limit=limit)
        direct = False if fuse.mode == "cached" else None
        uri = f"file://{fuse.mount}/a"
        outcome = store(uri, data, random.Random(1), buffer_size=buffer_size, direct=direct, durability="data")
        fuse.settle()
        assert outcome.error is None
        assert outcome.direct == (direct is None)
        assert fuse.fired() > 0
        assert judge(outcome, fuse.behind / "a", None, data, fuse.behind, before) == ""


def test_write_slower_than_the_deadline_fails_and_leaves_nothing(fuse: ShortFs) -> None:
    (fuse.behind / "a").write_bytes(b"old")
    before = tree(fuse.behind)
    fuse.rule("write", delay_ms=700)
    began = time.monotonic()
    outcome = store(f"file://{fuse.mount}/a", bytes(300_000), random.Random(1), timeout=0.2)
    assert is_loud(outcome, (errno.ETIMEDOUT,))
    assert isinstance(outcome.error, TimeoutError)
    # All five blocks may be in the kernel, which writes one after the other and lets go of none before.
    assert time.monotonic() - began < 60
    fuse.settle()
    assert judge(outcome, fuse.behind / "a", b"old", b"", fuse.behind, before) == ""


def test_write_within_the_deadline_succeeds_however_slow(fuse: ShortFs) -> None:
    data = random.Random(1).randbytes(500_000)
    fuse.rule("write", delay_ms=200)
    outcome = store(f"file://{fuse.mount}/a", data, random.Random(1), timeout=20.0)
    assert outcome.error is None
    assert (fuse.behind / "a").read_bytes() == data


@pytest.mark.parametrize("scheme", ["file", "direct"])
def test_short_reads_give_the_same_bytes(fuse: ShortFs, scheme: str, figure: Figure) -> None:
    choose = random.Random(seed := new_seed())
    ranges = fired = 0
    for size in SIZES:
        data = choose.randbytes(size)
        (fuse.behind / "a").write_bytes(data)
        s3dlio.put(f"file://{fuse.behind}/z.zst", data, compression="zstd")
        for every, limit in PATTERNS:
            if (scheme == "direct" and every == 1 and limit < 4096) or size > limit * MAX_STEPS * every > 0:
                continue
            fuse.reset()
            fuse.rule("read", every=every, limit=limit)
            uri = f"{scheme}://{fuse.mount}/a"
            assert s3dlio.get(uri) == data, (size, every, limit)
            start, length = choose.randrange(size), choose.randrange(size + 1)
            assert s3dlio.get_range(uri, start, length) == data[start : start + length], (size, every, limit, start)
            with s3dlio.open_reader(f"{scheme}://{fuse.mount}/z.zst", decompress=True) as reader:
                assert reader.read() == data, (size, every, limit)
            ranges += 3
            fired += fuse.fired()
    assert fired > ranges
    figure(
        f"fuse {scheme}: {ranges} reads under {len(PATTERNS)} patterns of short reads, 0 differ; "
        f"{fired} short, seed {seed}"
    )


@in_modes
@pytest.mark.parametrize("scheme", ["file", "direct"])
def test_read_that_fails_is_told(fuse: ShortFs, scheme: str) -> None:
    data = random.Random(1).randbytes(9_000_000)
    (fuse.behind / "a").write_bytes(data)
    uri = f"{scheme}://{fuse.mount}/a"
    for nth in (1, 2, 5):
        fuse.reset()
        fuse.rule("read", nth=-nth, error=errno.EIO)
        with pytest.raises(s3dlio.StorageError) as caught:
            s3dlio.get(uri)
        assert fuse.fired() > 0
        assert (caught.value.errno, caught.value.uri, caught.value.operation) == (errno.EIO, uri, "read")
        # One that fails once may come back short instead, and the rest is read again.
        fuse.reset()
        fuse.rule("read", nth=nth, error=errno.EIO)
        try:
            assert s3dlio.get(uri) == data
        except s3dlio.StorageError as error:
            assert error.errno == errno.EIO
        assert fuse.fired() == 1


# The planted faults: a judge that did not see these would prove nothing.


def test_writer_that_ignores_short_counts_is_seen_to_tear(fuse: ShortFs) -> None:
    fuse.rule("write", every=2, limit=HALF)
    before = tree(fuse.behind)
    fd = os.open(fuse.mount / "a", os.O_CREAT | os.O_WRONLY)
    for _ in range(4):
        os.write(fd, bytes(65536))
    os.close(fd)
    fuse.settle()
    assert fuse.fired() == 2
    assert judge(Outcome("", None, True), fuse.behind / "a", None, bytes(4 * 65536), fuse.behind, before) == "torn"


def test_writer_in_place_is_seen_to_tear(fuse: ShortFs) -> None:
    (fuse.behind / "a").write_bytes(b"old")
    before = tree(fuse.behind)
    fuse.rule("write", nth=2, error=errno.EIO)
    with pytest.raises(OSError, match="output error"), (fuse.mount / "a").open("wb", buffering=0) as file:
        for _ in range(4):
            file.write(bytes(65536))
    fuse.settle()
    outcome = Outcome(f"file://{fuse.mount}/a", OSError(errno.EIO, "I/O error"), False)
    assert judge(outcome, fuse.behind / "a", b"old", bytes(4 * 65536), fuse.behind, before) == "torn"
    assert not is_loud(outcome, (errno.EIO,))


def test_name_that_is_left_is_seen(fuse: ShortFs) -> None:
    before = tree(fuse.behind)
    # The write fails, and then the hidden name cannot be removed.
    fuse.rule("write", nth=1, error=errno.EIO)
    fuse.rule("unlink", nth=1, error=errno.EIO)
    outcome = store(f"file://{fuse.mount}/a", bytes(300_000), random.Random(1))
    fuse.settle()
    assert is_loud(outcome, (errno.EIO,))
    assert judge(outcome, fuse.behind / "a", None, b"", fuse.behind, before) == "left"
    # The next writer of the name takes it away.
    fuse.reset()
    s3dlio.put(f"file://{fuse.mount}/a", b"new")
    fuse.settle()
    assert os.listdir(fuse.behind) == ["a"]
