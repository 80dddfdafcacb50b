"""What can be given to a save: all of its bytes are stored, or it says why not."""

from __future__ import annotations

import io
import mmap
import os
import tempfile
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import s3dlio
from s3dlio.checkpoint.layout import Shard
from s3dlio.checkpoint.shards import ShardStream


@pytest.fixture
def store() -> s3dlio.CheckpointStore:
    return s3dlio.CheckpointStore("memory://arguments")


ARRAYS: dict[str, Any] = {
    "no dimension": np.array(5.0),
    "bool": np.ones(3, bool),
    "time": np.array(["2026-01-01", "NaT"], "M8[D]"),
    "scalar": np.float32(1),
    "empty": np.ones((0, 3)),
}


@pytest.mark.parametrize("array", ARRAYS)
def test_arrays(store: s3dlio.CheckpointStore, array: str) -> None:
    store.save(1, 1, "x", ARRAYS[array])
    assert store.load_latest() == ARRAYS[array].tobytes()


def test_memory_that_is_also_a_file_is_saved_from_its_beginning(store: s3dlio.CheckpointStore) -> None:
    """Of an mmap only what was behind its position was saved."""
    with mmap.mmap(-1, 100) as mapped:
        mapped.write(b"x" * 90)
        store.save(1, 1, "x", mapped)
    assert store.load_latest() == b"x" * 90 + bytes(10)


@pytest.mark.parametrize("only_read", [False, True])
def test_file_that_does_not_block_is_refused(store: s3dlio.CheckpointStore, only_read: bool) -> None:
    """That it has nothing at the moment was taken for its end."""
    there = store.list_checkpoints()
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    with io.FileIO(reading) as file, io.FileIO(writing, "w") as other:
        other.write(b"not all")
        data: Any = type("OnlyRead", (), {"read": file.read}) if only_read else file
        with pytest.raises(s3dlio.InvalidInputError, match="has nothing to read at this moment, and does not block"):
            store.save(1, 1, "x", data)
    assert store.list_checkpoints() == there


@pytest.mark.parametrize("text", ["", "text"])
def test_file_of_text_is_refused(store: s3dlio.CheckpointStore, text: str) -> None:
    with pytest.raises(TypeError, match=r"binary file object .* not StringIO"):
        store.save(1, 1, "x", io.StringIO(text))  # type: ignore[arg-type]


class Tensor:
    """As those of PyTorch: no buffer, and its items are tensors again."""

    def __iter__(self) -> Iterator[Tensor]:
        return iter([Tensor()])

    def numpy(self) -> Any:
        return np.ones(5)


@pytest.mark.parametrize("data", [Tensor(), [Tensor()]], ids=["one", "several"])
def test_tensor_is_told_what_can_be_saved_of_it(store: s3dlio.CheckpointStore, data: Any) -> None:
    with pytest.raises(TypeError, match=r"not Tensor: its numpy\(\) is one"):
        store.save(77, 1, "x", data)
    assert 77 not in [info.step for info in store.list_checkpoints()]


def test_file_of_text_is_refused_also_if_it_is_empty(store: s3dlio.CheckpointStore) -> None:
    with (
        tempfile.NamedTemporaryFile("w+") as file,
        pytest.raises(TypeError, match=r"a binary file object .* is needed"),
    ):
        store.save(1, 1, "x", file)


def test_arguments_that_do_not_fit_are_refused_at_once(store: s3dlio.CheckpointStore) -> None:
    with pytest.raises(TypeError, match="fall_back must be True or False, not 100"):
        store.load_latest(100)  # a step
    with pytest.raises(s3dlio.InvalidInputError, match="world_size must be at most"):
        store.writer(10**10 + 1, 10**10)
    with pytest.raises(s3dlio.InvalidInputError, match="create_parents"):
        s3dlio.CheckpointStore("file:///tmp/arguments", options=s3dlio.WriterOptions(create_parents=False))


def test_second_finalize_during_the_first_leaves_the_shard(
    store: s3dlio.CheckpointStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It took the end of the writer for a failure of its own, and deleted what the first one was to tell of."""
    stream = store.writer(1, 0).get_distributed_shard_stream(1, 0, "x")
    make = ShardStream._shard

    def meanwhile(self: ShardStream) -> Shard:
        with pytest.raises(s3dlio.ClosedError):
            self.finalize()
        return make(self)

    monkeypatch.setattr(ShardStream, "_shard", meanwhile)
    stream.write_chunk(b"shard")
    store.writer(1, 0).finalize_distributed_checkpoint(1, 0, "x", [stream.finalize()])
    assert store.load(1) == b"shard"
