"""What is particular to files: O_DIRECT, engines, modes, links, failures of the system."""

from __future__ import annotations

import os
import re
import resource
import shutil
import signal
import stat
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

import s3dlio

BLOCK = 64 << 10
Run = Callable[..., subprocess.CompletedProcess[str]]


def flags_of_open_files(folder: Path) -> list[int]:
    """The open(2) flags of this process's files in a folder, also of files without a name, as the kernel tells them."""
    flags = []
    for entry in Path("/proc/self/fd").iterdir():
        try:
            if not os.readlink(entry).startswith(str(folder)) or entry.is_dir():
                continue
            text = (Path("/proc/self/fdinfo") / entry.name).read_text()
        except OSError:
            continue
        flags.append(int(re.search(r"flags:\s+(\d+)", text)[1], 8))  # type: ignore[index]
    return flags


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
import ctypes, struct, sys
# A seccomp filter (seccomp(2)): system calls 425 to 427, io_uring's, fail with the given errno.
number = int(sys.argv[2])
program = b"".join(struct.pack("HBBI", *line) for line in [
    (0x20, 0, 0, 0), (0x35, 0, 2, 425), (0x25, 1, 0, 427), (0x06, 0, 0, 0x00050000 | number), (0x06, 0, 0, 0x7fff0000)])
buffer = ctypes.create_string_buffer(program, len(program))
filter = struct.pack("HxxxxxxP", 5, ctypes.addressof(buffer))
libc = ctypes.CDLL(None, use_errno=True)
assert libc.prctl(38, 1, 0, 0, 0) == 0
assert libc.prctl(22, 2, filter, 0, 0) == 0, ctypes.get_errno()
assert libc.syscall(425, 1, 0) == -1 and ctypes.get_errno() == number
import s3dlio
with s3dlio.open_writer(sys.argv[1], buffer_size=65536) as writer:
    writer.write_chunk(bytes(1_000_001))
assert s3dlio.get(sys.argv[1]) == bytes(1_000_001)
print(writer.stats().io_engine, writer.stats().direct)
"""


@pytest.mark.parametrize("number", [1, 38], ids=["EPERM", "ENOSYS"])
def test_forbidden_io_uring_falls_back_to_threads(disk_path: Path, run_python: Run, number: int) -> None:
    done = run_python(FORBID, f"direct://{disk_path}/a", str(number))
    assert done.stdout.split() == ["threads", "True"]


def test_forced_io_uring_that_is_forbidden_is_an_error(disk_path: Path, run_python: Run) -> None:
    done = run_python(FORBID, f"direct://{disk_path}/a", "1", check=False, S3DLIO_IO_ENGINE="uring")
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


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become somebody else")
def test_folder_of_somebody_else_is_a_permission_error(run_python: Run, tmp_path: Path) -> None:
    code = """
import os, sys
import s3dlio
s3dlio.exists(sys.argv[1])  # while the modules can still be read
os.setresuid(65534, 65534, 65534)
try:
    s3dlio.put(sys.argv[1], b"x")
except PermissionError as error:
    print(type(error).__name__, error.errno, error)
"""
    uri = "file:///etc/s3dlio-test"
    done = run_python(code, uri)
    assert done.stdout == f"PermissionDeniedError 13 open {uri}: Permission denied\n"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """An ext4 of 24 MiB."""
    image, mounted = tmp_path / "small.img", tmp_path / "small"
    mounted.mkdir()
    if os.geteuid() != 0 or not shutil.which("mkfs.ext4"):
        pytest.skip("needs root and mkfs.ext4 to mount a small disk")
    with image.open("wb") as file:
        file.truncate(24 << 20)
    subprocess.run(["mkfs.ext4", "-q", "-F", "-m", "0", image], check=True, timeout=30)
    if subprocess.run(["mount", "-o", "loop", image, mounted], timeout=30, check=False).returncode != 0:
        pytest.skip("this machine has no loop device to mount a small disk")
    try:
        yield mounted
    finally:
        subprocess.run(["umount", mounted], check=True, timeout=30)


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


def test_ctrl_c_ends_a_long_write_and_nothing_appears(disk_path: Path) -> None:
    chunk = bytes(256 << 20)
    timer = threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT))
    writer = s3dlio.open_writer(f"file://{disk_path}/a", compression="zstd", level=19)
    with pytest.raises(KeyboardInterrupt), writer:
        timer.start()
        began = time.monotonic()
        writer.write_chunk(os.urandom(1 << 20) * 100 + chunk)
    timer.join()
    assert time.monotonic() - began < 5
    assert list(disk_path.iterdir()) == []


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


def test_list_passes_over_links_to_folders_and_hidden_names(disk_path: Path) -> None:
    (disk_path / "folder").mkdir()
    (disk_path / "folder/back").symlink_to(disk_path)
    (disk_path / "folder/a").write_bytes(b"x")
    (disk_path / "folder/link").symlink_to("a")
    (disk_path / "folder/.a.s3dlio-0").write_bytes(b"left behind")
    (disk_path / "folder/dangling").symlink_to("nothing")
    os.mkfifo(disk_path / "folder/pipe")
    found = s3dlio.list(f"file://{disk_path}")
    assert found == [f"file://{disk_path}/folder/a", f"file://{disk_path}/folder/link"]


def test_folder_that_cannot_be_read_is_an_error_not_an_empty_list(disk_path: Path, run_python: Run) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root to become somebody else")
    (disk_path / "folder").mkdir(mode=0o700)
    (disk_path / "folder/a").write_bytes(b"x")
    for parent in (disk_path, *disk_path.parents):
        if parent.stat().st_uid == 0 and parent != Path("/"):
            parent.chmod(parent.stat().st_mode | 0o055)
    code = """
import os, sys
import s3dlio
s3dlio.exists(sys.argv[1])
os.setresuid(65534, 65534, 65534)
try:
    print(s3dlio.list(sys.argv[1]))
except PermissionError as error:
    print(error)
"""
    uri = f"file://{disk_path}"
    assert run_python(code, uri).stdout == f"list {uri}: Permission denied\n"


def test_delete_of_a_folder_is_refused(disk_path: Path) -> None:
    (disk_path / "folder").mkdir()
    with pytest.raises(IsADirectoryError, match="recursive=True"):
        s3dlio.delete(f"file://{disk_path}/folder")
    assert (disk_path / "folder").is_dir()


def test_delete_of_a_link_leaves_what_it_names(disk_path: Path) -> None:
    (disk_path / "folder").mkdir()
    (disk_path / "folder/a").write_bytes(b"x")
    (disk_path / "link").symlink_to("folder")
    s3dlio.delete(f"file://{disk_path}/link", recursive=True)
    assert not (disk_path / "link").is_symlink()
    assert (disk_path / "folder/a").exists()


@pytest.mark.parametrize("path", ["/", "//", "/tmp/..", "/proc", "/dev/shm/../shm/", "/./"])
def test_delete_of_the_root_of_a_file_system_is_refused(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # Path("//") is not Path("/"): a comparison of spellings let a recursive delete of everything through.  The deletion
    # itself is replaced here, so that a failure of this test costs nothing.
    removed: list[object] = []
    monkeypatch.setattr("s3dlio._stores.file.shutil.rmtree", removed.append)
    with pytest.raises(s3dlio.InvalidInputError, match="root of a file system"):
        s3dlio.delete(f"file://{path}", recursive=True)
    assert removed == []
