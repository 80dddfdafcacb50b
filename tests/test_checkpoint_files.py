"""Checkpoints in files that the disk, or somebody else, has spoilt."""

from __future__ import annotations

import errno
import json
from pathlib import Path
from typing import Any

import pytest

import s3dlio
from s3dlio._reader import read_range
from s3dlio.checkpoint import documents, latest, layout


@pytest.fixture
def store(tmp_path: Path) -> s3dlio.CheckpointStore:
    return s3dlio.CheckpointStore(f"file://{tmp_path}")


def bad_sector(*arguments: Any) -> bytes:
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


def test_manifest_that_asks_for_more_than_there_is_memory_names_the_shard(tmp_path: Path) -> None:
    """As one that lies."""
    store = s3dlio.CheckpointStore(f"file://{tmp_path}", compression_level=3)
    path = tmp_path / store.save(1, 1, "x", b"1" * 1000)
    manifest = json.loads(path.read_bytes())
    manifest["shards"][0]["raw_size"] = 1 << 60
    path.write_bytes(layout.seal(manifest))
    with pytest.raises(MemoryError, match=f"load file://{tmp_path}/shards/.*: {1 << 60} bytes are more"):
        store.load_latest()
