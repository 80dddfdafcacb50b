"""Ctrl-C at every line of a save, a stream and a load."""

from __future__ import annotations

import itertools
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

import s3dlio
from s3dlio import checkpoint
from s3dlio.checkpoint import shards

FOLDER = str(Path(checkpoint.__file__).parent)
OLD, NEW = b"old" * 1000, bytes(range(256)) * 4000


@pytest.fixture(autouse=True)
def _small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "PIECE", 300_000)


@pytest.fixture(params=[None, 1], ids=["plain", "zstd"])
def store(tmp_path: Path, request: pytest.FixtureRequest) -> s3dlio.CheckpointStore:
    options = s3dlio.WriterOptions(durability="none", buffer_size=65_536, threads=0)
    store = s3dlio.CheckpointStore(f"file://{tmp_path}", compression_level=request.param, options=options)
    store.save(1, 1, "x", OLD)
    return store


def interrupted(work: Callable[[], object], nth: int) -> bool:
    """Raises KeyboardInterrupt at the nth line of the checkpoints' modules that this thread comes to.  Returns whether
    there were so many."""
    left = nth

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal left
        if not frame.f_code.co_filename.startswith(FOLDER):
            return None
        if event == "line":
            left -= 1
            if left == 0:
                raise KeyboardInterrupt
        return trace

    sys.settrace(trace)
    try:
        work()
    except KeyboardInterrupt:
        pass
    finally:
        sys.settrace(None)
    return left <= 0


def every_line(work: Callable[[], object]) -> Iterator[int]:
    return itertools.takewhile(lambda nth: interrupted(work, nth), itertools.count(1))


@pytest.mark.parametrize("store", [None], ids=["plain"], indirect=True)
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_save_at_every_line(store: s3dlio.CheckpointStore) -> None:
    left = 0
    for nth in every_line(lambda: store.save(2, 1, "x", NEW)):
        found = store.load_latest()
        assert found in (OLD, NEW), nth
        assert store.load(1) == OLD
        assert len(store.list_checkpoints()) == 1 + (found == NEW), nth
        left += len(store.clean_up(0))
        store.delete_checkpoint(2)
        assert len(s3dlio.list(f"{store.uri}/shards")) == 1, nth
    assert nth > 100
    assert left < 20  # the lines between the shard and the manifest


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_stream_that_goes_on_after_it_at_every_line(store: s3dlio.CheckpointStore) -> None:
    """Its pieces were counted twice, or a chunk was there in part."""
    whole = 0
    for nth in itertools.count(1):
        stream = store.writer(1, 0).get_distributed_shard_stream(2, 1, "x")
        stream.write_chunk(b"begin")
        was_hit = interrupted(lambda stream=stream: stream.write_chunk(NEW), nth)
        try:
            stream.write_chunk(b"end")
            record = stream.finalize()
        except s3dlio.S3dlioError:
            stream.cancel()
            continue
        store.writer(1, 0).finalize_distributed_checkpoint(2, 1, "x", [record])
        assert store.load(2) in (b"begin" + NEW + b"end", b"beginend"), nth
        whole += 1
        if not was_hit:
            break
    assert nth > 20
    assert whole > 1


def test_load_at_every_line(store: s3dlio.CheckpointStore) -> None:
    store.save(2, 1, "x", NEW)
    room = bytearray(len(NEW))
    for nth in every_line(lambda: store.load_latest(into=room)):
        # One whose pool nobody has shut down ends with the pool.
        deadline = time.monotonic() + 10
        while any(thread.name.startswith("s3dlio-checkpoint") for thread in threading.enumerate()):
            assert time.monotonic() < deadline, nth
            time.sleep(0.001)
    assert nth > 100
    assert store.load_latest() == NEW
