"""Checkpoints in files that the disk, or somebody else, has spoilt."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

import pytest

import s3dlio
from s3dlio._reader import read_range
from s3dlio._stores import file
from s3dlio.checkpoint import documents, latest, layout
from s3dlio.checkpoint.catalog import Catalog


@pytest.fixture
def store(tmp_path: Path) -> s3dlio.CheckpointStore:
    return s3dlio.CheckpointStore(f"file://{tmp_path}")


def bad_sector(*arguments: Any) -> NoReturn:
    raise s3dlio.StorageError("read: Input/output error", errno=errno.EIO)


def test_pointer_that_cannot_be_read_is_no_disaster(
    store: s3dlio.CheckpointStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is a hint only, and yet nothing could be loaded."""
    store.save(1, 1, "x", b"1")
    with monkeypatch.context() as patched:
        patched.setattr(latest, "read_document", bad_sector)
        assert store.load_latest() == b"1"
        key = store.save(2, 1, "x", b"2")
    assert json.loads((tmp_path / "latest.json").read_bytes())["manifest_key"] == key
    (tmp_path / "latest.json").unlink()
    (tmp_path / "latest.json").mkdir()
    assert store.load_latest() == b"2"
    store.save(3, 1, "x", b"3")
    assert store.delete_checkpoint(2)
    assert store.load_latest() == b"3"


def test_manifest_that_cannot_be_read_is_damaged(
    store: s3dlio.CheckpointStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Because of one bad sector there was no list, and the checkpoint could not be deleted."""
    store.save(1, 1, "x", b"1")
    bad = store.save(2, 1, "x", b"2" * 1000)
    nbytes = (tmp_path / bad).stat().st_size

    def read(source: Any, start: int, length: int) -> bytes:
        return bad_sector() if source.size == nbytes else read_range(source, start, length)

    monkeypatch.setattr(documents, "read_range", read)
    assert [info.status for info in store.list_checkpoints()] == ["complete", "damaged"]
    with pytest.raises(s3dlio.StorageError, match="Input/output error"):
        store.load_latest()
    with pytest.warns(RuntimeWarning, match="going back"):
        assert store.load_latest(fall_back=True) == b"1"
    assert store.delete_checkpoint(2)
    assert store.load_latest() == b"1"
    assert len(store.clean_up(0)) == 1


def finalized_twice(store: s3dlio.CheckpointStore) -> tuple[str, str]:
    """The keys of two manifests with the same shards, of step 5, and between them step 6."""
    writer = store.writer(1, 0)
    record = writer.save_distributed_shard(5, 1, "x", b"five")
    first = writer.finalize_distributed_checkpoint(5, 1, "x", [record])
    store.save(6, 1, "x", b"six")
    return first, writer.finalize_distributed_checkpoint(5, 1, "x", [record])


def test_shards_of_a_manifest_that_cannot_be_read_stay(
    store: s3dlio.CheckpointStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One bad read of the newer manifest, and keep_last() took its shards away with the older one's."""
    _, newer = finalized_twice(store)
    whole = Catalog.read

    def read(self: Catalog, name: layout.Name) -> dict[str, Any]:
        return bad_sector() if name.manifest_key == newer else whole(self, name)

    with monkeypatch.context() as patched:
        patched.setattr(Catalog, "read", read)
        assert [info.step for info in store.keep_last(1)] == [5]
    assert store.load(5) == b"five"
    assert store.keep_last(1)
    assert store.load(5) == b"five"


def test_damaged_checkpoint_that_is_older_than_what_is_kept_goes(store: s3dlio.CheckpointStore, tmp_path: Path) -> None:
    keys = [store.save(step, 1, "x", b"data") for step in range(4)]
    for damaged in (keys[0], keys[2]):
        path = tmp_path / damaged
        path.write_bytes(path.read_bytes()[:-3])
    assert [(info.step, info.status) for info in store.keep_last(2)] == [(0, "damaged")]
    assert [info.step for info in store.list_checkpoints()] == [1, 2, 3]


def test_list_that_still_has_what_is_deleted_hides_nothing(
    store: s3dlio.CheckpointStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.save(1, 1, "x", b"1")
    store.save(2, 1, "x", b"2")
    before = list(store._catalog.names())
    store.delete_checkpoint(2)
    monkeypatch.setattr(Catalog, "names", lambda self: iter(before))
    assert store.load_latest() == b"1"
    with pytest.raises(s3dlio.NotFoundError):
        store.load(2)


def test_clean_up_knows_what_only_the_pointer_names(
    store: s3dlio.CheckpointStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A list that does not show it yet, and its shards were gone."""
    store.save(1, 1, "x", b"1")
    monkeypatch.setattr(Catalog, "names", lambda self: iter(()))
    assert store.clean_up(0) == []
    assert store.load_latest() == b"1"


def test_shard_is_found_beside_a_damaged_checkpoint(store: s3dlio.CheckpointStore, tmp_path: Path) -> None:
    store.save(1, 1, "x", b"1")
    (shard,) = s3dlio.list(f"{store.uri}/shards")
    (tmp_path / store.save(2, 1, "x", b"2")).write_bytes(b"{")
    assert s3dlio.load_checkpoint_with_validation(shard) == b"1"
    (tmp_path / shard.removeprefix(f"file://{tmp_path}/")).rename(tmp_path / "elsewhere")
    (other,) = s3dlio.list(f"{store.uri}/shards")
    with pytest.raises(s3dlio.CorruptDataError, match="the manifest is damaged"):
        s3dlio.load_checkpoint_with_validation(other)


def test_name_after_which_there_is_none_stops_no_save(store: s3dlio.CheckpointStore, tmp_path: Path) -> None:
    store.save(1, 1, "x", b"1")
    (tmp_path / "manifests/ckpt-1-99991231-235959-999999999-00000000.json").write_text("{}")
    store.save(2, 1, "x", b"2")
    assert store.load_latest() == b"2"


@pytest.mark.parametrize("size", [1 << 60, (1 << 63) - 1])
def test_record_that_asks_for_more_than_there_is_memory_is_told(
    store: s3dlio.CheckpointStore, tmp_path: Path, size: int
) -> None:
    store.save(1, 1, "x", b"1")
    packed = s3dlio.CheckpointStore(store.uri, compression_level=3)
    for saver, fields, error in (
        (store, {"size": size, "raw_size": size}, s3dlio.CorruptDataError),  # which the file belies
        (packed, {"raw_size": size}, MemoryError),
    ):
        path = tmp_path / saver.save(2, 1, "x", b"2" * 1000)
        manifest = json.loads(path.read_bytes())
        manifest["shards"][0].update(fields)
        path.write_bytes(layout.seal(manifest))
        with pytest.raises(error, match=f"load file://{tmp_path}/shards/.*(is damaged|{size} bytes are more)"):
            store.load_latest()
    path.unlink()
    with pytest.warns(RuntimeWarning, match="going back"):
        assert store.load_latest(fall_back=True) == b"1"


def test_range_of_unknown_size_takes_no_more_memory_than_there_are_bytes(
    store: s3dlio.CheckpointStore, tmp_path: Path
) -> None:
    packed = s3dlio.CheckpointStore(store.uri, compression_level=3)
    path = tmp_path / packed.save(1, 1, "x", b"0123456789" * 100)
    manifest = json.loads(path.read_bytes())
    for field in ("raw_size", "raw_checksum"):
        del manifest["shards"][0][field]
    path.write_bytes(layout.seal(manifest))
    found = packed.reader().load_latest_manifest()
    assert packed.reader().read_shard_range(found, 0, 995, 1 << 50) == b"56789"


def test_pointer_that_is_a_circle_of_links_is_passed_over(store: s3dlio.CheckpointStore, tmp_path: Path) -> None:
    store.save(1, 1, "x", b"1")
    (tmp_path / "latest.json").unlink()
    (tmp_path / "latest.json").symlink_to("latest.json")
    assert store.load_latest() == b"1"


@pytest.mark.parametrize("place", [".", "manifests"])
@pytest.mark.parametrize("kind", ["file", "dangling"])
def test_store_that_is_no_folder_is_no_empty_store(tmp_path: Path, place: str, kind: str) -> None:
    """Nothing was found, and training began at step 0, or all shards were taken for left-overs."""
    base = tmp_path / "store"
    store = s3dlio.CheckpointStore(f"file://{base}")
    store.save(1, 1, "x", b"1")
    (base / place).rename(tmp_path / "away")
    if kind == "file":
        (base / place).write_bytes(b"")
    else:
        (base / place).symlink_to("not-mounted")
    for work in (store.load_latest, store.list_checkpoints, lambda: store.clean_up(0), lambda: store.keep_last(1)):
        with pytest.raises(s3dlio.NotFoundError, match="list file:"):
            work()
    (base / place).unlink()
    (tmp_path / "away").rename(base / place)
    assert store.load_latest() == b"1"


def test_clean_up_leaves_a_store_among_the_shards(store: s3dlio.CheckpointStore, tmp_path: Path) -> None:
    inner = s3dlio.CheckpointStore(f"file://{tmp_path}/shards/more")
    inner.save(1, 1, "x", b"inner")
    store.save(1, 1, "x", b"outer")
    assert store.clean_up(0) == []
    assert inner.load_latest() == b"inner"


def test_clean_up_does_not_tell_of_folders_that_stay_empty(
    store: s3dlio.CheckpointStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As SeaweedFS keeps them: what a killed save had left could not be told from them."""
    empty = tmp_path / "shards/ckpt-1-20260101-000000-000000000-00000000"
    left = tmp_path / "shards/ckpt-2-20260101-000000-000000000-00000000"
    for folder in (empty, left):
        folder.mkdir(parents=True)
    (left / "rank-0.bin").write_bytes(b"x")
    with monkeypatch.context() as patched:
        patched.setattr(
            Catalog, "_remove_folder", lambda self, key: s3dlio.delete(f"file://{tmp_path}/{key}rank-0.bin")
        )
        assert store.clean_up(0) == [f"shards/{left.name}/"]
    assert len(store.clean_up(0)) == 2
    assert list((tmp_path / "shards").iterdir()) == []


def test_checkpoint_is_not_called_damaged_on_a_deep_stack(store: s3dlio.CheckpointStore, tmp_path: Path) -> None:
    """It went back to an older one, although there was nothing wrong."""
    metadata: dict[str, Any] = {}
    for _ in range(99):
        metadata = {"in": metadata}
    store.save(1, 1, "x", b"old")
    key = store.save(2, 1, "x", b"new", metadata)

    def load(depth: int) -> Any:
        return load(depth - 1) if depth else store.load_latest(fall_back=True)

    seen = set()
    for depth in range(sys.getrecursionlimit(), 0, -10):
        with suppress(RecursionError):
            seen.add(load(depth))
    assert seen == {b"new"}
    with pytest.raises(s3dlio.InvalidInputError, match="nested more than 100 times"):
        store.save(3, 1, "x", b"too deep", {"in": {"in": metadata}})
    # What a parser cannot take apart at all is damage, of whoever has put it there.
    (tmp_path / key).write_text('{"a":' + "[" * 100_000 + "]" * 100_000 + "}")
    with pytest.warns(RuntimeWarning, match="going back"):
        assert store.load_latest(fall_back=True) == b"old"


def test_lock_that_somebody_keeps_is_not_waited_for_long(
    store: s3dlio.CheckpointStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The pointer is a hint, and anyone who may read the folder can keep its lock."""
    monkeypatch.setattr(file, "_LOCK_TIMEOUT", 0.1)
    store.save(1, 1, "x", b"1")
    fd = os.open(tmp_path, os.O_RDONLY)
    try:
        fcntl.flock(fd, fcntl.LOCK_SH)
        store.save(2, 1, "x", b"2")
    finally:
        os.close(fd)
    assert "another process has held the lock" in caplog.text
    assert store.load_latest() == b"2"
