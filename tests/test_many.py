"""Many objects at once."""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import s3dlio
from s3dlio import _many

Run = Callable[..., subprocess.CompletedProcess[str]]


def test_put_many_stores_every_item_with_the_settings(disk_path: Path) -> None:
    data = {f"file://{disk_path}/{i % 7}/{i}": bytes([i % 256]) * (i * 37) for i in range(300)}
    s3dlio.put_many(data.items(), durability="none")
    assert {uri: s3dlio.get(uri) for uri in s3dlio.list(f"file://{disk_path}")} == data
    s3dlio.put_many(((uri, bytearray(content)) for uri, content in data.items()), 3, compression="zstd")
    for uri, content in data.items():
        with s3dlio.open_reader(uri + ".zst", decompress=True) as reader:
            assert reader.read() == content
    s3dlio.put_many([])


def test_put_many_takes_no_more_items_than_are_on_their_way(disk_path: Path) -> None:
    taken, most = 0, 0

    def items() -> Iterator[tuple[str, bytes]]:
        nonlocal taken, most
        for i in range(200):
            taken += 1
            most = max(most, taken - len(list(disk_path.iterdir())))
            yield f"file://{disk_path}/{i}", b"x"

    s3dlio.put_many(items(), max_in_flight=3, durability="none")
    assert most <= 3


def test_put_many_when_one_fails_raises_its_error_and_begins_no_more(disk_path: Path) -> None:
    (disk_path / "folder").mkdir()
    before = threading.active_count()

    def items() -> Iterator[tuple[str, bytes]]:
        yield f"file://{disk_path}/first", b"x"
        yield f"file://{disk_path}/folder", b"x"
        for i in range(100_000):
            yield f"file://{disk_path}/{i}", b"x"

    with pytest.raises(s3dlio.NotAnObjectError, match="folder"):
        s3dlio.put_many(items(), max_in_flight=2, durability="none")
    assert (disk_path / "first").read_bytes() == b"x"
    assert len(list(disk_path.iterdir())) < 10_000
    assert threading.active_count() == before


@pytest.mark.parametrize("kind", [KeyboardInterrupt, RuntimeError])
def test_put_many_when_the_items_raise_passes_it_on(disk_path: Path, kind: type[BaseException]) -> None:
    def items() -> Iterator[tuple[str, bytes]]:
        yield f"file://{disk_path}/first", b"x"
        raise kind("enough")

    with pytest.raises(kind, match="enough"):
        s3dlio.put_many(items())
    assert [path.name for path in disk_path.iterdir()] == ["first"]


def test_put_many_refuses_bad_arguments() -> None:
    with pytest.raises(s3dlio.InvalidInputError):
        s3dlio.put_many([], 0)
    with pytest.raises(TypeError):
        s3dlio.put_many([], 1.5)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        s3dlio.put_many([], options=s3dlio.WriterOptions(), level=1)
    with pytest.raises(s3dlio.InvalidInputError):
        s3dlio.put_many([], durability="perhaps")


@pytest.mark.parametrize("item", ["abc", 5, ("memory://many/a",), ("memory://many/a", b"1", 2)])
def test_item_that_is_no_pair_is_refused(item: object) -> None:
    with pytest.raises(TypeError, match="pair of URI and data"):
        s3dlio.put_many([item])  # type: ignore[list-item]


def test_ctrl_c_while_threads_begin_is_raised_as_what_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    # In the main thread it came between two lines of Thread.start(), and a RuntimeError of a lock came out.
    began: list[threading.Thread] = []
    start = _many._Worker.start

    def note(worker: _many._Worker) -> None:
        began.append(threading.current_thread())
        start(worker)

    monkeypatch.setattr(_many._Worker, "start", note)
    _many.for_each(range(10), lambda number: None, 4)
    assert len(began) == 3
    assert threading.main_thread() not in began


def test_download_of_a_file_and_a_folder_of_one_name_is_refused(tmp_path: Path) -> None:
    # Which of the two was there at the end was a matter of luck, and the rest was written.
    for name in ("a", "both", "both/in/it", "z"):
        s3dlio.put(f"memory://both/tree/{name}", b"x")
    with pytest.raises(s3dlio.InvalidInputError, match=r"tree/both: .* would have to be a file, and the folder of"):
        s3dlio.download("memory://both/tree", tmp_path / "to")
    assert not (tmp_path / "to").exists()


def test_upload_of_two_that_become_one_by_compression_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"1")
    (tmp_path / "a.zst").write_bytes(b"2")
    with pytest.raises(s3dlio.InvalidInputError, match="also the target"):
        s3dlio.upload(tmp_path, "memory://two/up", compression="zstd")
    assert s3dlio.list("memory://two") == []
    assert len(s3dlio.upload(tmp_path, "memory://two/up")) == 2


@pytest.mark.parametrize(
    "pattern", ["", "secret", "secret/*", "*", "**", "secret/b", "readable", "*/b", "**/b", "[co]*/*", "open"]
)
def test_upload_of_what_may_not_be_read_is_an_error(run_as_nobody: Run, public_path: Path, pattern: str) -> None:
    # It was left out without a word, and the rest looked like a whole copy.
    code = """
try:
    print(s3dlio.upload(sys.argv[1], "memory://up/"))
except PermissionError as error:
    print(error, s3dlio.list("memory://up/"))
"""
    (public_path / "a").write_bytes(b"x")
    for name, mode in (("readable", 0o744), ("secret", 0o700), ("open", 0o755)):  # the first, but not to be entered
        (public_path / name).mkdir(mode)
        (public_path / name / "b").write_bytes(b"x")
    (public_path / "open/c").touch(0o600)
    shown = run_as_nobody(code, f"{public_path}/{pattern}").stdout
    assert shown.startswith(f"upload {public_path}/")
    assert shown.endswith(": Permission denied []\n")
