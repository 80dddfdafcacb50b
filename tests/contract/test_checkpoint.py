"""What checkpoints promise, run on every store."""

from __future__ import annotations

import io
import json
import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from checkpoints import CONTENT, flipped
from places import Place

import s3dlio
from s3dlio.checkpoint import arguments, catalog, layout, loading, shards

# The engines of files have their own tests.
pytestmark = pytest.mark.parametrize("place", ["file", "direct", "memory", "s3", "az"], indirect=True)


class OnlyRead:
    """A file object that can do nothing else."""

    def __init__(self, data: bytes) -> None:
        self._file = io.BytesIO(data)

    def read(self, size: int) -> bytes:
        return self._file.read(size)


GIVEN: dict[str, Callable[[bytes], Any]] = {
    "bytes": lambda data: data,
    "bytearray": bytearray,
    "memoryview": memoryview,
    "array": lambda data: np.frombuffer(data, np.uint8),
    "buffers": lambda data: [data[:10], bytearray(data[10:20]), b"", memoryview(data)[20:]],
    "generator": lambda data: (data[start : start + 7777] for start in range(0, len(data), 7777)),
    "file": io.BytesIO,
    "file that only reads": OnlyRead,
}


@pytest.mark.parametrize("given", GIVEN)
def test_what_is_saved_is_loaded(store: s3dlio.CheckpointStore, given: str) -> None:
    store.save(7, 1, "torch", GIVEN[given](CONTENT))
    loaded = store.load_latest()
    assert type(loaded) is bytes
    assert loaded == CONTENT == store.load(7)


@pytest.mark.parametrize("size", [0, 1, 69_999, 70_000, 70_001, 140_000, 300_001])
def test_sizes_around_a_piece(store: s3dlio.CheckpointStore, small_pieces: int, size: int) -> None:
    store.save(1, 1, "x", CONTENT[:size])
    assert store.load_latest() == CONTENT[:size]
    room = bytearray(b"\xff" * (size + 3))
    assert store.load(1, into=room) == size
    assert room == CONTENT[:size] + b"\xff" * 3
    manifest = store.reader().load_latest_manifest()
    assert manifest
    assert store.reader().read_shard_by_rank(manifest, 0) == CONTENT[:size]


def test_load_into_a_buffer_that_is_too_small_says_both_sizes(store: s3dlio.CheckpointStore) -> None:
    store.save(1, 1, "x", CONTENT)
    with pytest.raises(s3dlio.InvalidInputError, match="it has 300001 bytes, and there is room for 300000"):
        store.load_latest(into=bytearray(300_000))
    with pytest.raises(s3dlio.InvalidInputError, match="memory that can be written to is needed"):
        store.load_latest(into=CONTENT)


def test_ranges_of_a_shard(store: s3dlio.CheckpointStore, small_pieces: int) -> None:
    store.save(1, 1, "x", CONTENT)
    reader = store.reader()
    manifest = reader.load_manifest(1)
    for offset, length in ((0, 0), (0, 10), (69_995, 10), (69_995, 200_000), (300_000, 10), (300_001, 5), (400_000, 5)):
        for verify in (True, False):
            found = reader.read_shard_range(manifest, 0, offset, length, verify=verify)
            assert found == CONTENT[offset : offset + length], (offset, length, verify)
    with pytest.raises(s3dlio.InvalidInputError, match="offset must not be negative"):
        reader.read_shard_range(manifest, 0, -1, 5)


def test_empty_store_has_nothing(plain: s3dlio.CheckpointStore) -> None:
    assert plain.load_latest() is None
    assert plain.list_checkpoints() == []
    assert plain.reader().load_latest_manifest() is None
    assert not plain.delete_checkpoint(1)
    assert plain.keep_last(1) == []
    assert plain.clean_up(0) == []
    with pytest.raises(s3dlio.NotFoundError, match="no checkpoint of step 3"):
        plain.load(3)


def test_the_last_saved_is_the_latest_whatever_its_step(plain: s3dlio.CheckpointStore) -> None:
    plain.save(200, 2, "x", b"old")
    plain.save(100, 1, "x", b"new")
    assert plain.load_latest() == b"new"
    plain.save(100, 1, "x", b"newer")
    assert plain.load_latest() == plain.load(100) == b"newer"
    assert plain.load(200) == b"old"


def test_clock_that_goes_back_loses_no_save(plain: s3dlio.CheckpointStore, monkeypatch: pytest.MonkeyPatch) -> None:
    now = layout.time.time_ns()
    for number, moment in enumerate((now, now - 10**12, now - 10**15, now)):
        monkeypatch.setattr(layout.time, "time_ns", lambda moment=moment: moment)
        plain.save(5, 1, "x", bytes([number]))
        assert plain.load_latest() == plain.load(5) == bytes([number])
    assert len(plain.list_checkpoints()) == 4


def test_arguments_by_keyword_and_their_other_names(plain: s3dlio.CheckpointStore) -> None:
    key = plain.save(step=1, epoch=2, framework="jax", data=b"1", user_meta={"loss": 0.5, "tags": ["a", None]})
    assert layout.parse_manifest_key(key)
    manifest = plain.reader().load_latest_manifest()
    assert manifest
    assert manifest["user_meta"] == {"loss": 0.5, "tags": ["a", None]}
    plain.save(2, 3, name="torch", data=b"2", metadata={"a": 1})
    assert [(info.name, info.framework) for info in plain.list_checkpoints()] == [("jax", "jax"), ("torch", "torch")]
    with pytest.raises(TypeError, match="name and framework are the same"):
        plain.save(1, 2, "torch", b"1", framework="torch")
    with pytest.raises(TypeError, match="needs name"):
        plain.save(1, 2, data=b"1")
    with pytest.raises(TypeError, match="needs data"):
        plain.save(1, 2, "torch")


def at_its_end() -> io.BytesIO:
    file = io.BytesIO()
    file.write(CONTENT)
    return file


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ({"step": -1}, "step must not be negative"),
        ({"epoch": 1.5}, "epoch must be a whole number"),
        ({"name": 5}, "name must be a str"),
        ({"metadata": {"a": object()}}, "cannot be stored as JSON"),
        ({"metadata": [1]}, "metadata must be a dict"),
        ({"data": "text"}, "not str"),
        ({"data": {"a": 1}}, "not dict; an object is written to a shard's stream"),
        ({"data": at_its_end()}, "is at its end, where it was written to"),
        ({"step": 1 << 63}, "step must not have more than 63 bits"),
        ({"data": 5}, "not int"),
        ({"data": [b"a", "b"]}, "bytes-like object is needed"),
        ({"data": np.zeros((4, 4))[:, 1]}, "C-contiguous"),
    ],
)
def test_what_cannot_be_saved_is_refused_and_nothing_is_left(place: Place, wrong: dict[str, Any], text: str) -> None:
    arguments: dict[str, Any] = {"step": 1, "epoch": 1, "name": "x", "data": b"1", "metadata": None}
    with pytest.raises((TypeError, ValueError), match=text):
        s3dlio.CheckpointStore(place.base).save(**(arguments | wrong))
    assert s3dlio.list(place.base) == []
    assert place.leftovers() == []


def test_exception_of_the_data_leaves_nothing(store: s3dlio.CheckpointStore, place: Place) -> None:
    def broken() -> Iterator[bytes]:
        yield CONTENT
        raise OSError("the sensor is gone")

    store.save(1, 1, "x", b"before")
    there = s3dlio.list(place.base)
    with pytest.raises(OSError, match="the sensor is gone"):
        store.save(2, 1, "x", broken())
    assert s3dlio.list(place.base) == there
    assert len(s3dlio.list(place.uri("shards/"), recursive=False)) == 1
    assert place.leftovers() == []
    assert store.load_latest() == b"before"


def test_save_whose_manifest_was_never_sent_takes_its_shard_back(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """On S3 and Azure it stayed, as if the manifest might still come."""
    metadata: dict[str, Any] = {}

    def data() -> Iterator[bytes]:
        yield CONTENT
        metadata["too late"] = object()

    store = s3dlio.CheckpointStore(place.base)
    with pytest.raises(TypeError, match="not JSON serializable"):
        store.save(1, 1, "x", data(), metadata)
    # A manifest that no load would take is not stored either.
    monkeypatch.setattr(catalog, "_MAX_MANIFEST", 500)
    with pytest.raises(s3dlio.InvalidInputError, match="bytes are too many for a manifest"):
        store.save(1, 1, "x", CONTENT, {"a": "b" * 500})
    assert s3dlio.list(place.base) == []


def test_list_tells_what_is_there(store: s3dlio.CheckpointStore) -> None:
    store.save(3, 1, "torch", CONTENT)
    store.save(2, 1, "jax", b"")
    first, second = store.list_checkpoints()
    assert (first.step, first.epoch, first.name, first.world_size, first.status) == (3, 1, "torch", 1, "complete")
    assert first.is_complete()
    assert first.timestamp < second.timestamp
    stored = s3dlio.list(store.uri + "/shards")
    assert sorted(info.total_size for info in (first, second)) == sorted(s3dlio.stat(uri)["size"] for uri in stored)


def test_list_that_meets_a_deletion_shows_what_is_there_instead(
    plain: s3dlio.CheckpointStore, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was empty when all that it had found was deleted before it was read."""
    plain.save(1, 1, "x", b"1")
    read = catalog.Catalog.read

    def delete_first(self: catalog.Catalog, name: layout.Name) -> dict[str, Any]:
        monkeypatch.setattr(catalog.Catalog, "read", read)
        other = s3dlio.CheckpointStore(place.base)
        other.save(2, 1, "x", b"2")
        other.keep_last(1)
        return read(self, name)

    monkeypatch.setattr(catalog.Catalog, "read", delete_first)
    assert [info.step for info in plain.list_checkpoints()] == [2]


def check_pieces(shard: dict[str, Any], stored: bytes) -> int:
    begin = 0
    pieces = shard.get("pieces", [f"{shard['size']}:{shard['checksum'][-8:]}"])
    for piece in pieces:
        end, checksum = piece.split(":")
        assert int(checksum, 16) == s3dlio.crc32c(stored[begin : int(end)])
        begin = int(end)
    assert begin == len(stored)
    return len(pieces)


def test_manifest_says_what_is_documented(store: s3dlio.CheckpointStore, small_pieces: int) -> None:
    key = store.save(3, 4, "torch", CONTENT, {"a": 1})
    manifest = json.loads(s3dlio.get(f"{store.uri}/{key}"))
    (shard,) = manifest["shards"]
    stored = s3dlio.get(f"{store.uri}/{shard['key']}")
    name = key.removeprefix("manifests/").removesuffix(".json")
    assert shard["key"].startswith(f"shards/{name}/rank-0.bin")
    assert {name: manifest[name] for name in ("format_version", "framework", "global_step", "epoch", "world_size")} == {
        "format_version": 1,
        "framework": "torch",
        "global_step": 3,
        "epoch": 4,
        "world_size": 1,
    }
    assert (manifest["status"], manifest["user_meta"]) == ("complete", {"a": 1})
    assert (shard["rank"], shard["size"], shard["raw_size"]) == (0, len(stored), len(CONTENT))
    assert shard["checksum"] == f"crc32c:{s3dlio.crc32c(stored):08x}"
    assert shard["raw_checksum"] == f"crc32c:{s3dlio.crc32c(CONTENT):08x}"
    assert shard["etag"] == s3dlio.stat(f"{store.uri}/{shard['key']}")["etag"]
    assert check_pieces(shard, stored) == (1 if shard["key"].endswith(".zst") else 5)  # a compressor holds back more
    pointer = json.loads(s3dlio.get(store.uri + "/latest.json"))
    assert (pointer["manifest_key"], pointer["global_step"]) == (key, 3)


def test_delete_removes_every_save_of_a_step(store: s3dlio.CheckpointStore, place: Place) -> None:
    store.save(1, 1, "x", b"first")
    store.save(2, 1, "x", b"a")
    store.save(2, 1, "x", b"b")
    assert store.delete_checkpoint(2)
    assert not store.delete_checkpoint(2)
    assert store.load_latest() == b"first"
    pointer = json.loads(s3dlio.get(store.uri + "/latest.json"))
    assert pointer["global_step"] == 1
    assert store.delete_checkpoint(1)
    assert store.load_latest() is None
    assert json.loads(s3dlio.get(store.uri + "/latest.json"))["manifest_key"] is None
    assert s3dlio.list(place.base) == [place.uri("latest.json")]


def test_keep_last_deletes_what_is_older(store: s3dlio.CheckpointStore, place: Place) -> None:
    for step in range(5):
        store.save(step, 1, "x", bytes([step]))
    assert [info.step for info in store.keep_last(2)] == [0, 1, 2]
    assert store.keep_last(2) == store.keep_last(9) == []
    assert [info.step for info in store.list_checkpoints()] == [3, 4]
    assert len(s3dlio.list(place.base)) == 2 * 2 + 1
    assert store.load_latest() == b"\4"
    with pytest.raises(s3dlio.InvalidInputError, match="at least 1"):
        store.keep_last(0)


def test_keep_last_counts_only_those_that_can_be_loaded(plain: s3dlio.CheckpointStore) -> None:
    for step in range(4):
        key = plain.save(step, 1, "x", bytes([step]))
    s3dlio.put(f"{plain.uri}/{key}", b"{}")
    assert [info.step for info in plain.keep_last(2)] == [0]
    assert [(info.step, info.status) for info in plain.list_checkpoints()] == [
        (1, "complete"),
        (2, "complete"),
        (3, "damaged"),
    ]


@pytest.mark.parametrize("change", ["missing", "cut"])
def test_keep_last_keeps_what_can_be_loaded(plain: s3dlio.CheckpointStore, change: str) -> None:
    for step in range(3):
        plain.save(step, 1, "x", bytes([step]))
    (shard,) = plain.reader().load_manifest(2)["shards"]
    if change == "missing":
        s3dlio.delete(f"{plain.uri}/{shard['key']}")
    else:
        s3dlio.put(f"{plain.uri}/{shard['key']}", b"")
    assert [info.step for info in plain.keep_last(1)] == [0]
    with pytest.warns(RuntimeWarning, match="going back"):
        assert plain.load_latest(fall_back=True) == b"\1"


# Several ranks.


def test_ranks_save_a_checkpoint_together(store: s3dlio.CheckpointStore, small_pieces: int) -> None:
    records = [
        store.writer(3, rank).save_distributed_shard(5, 1, "torch", CONTENT[rank:]) for rank in reversed(range(3))
    ]
    assert store.load_latest() is None
    records = json.loads(json.dumps(records))  # as they come from other processes
    key = store.writer(3, 1).finalize_distributed_checkpoint(5, 1, "torch", records, {"by": 1})
    reader = store.reader()
    manifest = reader.load_latest_manifest()
    assert manifest == reader.load_manifest(5)
    assert manifest
    assert [record["rank"] for record in manifest["shards"]] == [0, 1, 2]
    for rank in range(3):
        assert reader.read_shard_by_rank(manifest, rank) == CONTENT[rank:]
    (info,) = store.list_checkpoints()
    assert (info.world_size, info.key, info.total_size) == (3, key, sum(record["size"] for record in records))
    with pytest.raises(s3dlio.UnsupportedError, match="3 shards, see reader"):
        store.load_latest()
    with pytest.raises(s3dlio.InvalidInputError, match="no rank 3"):
        reader.read_shard_by_rank(manifest, 3)
    assert store.delete_checkpoint(5)
    assert s3dlio.list(store.uri + "/shards") == []


def test_stream_of_a_shard(store: s3dlio.CheckpointStore, place: Place, small_pieces: int) -> None:
    with store.writer(1, 0).get_distributed_shard_stream(5, 1, "x") as stream:
        assert stream.write_chunk(CONTENT[:100]) == 100
        assert stream.write(memoryview(CONTENT)[100:]) == len(CONTENT) - 100
        stream.flush()
        assert stream.bytes_written() == len(CONTENT)
    record = stream.finalize()
    stream.cancel()  # too late to do anything
    store.writer(1, 0).finalize_distributed_checkpoint(5, 1, "x", [record])
    assert store.load_latest() == CONTENT

    stream = store.writer(1, 0).get_distributed_shard_stream(6, 1, "x")
    stream.write_chunk(CONTENT)
    stream.cancel()
    with pytest.raises(s3dlio.ClosedError):
        stream.write_chunk(b"more")
    with pytest.raises(s3dlio.ClosedError):
        stream.finalize()
    with pytest.raises(ZeroDivisionError), store.writer(1, 0).get_distributed_shard_stream(7, 1, "x") as stream:
        raise ZeroDivisionError
    assert len(s3dlio.list(place.uri("shards/"), recursive=False)) == 1
    assert place.leftovers() == []


def test_shards_that_were_finalized_twice_stay_for_the_newest(plain: s3dlio.CheckpointStore) -> None:
    """Who has no answer to the first asks again.  To delete the older manifest took the shards of both."""
    record = plain.writer(1, 0).save_distributed_shard(5, 1, "x", CONTENT)
    for _ in range(3):
        plain.writer(1, 0).finalize_distributed_checkpoint(5, 1, "x", [record])
    assert len(plain.keep_last(1)) == 2
    assert plain.load_latest() == CONTENT
    assert plain.delete_checkpoint(5)
    assert s3dlio.list(plain.uri + "/shards") == []


def test_ranks_that_do_not_fit_are_refused_by_name(plain: s3dlio.CheckpointStore) -> None:
    records = [plain.writer(4, rank).save_distributed_shard(5, 1, "x", b"1") for rank in range(4)]
    other = plain.writer(4, 2).save_distributed_shard(6, 1, "x", b"1")
    writer = plain.writer(4, 0)
    for given, text in (
        (records[:3], "rank 3 is missing: 3 of 4"),
        ([records[0], records[2]], "ranks 1, 3 are missing"),
        ([*records, records[1], records[3]], "ranks 1, 3 are more than once"),
        ([records[0], records[1], other, records[3]], "is of step 6, not 5"),
        ([], "ranks 0, 1, 2, 3 are missing"),
        ([None], "a shard's record must be a dict"),
    ):
        with pytest.raises(s3dlio.InvalidInputError, match=text):
            writer.finalize_distributed_checkpoint(5, 1, "x", given)  # type: ignore[arg-type]
    with pytest.raises(s3dlio.InvalidInputError, match="ranks 2, 3 are in a world of 2"):
        plain.writer(2, 0).finalize_distributed_checkpoint(5, 1, "x", records)
    with pytest.raises(s3dlio.InvalidInputError, match="rank must be"):
        plain.writer(2, 2)
    assert plain.load_latest() is None
    s3dlio.delete(f"{plain.uri}/{records[1]['key']}")
    with pytest.raises(s3dlio.CorruptDataError, match="the shard of rank 1 is not there"):
        writer.finalize_distributed_checkpoint(5, 1, "x", records)
    s3dlio.put(f"{plain.uri}/{records[1]['key']}", b"22")
    with pytest.raises(s3dlio.CorruptDataError, match="the shard of rank 1 has 2 bytes instead of 1"):
        writer.finalize_distributed_checkpoint(5, 1, "x", records)


def test_shard_with_another_tag_is_another_one_where_tags_are_the_stores(
    plain: s3dlio.CheckpointStore, place: Place
) -> None:
    """Where each mount has its own inode numbers, as sshfs, no other host than the writer's could finalize."""
    record = plain.writer(1, 0).save_distributed_shard(5, 1, "x", b"1") | {"etag": "11-18ebf848cc15f00a-1"}
    if place.base.startswith(("file", "direct")):
        plain.writer(1, 0).finalize_distributed_checkpoint(5, 1, "x", [record])
        assert plain.load_latest() == b"1"
    else:
        with pytest.raises(s3dlio.CorruptDataError, match="the shard of rank 0 is not the one of its record"):
            plain.writer(1, 0).finalize_distributed_checkpoint(5, 1, "x", [record])


def test_compressed_shard_has_pieces_too(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "PIECE", 4 << 20)
    data = random.Random(2).randbytes(30 << 20)
    store = s3dlio.CheckpointStore(place.base, options=s3dlio.WriterOptions(compression="zstd", level=1, threads=0))
    store.save(1, 1, "x", data)
    manifest = store.reader().load_manifest(1)
    (shard,) = manifest["shards"]
    stored = s3dlio.get(place.uri(shard["key"]))
    assert check_pieces(shard, stored) == 8
    assert store.load_latest() == data
    assert store.reader().read_shard_range(manifest, 0, 20_000_000, 1000) == data[20_000_000:20_001_000]
    s3dlio.put(place.uri(shard["key"]), flipped(stored, 8 * 17_000_000), durability="none")
    with pytest.raises(s3dlio.CorruptDataError, match=r"the shard of rank 0 is damaged at byte 1\d{7}:"):
        store.load_latest()
    assert store.reader().read_shard_range(manifest, 0, 5_000_000, 1000) == data[5_000_000:5_001_000]
    with pytest.raises(s3dlio.CorruptDataError, match="damaged at byte"):
        store.reader().read_shard_range(manifest, 0, 20_000_000, 1000)


# The functions.


def test_functions_do_the_same(place: Place) -> None:
    assert s3dlio.load_checkpoint(place.base) is None
    s3dlio.save_checkpoint(place.base, 1, 1, "torch", CONTENT, {"a": 1})
    assert s3dlio.load_checkpoint(place.base) == CONTENT
    assert s3dlio.load_checkpoint_with_validation(place.base) == CONTENT
    records = [s3dlio.save_distributed_shard(place.base, 2, 1, "x", bytes([rank]), 2, rank) for rank in range(2)]
    s3dlio.finalize_distributed_checkpoint(place.base, 2, 1, "x", records, 2, 0)
    for rank, record in enumerate(records):
        uri = place.uri(record["key"])
        assert s3dlio.load_checkpoint_with_validation(uri) == bytes([rank])
        s3dlio.put(uri, b"?")
        with pytest.raises(s3dlio.CorruptDataError):
            s3dlio.load_checkpoint_with_validation(uri)
        assert s3dlio.load_checkpoint_with_validation(uri, validate_integrity=False) == b"?"
    lonely = s3dlio.save_distributed_shard(place.base, 3, 1, "x", b"1", 2, 0)
    with pytest.raises(s3dlio.NotFoundError, match="no manifest names this shard"):
        s3dlio.load_checkpoint_with_validation(place.uri(lonely["key"]))


def test_progress_is_told(store: s3dlio.CheckpointStore, small_pieces: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arguments, "_PART", 100_000)
    monkeypatch.setattr(loading, "_STEP", 100_000)
    told: list[int] = []
    store.save(1, 1, "x", CONTENT, progress=told.append)
    assert told == [100_000, 200_000, 300_000, 300_001]
    told.clear()
    store.load_latest(progress=told.append)
    assert told == sorted(told)
    assert told[-1] == len(CONTENT)
    assert len(told) > 3
