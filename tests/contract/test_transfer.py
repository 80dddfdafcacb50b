"""Many objects at once, and objects between files and stores, on every store."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest
from places import Place

import s3dlio


@pytest.fixture
def files(tmp_path: Path) -> Path:
    for name, size in (("a.bin", 100), ("b.txt", 0), ("deep/c.bin", 9_000_001), ("deep/er/d.bin", 5)):
        path = tmp_path / "from" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(random.Random(size).randbytes(size))
    return tmp_path / "from"


def test_get_many_returns_pairs_in_order(place: Place) -> None:
    data = {place.uri(str(number)): os.urandom(number * 100) for number in range(40)}
    s3dlio.put_many(data.items())
    wanted = [*reversed(data), *data]
    assert s3dlio.get_many(wanted, max_in_flight=7) == [(uri, data[uri]) for uri in wanted]
    assert s3dlio.get_many([]) == []
    with pytest.raises(s3dlio.NotFoundError):
        s3dlio.get_many([*data, place.uri("missing")])
    with pytest.raises(s3dlio.InvalidInputError, match="max_in_flight"):
        s3dlio.get_many([], max_in_flight=0)


def test_list_may_be_filtered_and_comes_one_by_one(place: Place) -> None:
    for name in ("a.bin", "b.txt", "s/c.bin", "s.bin/d"):
        s3dlio.put(place.uri(name), b"")
    assert s3dlio.list(place.base, pattern=r"\.bin$") == [place.uri("a.bin"), place.uri("s/c.bin")]
    assert s3dlio.list(place.base, recursive=False, pattern="^s") == [place.uri("s.bin/"), place.uri("s/")]
    found = s3dlio.iter_objects(place.base)
    assert next(found) == place.uri("a.bin")
    assert [*found] == [place.uri("b.txt"), place.uri("s.bin/d"), place.uri("s/c.bin")]
    with pytest.raises(s3dlio.InvalidInputError, match="no regular expression"):
        s3dlio.list(place.base, pattern="(")


def test_folder_goes_up_and_comes_down_again(place: Place, files: Path, tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    stored = s3dlio.upload(files, place.uri("up/"), progress=lambda done, total: told.append((done, total)))
    names = ["a.bin", "b.txt", "deep/c.bin", "deep/er/d.bin"]
    assert stored == [place.uri(f"up/{name}") for name in names]
    assert told[-1] == (9_000_106, 9_000_106)
    assert told == sorted(told)
    told.clear()
    target = tmp_path / "to"
    paths = s3dlio.download(place.uri("up"), target, progress=lambda done, total: told.append((done, total)))
    assert sorted(paths) == sorted(str(target / name) for name in names)
    assert told[-1] == (9_000_106, 9_000_106)
    for name in names:
        assert (target / name).read_bytes() == (files / name).read_bytes()


def test_one_file_goes_to_a_name_or_into_a_folder(place: Place, files: Path, tmp_path: Path) -> None:
    assert s3dlio.upload(files / "a.bin", place.uri("named")) == [place.uri("named")]
    assert s3dlio.upload(str(files / "a.*"), place.uri("into/")) == [place.uri("into/a.bin")]
    # How many there are today decides nothing.
    assert s3dlio.upload(str(files / "a.*"), place.uri("one")) == [place.uri("one/a.bin")]
    assert s3dlio.upload([files / "a.bin"], place.uri("list")) == [place.uri("list/a.bin")]
    assert s3dlio.upload([files / "a.bin", files / "b.txt"], place.uri("two")) == [
        place.uri("two/a.bin"),
        place.uri("two/b.txt"),
    ]
    assert s3dlio.upload(str(files / "**" / "*.bin"), place.uri("all")) == [
        place.uri(f"all/{name}") for name in ("a.bin", "deep/c.bin", "deep/er/d.bin")
    ]
    assert s3dlio.download(place.uri("named"), tmp_path) == [str(tmp_path / "named")]
    assert (tmp_path / "named").read_bytes() == (files / "a.bin").read_bytes()


def test_upload_of_nothing_or_of_two_to_one_name_is_refused_before_anything_is_sent(place: Place, files: Path) -> None:
    (files / "deep" / "a.bin").write_bytes(b"another")
    with pytest.raises(s3dlio.NotFoundError, match="no such file"):
        s3dlio.upload([files / "a.bin", files / "nothing*"], place.uri("refused/"))
    with pytest.raises(s3dlio.InvalidInputError, match="also the target"):
        s3dlio.upload([files / "a.bin", files / "deep" / "a.bin"], place.uri("refused/"))
    (files / "dangling").symlink_to("nowhere")
    with pytest.raises(s3dlio.NotFoundError, match="dangling"):
        s3dlio.upload([files / "a.bin", files / "dangling"], place.uri("refused/"))
    assert s3dlio.list(place.uri("refused")) == []
    with pytest.raises(s3dlio.NotFoundError, match="no such object"):
        s3dlio.download(place.uri("nothing"), files)


def test_pattern_keeps_the_folders_and_takes_each_file_once(place: Place, tmp_path: Path) -> None:
    top = tmp_path / "top"
    for name in ("a.txt", "cat/1.txt", "dog/1.txt", "dog/deep/2.bin"):
        (top / name).parent.mkdir(parents=True, exist_ok=True)
        (top / name).write_text(name)
    (top / "loop").symlink_to(top)

    def stored(pattern: str) -> list[str]:
        s3dlio.upload(f"{top}/{pattern}", place.uri("up/"))
        names = [uri.removeprefix(place.uri("up/")) for uri in s3dlio.list(place.uri("up"))]
        assert [s3dlio.get(place.uri(f"up/{name}")) for name in names] == [name.encode() for name in names]
        s3dlio.delete(place.uri("up"), recursive=True)
        return names

    everything = ["a.txt", "cat/1.txt", "dog/1.txt", "dog/deep/2.bin"]
    assert stored("**/*.txt") == everything[:3]
    assert stored("*.txt") == everything[:1]
    assert stored("[cd]*") == everything[1:]
    (top / "loop").unlink()
    assert stored("**") == stored("**/*") == stored("**/") == everything


def test_what_is_no_file_is_left_out_of_a_folder_with_a_word(
    place: Place, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "up").mkdir()
    (tmp_path / "up" / "file").write_bytes(b"x")
    (tmp_path / "up" / "broken").symlink_to("nowhere")
    assert s3dlio.upload(tmp_path / "up", place.uri("up")) == [place.uri("up/file")]
    assert "up/broken: left out" in caplog.text


def test_paths_and_uris_are_told_apart(place: Place, tmp_path: Path) -> None:
    with pytest.raises(s3dlio.InvalidInputError, match="a path is needed, not a URI"):
        s3dlio.upload(f"file://{tmp_path}", place.uri("up"))
    s3dlio.put(place.uri("a"), b"x")
    (tmp_path / "file").write_bytes(b"")
    for folder in (f"file://{tmp_path}/to", tmp_path / "file"):
        with pytest.raises(s3dlio.InvalidInputError, match="download"):
            s3dlio.download(place.uri("a"), folder)


def test_copy_keeps_the_bytes(place: Place) -> None:
    data = random.Random(3).randbytes(9_000_001)
    s3dlio.put(place.uri("a"), data)
    assert s3dlio.copy(place.uri("a"), place.uri("to/b-c")) == place.uri("to/b-c")
    assert s3dlio.get(place.uri("to/b-c")) == data
    assert s3dlio.copy(place.uri("a"), "memory://copies/a") == "memory://copies/a"
    assert s3dlio.copy("memory://copies/a", place.uri("back")) == place.uri("back")
    assert s3dlio.get(place.uri("back")) == data
    s3dlio.delete("memory://copies/a")
    packed = s3dlio.copy(place.uri("a"), place.uri("packed"), s3dlio.WriterOptions(compression="zstd"))
    with s3dlio.open_reader(packed, decompress=True) as reader:
        assert reader.read() == data
    with pytest.raises(s3dlio.NotFoundError):
        s3dlio.copy(place.uri("missing"), place.uri("c"))
    with pytest.raises(s3dlio.InvalidInputError, match="onto itself"):
        s3dlio.copy(place.uri("a"), place.uri("a"))
    s3dlio.copy(place.uri("a"), place.uri("a"), content_type="text/plain")
    assert s3dlio.get(place.uri("a")) == s3dlio.get(place.uri("back"))
    assert not s3dlio.exists(place.uri("c"))
