"""Checkpoints of numpy arrays: their bytes alone, loaded into arrays that are there already, and .npy streams.

Usage: checkpoint_numpy.py [URI]   below which they are stored (default: a temporary folder)
"""

from __future__ import annotations

import io
import sys
import tempfile
from typing import Any

import numpy as np

import s3dlio


def one_array(store: s3dlio.CheckpointStore, array: np.ndarray[Any, Any]) -> None:
    """As a buffer: what is stored is the array's memory, and shape and type go into the metadata."""
    metadata = {"shape": array.shape, "dtype": str(array.dtype)}
    store.save(1, 0, "numpy", array, metadata)
    manifest = store.reader().load_manifest(1)
    about = manifest["user_meta"]
    found = np.empty(about["shape"], about["dtype"])
    count = store.load(1, into=found)
    assert np.array_equal(found, array)
    print(f"step 1, one array: {count} bytes, equal, {about}")


def several_arrays(store: s3dlio.CheckpointStore, arrays: list[np.ndarray[Any, Any]]) -> None:
    """As an iterable of buffers, one after the other, never held together.  Views of one buffer take them apart."""
    store.save(2, 0, "numpy", iter(arrays))
    room = np.empty(sum(array.nbytes for array in arrays), np.uint8)
    count = store.load_latest(into=room)
    begin = 0
    for array in arrays:
        found = room[begin : begin + array.nbytes].view(array.dtype).reshape(array.shape)
        assert np.array_equal(found, array)
        begin += array.nbytes
    print(f"step 2, {len(arrays)} arrays: {count} bytes, equal")


def npy_stream(store: s3dlio.CheckpointStore, array: np.ndarray[Any, Any]) -> None:
    """np.save() writes into a shard's stream; the .npy format knows shape and type."""
    writer = store.writer(world_size=1, rank=0)
    with writer.get_distributed_shard_stream(3, 0, "numpy") as stream:
        np.save(stream, array)
    writer.finalize_distributed_checkpoint(3, 0, "numpy", [stream.finalize()])
    data = store.load(3)
    assert isinstance(data, bytes)
    found = np.load(io.BytesIO(data))
    assert found.dtype == array.dtype
    assert np.array_equal(found, array)
    print(f"step 3, .npy: {len(data)} bytes, equal, shape {found.shape}")


def run(uri: str) -> None:
    store = s3dlio.CheckpointStore(uri)
    random = np.random.default_rng(0)
    matrix = random.standard_normal((512, 300))
    one_array(store, matrix)
    several_arrays(store, [matrix, np.arange(1000, dtype=np.int32), matrix[:10].astype(np.float32)])
    npy_stream(store, matrix.T)


def main() -> None:
    if len(sys.argv) > 1:
        run(sys.argv[1])
    else:
        with tempfile.TemporaryDirectory() as folder:
            run(f"file://{folder}")


if __name__ == "__main__":
    main()
