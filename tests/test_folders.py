"""Folders of files: what is listed, what is deleted, and what neither reaches through."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from harness import need_root
from mounts import mounted, mounted_at

import s3dlio
from s3dlio._stores.file import _refuse_mount_point
from s3dlio._uri import parse_uri

Run = Callable[..., subprocess.CompletedProcess[str]]


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


def test_folder_that_cannot_be_read_is_an_error_not_an_empty_list(run_as_nobody: Run, public_path: Path) -> None:
    code = """
try:
    print(s3dlio.list(sys.argv[1]))
except PermissionError as error:
    print(error)
"""
    (public_path / "folder").mkdir(mode=0o700)
    uri = f"file://{public_path}"
    assert run_as_nobody(code, uri).stdout == f"list {uri}/folder/: Permission denied\n"


def test_delete_of_a_folder_is_refused(disk_path: Path) -> None:
    (disk_path / "folder").mkdir()
    with pytest.raises(IsADirectoryError, match="recursive=True"):
        s3dlio.delete(f"file://{disk_path}/folder")
    assert (disk_path / "folder").is_dir()


@pytest.mark.parametrize("name", ["link", "link/"])
def test_delete_of_a_link_leaves_what_it_names(disk_path: Path, name: str) -> None:
    # With the slash it emptied the folder, and raised that the link is none.
    (disk_path / "folder").mkdir()
    (disk_path / "folder/a").write_bytes(b"x")
    (disk_path / "link").symlink_to("folder")
    s3dlio.delete(f"file://{disk_path}/{name}", recursive=True)
    assert not (disk_path / "link").is_symlink()
    assert (disk_path / "folder/a").exists()
    (disk_path / "object").symlink_to("folder/a")
    s3dlio.delete(f"file://{disk_path}/object/", recursive=True)
    assert (disk_path / "object").is_symlink()


@pytest.mark.parametrize("path", ["/", "//", "/tmp/..", "/proc", "/dev/shm/../shm/", "/./"])
def test_root_of_a_file_system_is_refused_in_any_spelling(path: str) -> None:
    # Path("//") is not Path("/"): a comparison of spellings let a recursive delete of everything through.  Only the
    # question is tested here, never a deletion.
    with pytest.raises(s3dlio.InvalidInputError, match="root of a file system"):
        _refuse_mount_point(path, parse_uri(f"file://{path}"))


def test_delete_does_not_reach_through_a_mount(tmp_path: Path) -> None:
    with mounted("ext4", 24, tmp_path) as disk:
        (disk / "a").write_bytes(b"x")
        (tmp_path / "b").write_bytes(b"x")
        with pytest.raises(s3dlio.InvalidInputError, match=str(disk)):
            s3dlio.delete(f"file://{tmp_path}", recursive=True)
        assert (disk / "a").exists()
        assert (tmp_path / "b").exists()


def test_delete_does_not_reach_through_a_folder_mounted_again(disk_path: Path) -> None:
    # It is on the same device, and was taken for a folder like any other.
    need_root()
    (disk_path / "precious").mkdir()
    (disk_path / "precious/a").write_bytes(b"x")
    folder = disk_path / "d" / "mounted"
    folder.mkdir(parents=True)
    with (
        mounted_at(folder, "--bind", str(disk_path / "precious")),
        pytest.raises(s3dlio.InvalidInputError, match="mounted is the root"),
    ):
        s3dlio.delete(f"file://{disk_path}/d", recursive=True)
    assert (disk_path / "precious/a").exists()


def test_nothing_is_below_a_file(disk_path: Path) -> None:
    (disk_path / "file").write_bytes(b"x")
    assert not s3dlio.exists(f"file://{disk_path}/file/below")
    with pytest.raises(s3dlio.NotFoundError, match="Not a directory"):
        s3dlio.list(f"file://{disk_path}/file/below")


def test_list_behind_a_link_that_leads_nowhere_is_an_error(disk_path: Path) -> None:
    # A disk that was not mounted looked like an empty folder.
    (disk_path / "link").symlink_to("nowhere")
    for name in ("link", "link/", "link/below/it"):
        with pytest.raises(s3dlio.NotFoundError, match="link"):
            s3dlio.list(f"file://{disk_path}/{name}")
    assert s3dlio.list(f"file://{disk_path}/nowhere/below") == []


def test_folder_that_becomes_a_file_during_a_list_is_passed_over(disk_path: Path) -> None:
    # The list ended there, and said nothing of what comes after it.
    for name in ("a", "b/x", "c"):
        s3dlio.put(f"file://{disk_path}/{name}", b"")
    found = s3dlio.iter_objects(f"file://{disk_path}")
    assert next(found).endswith("/a")
    s3dlio.delete(f"file://{disk_path}/b", recursive=True)
    s3dlio.put(f"file://{disk_path}/b", b"")
    assert [name[-1] for name in found] == ["c"]


def test_time_that_no_date_can_tell_is_told_as_the_nearest_one(tmp_path: Path) -> None:
    with mounted("tmpfs", 1, tmp_path) as folder:  # ext4 has none after 2446
        (folder / "a").write_bytes(b"x")
        for seconds, told in ((10**12, "9999-12-31T23:59:59."), (-(10**12), "0001-01-01T00:00:00.")):
            os.utime(folder / "a", (seconds, seconds))
            assert s3dlio.stat(f"file://{folder}/a")["last_modified"].startswith(told)


def test_deep_folders_and_circular_links_are_listed(disk_path: Path) -> None:
    (disk_path / "circle").symlink_to("circle")
    folder = os.open(disk_path, os.O_RDONLY)
    try:
        for _ in range(1100):  # deeper than Python's recursion, shorter than PATH_MAX
            os.mkdir("d", dir_fd=folder)
            below = os.open("d", os.O_RDONLY, dir_fd=folder)
            os.close(folder)
            folder = below
        os.close(os.open("a", os.O_CREAT | os.O_WRONLY, dir_fd=folder))
    finally:
        os.close(folder)
    assert s3dlio.list(f"file://{disk_path}") == [f"file://{disk_path}/" + "d/" * 1100 + "a"]
    subprocess.run(["rm", "-r", disk_path / "d"], check=True, timeout=30)


def test_name_with_a_slash_at_its_end_is_not_the_file(disk_path: Path) -> None:
    # Path() drops the slash, and delete() removed the file.
    (disk_path / "file").write_bytes(b"x")
    (disk_path / "folder").mkdir()
    (disk_path / "link").symlink_to("folder")
    for name in ("file/", "file/."):
        uri = f"file://{disk_path}/{name}"
        s3dlio.delete(uri)
        s3dlio.delete(uri, recursive=True)
        assert not s3dlio.exists(uri)
        for operation in (s3dlio.list, s3dlio.stat):
            with pytest.raises(s3dlio.NotFoundError):
                operation(uri)
    with pytest.raises(s3dlio.NotAnObjectError):
        s3dlio.delete(f"file://{disk_path}/link/")
    assert sorted(path.name for path in disk_path.iterdir()) == ["file", "folder", "link"]


def test_delete_and_list_where_it_is_not_allowed_are_permission_errors(run_as_nobody: Run, public_path: Path) -> None:
    code = """
for recursive in (False, True):
    try:
        s3dlio.delete(sys.argv[1], recursive)
    except s3dlio.PermissionDeniedError as error:
        print(error)
try:
    print(s3dlio.list(sys.argv[1]))
except s3dlio.PermissionDeniedError as error:
    print(error)
"""
    (public_path / "secret").mkdir(mode=0o700)
    (public_path / "secret/f").write_bytes(b"x")
    uri = f"file://{public_path}/secret/f"
    assert run_as_nobody(code, uri).stdout == (
        f"delete {uri}: Permission denied\n" * 2 + f"list {uri}: Permission denied\n"
    )
