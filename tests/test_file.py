"""What is particular to files: O_DIRECT, engines, modes, links, failures of the system."""

from __future__ import annotations

import os
import re
import resource
import stat
import struct
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from harness import flags_of_open_files
from mounts import mounted

import s3dlio

BLOCK = 64 << 10
TESTS = str(Path(__file__).parent)
Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.mark.parametrize("engine", ["uring", "threads"])
@pytest.mark.parametrize("scheme", ["direct", "file"])
def test_direct_writer_really_uses_o_direct(
    disk_path: Path, monkeypatch: pytest.MonkeyPatch, scheme: str, engine: str
) -> None:
    monkeypatch.setenv("S3DLIO_IO_ENGINE", engine)
    with s3dlio.open_writer(f"{scheme}://{disk_path}/a", buffer_size=BLOCK) as writer:
        writer.write_chunk(bytes(5 * BLOCK + 1))
        (flags,) = flags_of_open_files(disk_path)
        assert bool(flags & os.O_DIRECT) == (scheme == "direct")
    assert writer.stats().direct == (scheme == "direct")
    assert (disk_path / "a").stat().st_size == 5 * BLOCK + 1


def test_direct_reader_really_uses_o_direct(disk_path: Path) -> None:
    (disk_path / "a").write_bytes(b"x" * 10_000)
    with s3dlio.open_reader(f"direct://{disk_path}/a") as reader:
        (flags,) = flags_of_open_files(disk_path)
        assert flags & os.O_DIRECT
        assert reader.read() == b"x" * 10_000
    with s3dlio.open_reader(f"file://{disk_path}/a"):
        (flags,) = flags_of_open_files(disk_path)
        assert not flags & os.O_DIRECT


def test_create_functions_choose_the_path(disk_path: Path) -> None:
    for uri in (f"file://{disk_path}/a", f"direct://{disk_path}/a", f"file://localhost{disk_path}/a"):
        with s3dlio.create_direct_filesystem_writer(uri) as writer:
            writer.write_chunk(b"abc")
        assert writer.stats().direct
    with s3dlio.create_filesystem_writer(f"file://{disk_path}/b") as writer:
        writer.write_chunk(b"abc")
    assert not writer.stats().direct
    options = s3dlio.PyWriterOptions().with_direct()
    with s3dlio.create_filesystem_writer(f"file://{disk_path}/b", options) as writer:
        writer.write_chunk(b"abc")
    assert writer.stats().direct
    for uri in (f"direct://{disk_path}/a", "memory://a/b"):
        with pytest.raises(s3dlio.InvalidInputError, match=re.escape(repr(uri))):
            s3dlio.create_filesystem_writer(uri)


def test_tmpfs_falls_back_and_says_why(memory_path: Path) -> None:
    with s3dlio.open_writer(f"direct://{memory_path}/a", buffer_size=BLOCK) as writer:
        writer.write_chunk(bytes(5 * BLOCK + 1))
        (flags,) = flags_of_open_files(memory_path)
        assert not flags & os.O_DIRECT
    assert not writer.stats().direct
    assert writer.stats().direct_reason == "Operation not supported"
    assert s3dlio.get(f"direct://{memory_path}/a") == bytes(5 * BLOCK + 1)


def test_required_direct_is_an_error_where_it_is_not_to_be_had(memory_path: Path) -> None:
    with pytest.raises(s3dlio.UnsupportedError, match="O_DIRECT was required"):
        s3dlio.open_writer(f"direct://{memory_path}/a", require_direct=True)
    assert list(memory_path.iterdir()) == []


FORBID = """
import sys
from forbid import forbid_uring
forbid_uring(int(sys.argv[2]))
import s3dlio
with s3dlio.open_writer(sys.argv[1], buffer_size=65536) as writer:
    writer.write_chunk(bytes(1_000_001))
assert s3dlio.get(sys.argv[1]) == bytes(1_000_001)
print(writer.stats().io_engine, writer.stats().direct)
"""


@pytest.mark.parametrize("number", [1, 38], ids=["EPERM", "ENOSYS"])
def test_forbidden_io_uring_falls_back_to_threads(disk_path: Path, run_python: Run, number: int) -> None:
    done = run_python(FORBID, f"direct://{disk_path}/a", str(number), PYTHONPATH=TESTS)
    assert done.stdout.split() == ["threads", "True"]


def test_forced_io_uring_that_is_forbidden_is_an_error(disk_path: Path, run_python: Run) -> None:
    done = run_python(FORBID, f"direct://{disk_path}/a", "1", check=False, S3DLIO_IO_ENGINE="uring", PYTHONPATH=TESTS)
    assert "PermissionDeniedError: open direct://" in done.stderr
    assert list(disk_path.iterdir()) == []


def test_unknown_engine_is_refused(disk_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("S3DLIO_IO_ENGINE", "magic")
    with pytest.raises(s3dlio.InvalidInputError, match="'uring' or 'threads'"):
        s3dlio.open_writer(f"file://{disk_path}/a")


@pytest.mark.parametrize("scheme", ["file", "direct"])
def test_range_of_a_file_into_odd_memory_is_exact(disk_path: Path, scheme: str) -> None:
    data = np.random.default_rng(1).integers(0, 256, 9_000_001, dtype=np.uint8)
    (disk_path / "a").write_bytes(data.tobytes())
    with s3dlio.open_reader(f"{scheme}://{disk_path}/a", buffer_size=1) as reader:
        for offset in (0, 1, 4095, 4096, 5000, 4_194_303, 4_194_304, 8_999_999):
            for size in (1, 4096, 4097, 100_000, 5_000_000):
                for shift in (0, 1, 512):
                    memory = np.full(size + 2048, 0xAA, dtype=np.uint8)
                    reader.seek(offset)
                    count = reader.readinto(memoryview(memory)[1024 + shift : 1024 + shift + size])
                    assert count == min(size, len(data) - offset)
                    assert np.array_equal(memory[1024 + shift :][:count], data[offset : offset + count])
                    assert (memory[: 1024 + shift] == 0xAA).all()
                    assert (memory[1024 + shift + count :] == 0xAA).all()


def test_new_file_gets_the_mode_of_the_umask(disk_path: Path) -> None:
    before = os.umask(0o027)
    try:
        s3dlio.put(f"file://{disk_path}/a", b"x")
    finally:
        os.umask(before)
    assert stat.S_IMODE((disk_path / "a").stat().st_mode) == 0o640


def test_replaced_file_keeps_its_mode(disk_path: Path) -> None:
    (disk_path / "a").write_bytes(b"old")
    (disk_path / "a").chmod(0o751)
    s3dlio.put(f"file://{disk_path}/a", b"new")
    assert stat.S_IMODE((disk_path / "a").stat().st_mode) == 0o751
    assert (disk_path / "a").read_bytes() == b"new"


def test_link_is_followed_and_stays(disk_path: Path) -> None:
    (disk_path / "real").mkdir()
    (disk_path / "real/a").write_bytes(b"old")
    (disk_path / "link").symlink_to("real/a")
    (disk_path / "dangling").symlink_to(disk_path / "real/new")
    s3dlio.put(f"file://{disk_path}/link", b"through the link")
    s3dlio.put(f"file://{disk_path}/dangling", b"to a new file")
    assert (disk_path / "link").is_symlink()
    assert (disk_path / "real/a").read_bytes() == b"through the link"
    assert (disk_path / "real/new").read_bytes() == b"to a new file"


def test_odd_names_are_stored_and_listed(disk_path: Path) -> None:
    names = [b"a b", b"100%", b"q?#", b"\xff\xfe", "ä€".encode(), b"-", b"x" * 255, b"n\nl", b".hidden"]
    for name in names:
        uri = f"file://{disk_path}/" + "".join(f"%{byte:02X}" for byte in name)
        s3dlio.put(uri, name)
        s3dlio.put(uri, name * 2)
        assert s3dlio.get(uri) == name * 2
    assert sorted(os.listdir(os.fsencode(disk_path))) == sorted(names)
    assert [s3dlio.get(uri) for uri in s3dlio.list(f"file://{disk_path}")] == [name * 2 for name in sorted(names)]


def refusals(folder: Path) -> dict[str, tuple[str, type[Exception]]]:
    (folder / "folder").mkdir()
    (folder / "file").write_bytes(b"x")
    os.mkfifo(folder / "pipe")
    (folder / "loop").symlink_to("loop")
    return {
        "folder": ("folder", IsADirectoryError),
        "slash": ("new/", IsADirectoryError),
        "dots": ("folder/..", IsADirectoryError),
        "pipe": ("pipe", IsADirectoryError),
        "below a file": ("file/a", OSError),
        "long": ("x" * 256, OSError),
        "loop": ("loop", OSError),
    }


@pytest.mark.parametrize("kind", ["folder", "slash", "dots", "pipe", "below a file", "long", "loop"])
def test_place_where_no_file_can_be_is_refused_with_its_uri(disk_path: Path, kind: str) -> None:
    name, error = refusals(disk_path)[kind]
    before = sorted(disk_path.rglob("*"))
    uri = f"file://{disk_path}/{name}"
    with pytest.raises(s3dlio.S3dlioError) as caught:
        s3dlio.put(uri, b"x")
    assert isinstance(caught.value, error)
    assert uri in str(caught.value)
    assert sorted(disk_path.rglob("*")) == before


def test_missing_folder_is_refused_when_asked(disk_path: Path) -> None:
    with pytest.raises(s3dlio.NotFoundError, match="new/a"):
        s3dlio.put(f"file://{disk_path}/new/a", b"x", create_parents=False)
    assert list(disk_path.iterdir()) == []


def test_long_file_that_is_to_last_goes_on_with_direct_unless_forbidden(disk_path: Path) -> None:
    chunk = os.urandom(1 << 20)
    for settings, long_is_direct in (
        ({}, True),
        ({"durability": "data"}, True),
        ({"durability": "none"}, False),
        ({"direct": False}, False),
    ):
        for count, expected in ((15, False), (25, long_is_direct)):
            with s3dlio.open_writer(f"file://{disk_path}/a", **settings) as writer:
                for _ in range(count):
                    writer.write_chunk(chunk)
                writer.write_chunk(b"end")
            assert writer.stats().direct is expected
            assert (disk_path / "a").read_bytes() == chunk * count + b"end"


def test_folder_of_somebody_else_is_a_permission_error(run_as_nobody: Run) -> None:
    code = """
try:
    s3dlio.put(sys.argv[1], b"x")
except PermissionError as error:
    print(type(error).__name__, error.errno, error)
"""
    uri = "file:///etc/s3dlio-test"
    done = run_as_nobody(code, uri)
    assert done.stdout == f"PermissionDeniedError 13 put {uri}: Permission denied\n"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """An ext4 of 24 MiB."""
    with mounted("ext4", 24, tmp_path) as place:
        yield place


@pytest.mark.parametrize("engine", ["uring", "threads"])
@pytest.mark.parametrize("scheme", ["file", "direct"])
def test_full_disk_is_the_first_error_and_sticks(
    small_disk: Path, monkeypatch: pytest.MonkeyPatch, scheme: str, engine: str
) -> None:
    monkeypatch.setenv("S3DLIO_IO_ENGINE", engine)
    uri = f"{scheme}://{small_disk}/a"
    s3dlio.put(uri, b"old")
    free = os.statvfs(small_disk).f_bfree
    writer = s3dlio.open_writer(uri, buffer_size=1 << 20)
    with pytest.raises(OSError, match="No space left") as first:
        for _ in range(64):
            writer.write_chunk(bytes(1 << 20))
        writer.finalize()
    assert isinstance(first.value, s3dlio.StorageError)
    for again in (lambda: writer.write_chunk(b"x"), writer.finalize):
        with pytest.raises(OSError, match="No space left") as caught:
            again()
        assert str(caught.value) == str(first.value)
    writer.abort()
    assert s3dlio.get(uri) == b"old"
    assert sorted(os.listdir(small_disk)) == ["a", "lost+found"]
    assert abs(os.statvfs(small_disk).f_bfree - free) < 10


def test_file_size_limit_is_an_error_and_leaves_nothing(disk_path: Path, run_python: Run) -> None:
    code = """
import resource, signal, sys
import s3dlio
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
writer = s3dlio.open_writer(sys.argv[1], buffer_size=65536)
try:
    writer.write_chunk(bytes(4 << 20))
    writer.finalize()
except OSError as error:
    print(error.errno)
writer.abort()
"""
    for scheme in ("file", "direct"):
        for engine in ("uring", "threads"):
            done = run_python(code, f"{scheme}://{disk_path}/a", S3DLIO_IO_ENGINE=engine)
            assert done.stdout == "27\n"
            assert list(disk_path.iterdir()) == []


def test_file_that_shrinks_under_a_reader_is_an_error_not_short_data(disk_path: Path) -> None:
    (disk_path / "a").write_bytes(bytes(3_000_000))
    reader = s3dlio.open_reader(f"file://{disk_path}/a", buffer_size=1000)
    os.truncate(disk_path / "a", 1_000_000)
    with reader, pytest.raises(s3dlio.CorruptDataError):
        reader.read(3_000_000)


def test_memory_does_not_grow_with_the_object(disk_path: Path, run_python: Run) -> None:
    code = """
import resource, sys
import s3dlio
chunk = bytes(8 << 20)
def write(count):
    with s3dlio.open_writer(sys.argv[1], durability="none") as writer:
        for _ in range(count):
            writer.write_chunk(chunk)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
short, long = write(8), write(100)
print(short, long)
"""
    short, long = map(int, run_python(code, f"direct://{disk_path}/a").stdout.split())
    assert long - short < 8 << 10


def test_limits_on_files_do_not_linger(disk_path: Path) -> None:
    """Two hundred writers open at once, each with its ring and its blocks, then all gone again."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 4096), hard))
    try:
        writers = [s3dlio.open_writer(f"file://{disk_path}/{n}", buffer_size=BLOCK, in_flight=1) for n in range(200)]
        for writer in writers:
            writer.write_chunk(bytes(3 * BLOCK))
        for writer in writers:
            writer.finalize()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert len(s3dlio.list(f"file://{disk_path}")) == 200


@pytest.mark.parametrize("name", [".a.s3dlio-0", ".x.y.s3dlio-42"])
def test_name_of_a_file_in_the_making_is_refused(disk_path: Path, name: str) -> None:
    # The next writer of the other name took such an object for abandoned, and removed it.
    with pytest.raises(s3dlio.InvalidInputError, match="kept for files in the making"):
        s3dlio.put(f"file://{disk_path}/{name}", b"x")
    for allowed in (".a.s3dlio-100", "a.s3dlio-0", ".s3dlio-0", ".a.s3dlio-"):
        s3dlio.put(f"file://{disk_path}/{allowed}", b"x")
    assert len(s3dlio.list(f"file://{disk_path}")) == 4


def test_replaced_file_keeps_its_acl(disk_path: Path) -> None:
    # With an ACL the group bits of the mode are the bound of all entries; as plain bits they opened the file to the
    # group.  Entries as in acl(5): version 2, then (tag, permissions, id).
    entries = [(0x01, 6, -1), (0x02, 6, 12345), (0x04, 0, -1), (0x10, 6, -1), (0x20, 0, -1)]
    acl = struct.pack("<I", 2) + b"".join(struct.pack("<HHi", *entry) for entry in entries)
    (disk_path / "a").write_bytes(b"old")
    try:
        os.setxattr(disk_path / "a", "system.posix_acl_access", acl)
    except OSError:
        pytest.skip("this file system has no ACLs")
    s3dlio.put(f"file://{disk_path}/a", b"new")
    assert os.getxattr(disk_path / "a", "system.posix_acl_access") == acl
    assert (disk_path / "a").read_bytes() == b"new"


def test_what_others_planted_in_a_shared_folder_is_refused(disk_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root to make files of somebody else")
    shared = disk_path / "shared"
    shared.mkdir()
    shared.chmod(0o1777)
    (disk_path / "precious").write_bytes(b"precious")
    (shared / "link").symlink_to(disk_path / "precious")
    (shared / "file").write_bytes(b"planted")
    for name in ("link", "file"):
        os.chown(shared / name, 12345, 12345, follow_symlinks=False)
        with pytest.raises(PermissionError):
            s3dlio.put(f"file://{shared}/{name}", b"secret")
    assert (disk_path / "precious").read_bytes() == b"precious"
    assert (shared / "file").read_bytes() == b"planted"
    (shared / "own").write_bytes(b"own")
    s3dlio.put(f"file://{shared}/own", b"new")


def test_name_that_is_too_long_is_refused_before_anything_is_written(disk_path: Path) -> None:
    for name in ("new/deep/" + "x" * 256, "new/" + "x" * 256 + "/a"):
        with pytest.raises(OSError, match="File name too long"):
            s3dlio.open_writer(f"file://{disk_path}/{name}")
    assert list(disk_path.iterdir()) == []


def test_new_folders_are_removed_when_the_file_cannot_be_put_in_place(disk_path: Path) -> None:
    writer = s3dlio.open_writer(f"file://{disk_path}/new/deep/a")
    writer.write_chunk(b"x")
    (disk_path / "new/deep/a").mkdir(parents=True)
    (disk_path / "new/deep/a/in the way").mkdir()
    with pytest.raises(OSError, match="directory"):
        writer.finalize()
    assert not writer.stats().visible
    assert [path.name for path in sorted(disk_path.rglob("*"))] == ["new", "deep", "a", "in the way"]


def test_compression_does_not_make_an_object_of_a_folder(disk_path: Path) -> None:
    (disk_path / "folder").mkdir()
    for name in ("folder/", "folder/..", "folder/."):
        with pytest.raises(s3dlio.NotAnObjectError):
            s3dlio.put(f"file://{disk_path}/{name}", b"x", compression="zstd")
    assert sorted(path.name for path in disk_path.rglob("*")) == ["folder"]


def test_one_writer_leaves_a_small_disk_to_the_others(small_disk: Path) -> None:
    # Each direct writer reserved 256 MiB ahead, and so the next one found no space where there was plenty.
    first = s3dlio.open_writer(f"direct://{small_disk}/a", buffer_size=BLOCK)
    first.write_chunk(bytes(3 << 20))
    s3dlio.put(f"direct://{small_disk}/b", bytes(12 << 20), buffer_size=BLOCK)
    first.finalize()
    assert s3dlio.stat(f"direct://{small_disk}/b")["size"] == 12 << 20


@pytest.mark.parametrize("path", ["/proc/cpuinfo", "/proc/self/status"])
def test_file_with_content_but_no_size_is_refused(path: str) -> None:
    # It was taken for an empty one.
    with pytest.raises(s3dlio.NotAnObjectError):
        s3dlio.get(f"file://{path}")
