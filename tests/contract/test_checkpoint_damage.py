"""What checkpoints promise when something is damaged, left over or deleted meanwhile, run on every store."""

from __future__ import annotations

import gc
import json
import random
import re
import weakref
from collections.abc import Callable
from contextlib import nullcontext, suppress
from typing import Any

import numpy as np
import pytest
from checkpoints import CONTENT, flipped
from places import Place

import s3dlio
from s3dlio._stores.registry import store_for
from s3dlio._uri import Uri, parse_uri
from s3dlio.checkpoint import layout, loading

pytestmark = pytest.mark.parametrize("place", ["file", "direct", "memory", "s3", "az"], indirect=True)


def test_every_flipped_bit_is_seen(
    store: s3dlio.CheckpointStore, place: Place, small_pieces: int, figure: Callable[[str], None]
) -> None:
    choose = random.Random(5)
    store.save(1, 1, "x", CONTENT[::-1])
    key = store.save(2, 1, "x", CONTENT, {"a": 1})
    (shard,) = json.loads(s3dlio.get(f"{store.uri}/{key}"))["shards"]
    flips = 12 if place.is_remote else 100
    for name in (shard["key"], key):
        whole = s3dlio.get(place.uri(name))
        for bit in choose.sample(range(8 * len(whole)), flips):
            s3dlio.put(place.uri(name), flipped(whole, bit), durability="none")
            with pytest.raises(RuntimeError) as caught:
                store.load_latest()
            assert place.uri(name) in str(caught.value), bit
            if name != key:
                assert "the shard of rank 0 is damaged at byte" in str(caught.value)
        with pytest.warns(RuntimeWarning, match="going back to the one before"):
            assert store.load_latest(fall_back=True) == CONTENT[::-1]
        s3dlio.put(place.uri(name), whole)
    # The pointer is a hint: damaged it is passed over.
    whole = s3dlio.get(place.uri("latest.json"))
    for bit in choose.sample(range(8 * len(whole)), flips):
        s3dlio.put(place.uri("latest.json"), flipped(whole, bit), durability="none")
        assert store.load_latest() == CONTENT
    figure(f"checkpoint damage: {3 * flips} flipped bits on {place.base.partition(':')[0]}, 0 unseen")


def test_damage_is_placed(plain: s3dlio.CheckpointStore, small_pieces: int) -> None:
    plain.save(1, 1, "x", CONTENT)
    (uri,) = s3dlio.list(plain.uri + "/shards")
    s3dlio.put(uri, flipped(CONTENT, 8 * 150_000))
    with pytest.raises(s3dlio.CorruptDataError, match=r"rank 0 is damaged at byte 140000: its bytes up to 210000 have"):
        plain.load_latest()
    reader = plain.reader()
    manifest = reader.load_manifest(1)
    with pytest.raises(s3dlio.CorruptDataError, match="at byte 140000"):
        reader.read_shard_range(manifest, 0, 209_999, 1)
    assert reader.read_shard_range(manifest, 0, 210_000, 1) == CONTENT[210_000:210_001]
    assert reader.read_shard_range(manifest, 0, 209_999, 1, verify=False) == CONTENT[209_999:210_000]


@pytest.mark.parametrize("change", ["cut", "longer", "missing", "empty"])
def test_shard_of_another_size_is_seen(store: s3dlio.CheckpointStore, change: str) -> None:
    store.save(1, 1, "x", b"before")
    (first,) = s3dlio.list(store.uri + "/shards")
    store.save(2, 1, "x", CONTENT)
    (uri,) = (uri for uri in s3dlio.list(store.uri + "/shards") if uri != first)
    whole = s3dlio.get(uri)
    if change == "missing":
        s3dlio.delete(uri)
    else:
        s3dlio.put(uri, {"cut": whole[:-1], "longer": whole + b"1", "empty": b""}[change])
    with pytest.raises(s3dlio.CorruptDataError, match=re.escape(uri.rpartition("/")[0])):
        store.load_latest()
    with pytest.warns(RuntimeWarning, match="going back"):
        assert store.load_latest(fall_back=True) == b"before"
    assert store.load(1) == b"before"


def test_fall_back_that_finds_nothing_whole_raises(plain: s3dlio.CheckpointStore) -> None:
    for step in range(2):
        plain.save(step, 1, "x", CONTENT)
    for uri in s3dlio.list(plain.uri + "/shards"):
        s3dlio.put(uri, CONTENT[:-1] + b"?")
    with pytest.warns(RuntimeWarning), pytest.raises(s3dlio.CorruptDataError, match="ckpt-1-"):
        plain.load_latest(fall_back=True)


def test_failed_load_holds_on_to_nothing(
    store: s3dlio.CheckpointStore, small_pieces: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error kept itself, and with its frames all that was loaded, until the garbage collector came; and while an
    older checkpoint was loaded instead."""
    store.save(1, 1, "x", b"old")
    (first,) = s3dlio.list(store.uri + "/shards")
    store.save(2, 1, "x", CONTENT)
    (uri,) = (uri for uri in s3dlio.list(store.uri + "/shards") if uri != first)
    s3dlio.put(uri, flipped(s3dlio.get(uri), 8 * 150_000), durability="none")
    made: list[weakref.ref[Any]] = []

    def new_array(nbytes: int) -> Any:
        assert not any(of_before() is not None for of_before in made)
        array = np.empty(nbytes, np.uint8)
        made.append(weakref.ref(array))
        return array

    monkeypatch.setattr(loading, "new_bytes", new_array)
    gc.collect()
    gc.disable()
    try:
        for fall_back in (False, True, False):
            with suppress(s3dlio.CorruptDataError), pytest.warns(RuntimeWarning) if fall_back else nullcontext():
                store.load_latest(fall_back)
    finally:
        gc.enable()
    assert len(made) == 4


def test_pointer_that_is_gone_or_wrong_is_no_disaster(plain: s3dlio.CheckpointStore) -> None:
    plain.save(1, 1, "x", b"1")
    old = s3dlio.get(plain.uri + "/latest.json")
    plain.save(2, 1, "x", b"2")
    nowhere = layout.pointer_document(layout.new_name(9))
    for pointer in (b"", b"{", b"[]", b"{}", old, nowhere, None):
        if pointer is None:
            s3dlio.delete(plain.uri + "/latest.json")
        else:
            s3dlio.put(plain.uri + "/latest.json", pointer)
        assert plain.load_latest() == b"2"
    s3dlio.put(plain.uri + "/latest.json", nowhere)
    key = plain.save(3, 1, "x", b"3")
    assert json.loads(s3dlio.get(plain.uri + "/latest.json"))["manifest_key"] == key


def test_manifest_that_is_deleted_between_its_opening_and_its_reading_is_gone(
    plain: s3dlio.CheckpointStore, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On Azure a list, a deletion or a load failed: what had been opened was replaced."""
    plain.save(1, 1, "x", b"1")
    store = store_for(parse_uri(place.base))
    real_open, last = store.open, [1]

    def open_and_wait(uri: Uri) -> Any:
        source = real_open(uri)
        if f"manifests/ckpt-{last[0]}-" in uri.key:
            last[0] += 1
            monkeypatch.setattr(store, "open", real_open)
            other = s3dlio.CheckpointStore(place.base)
            other.save(last[0], 1, "x", b"%d" % last[0])
            other.keep_last(1)
        return source

    monkeypatch.setattr(store, "open", open_and_wait)
    assert plain.list_checkpoints()[-1].step <= 2
    monkeypatch.setattr(store, "open", open_and_wait)
    assert plain.load_latest() in (b"2", b"3")
    monkeypatch.setattr(store, "open", open_and_wait)
    assert plain.delete_checkpoint(3)
    assert plain.load_latest() == b"4"
    monkeypatch.setattr(store, "open", open_and_wait)
    plain.clean_up(0)
    assert plain.load_latest() == b"5"


def test_manifest_that_is_not_complete_is_passed_over(plain: s3dlio.CheckpointStore) -> None:
    plain.save(1, 1, "x", b"1")
    key = plain.save(2, 1, "x", b"2")
    manifest = plain.reader().load_manifest(2)
    s3dlio.put(f"{plain.uri}/{key}", layout.seal(manifest | {"status": "writing"}))
    assert plain.load_latest() == b"1"
    assert [info.is_complete() for info in plain.list_checkpoints()] == [True, False]
    # What such a manifest of another program has is not for us to understand.
    lonely = plain.writer(2, 0).save_distributed_shard(3, 1, "x", b"3")
    for shards_of_it in ([5, {"key": 5}], {}, None):
        s3dlio.put(f"{plain.uri}/{key}", layout.seal(manifest | {"status": "writing", "shards": shards_of_it}))
        with pytest.raises(s3dlio.NotFoundError, match="no manifest names"):
            s3dlio.load_checkpoint_with_validation(f"{plain.uri}/{lonely['key']}")
    assert len(plain.clean_up(0)) == 2
    assert plain.delete_checkpoint(2)
    assert plain.load_latest() == b"1"


def test_unknown_fields_are_kept(plain: s3dlio.CheckpointStore) -> None:
    record = plain.writer(1, 0).save_distributed_shard(1, 1, "x", b"1")
    key = plain.writer(1, 0).finalize_distributed_checkpoint(1, 1, "x", [record | {"host": "n1"}])
    manifest = plain.reader().load_manifest(1)
    s3dlio.put(f"{plain.uri}/{key}", layout.seal(manifest | {"git": "abc"}))
    found = plain.reader().load_latest_manifest()
    assert found
    assert (found["git"], found["shards"][0]["host"]) == ("abc", "n1")
    assert plain.load_latest() == b"1"


def test_checkpoint_of_the_reference_is_loaded(plain: s3dlio.CheckpointStore) -> None:
    """Its names have seconds, its records nothing of the raw bytes, its manifests no checksum."""
    for step, ending in ((1, ""), (2, ".zst")):
        name = f"ckpt-{step}-20260101-00000{step}"
        key = f"shards/rr/00/{name}/rank-0.bin"
        s3dlio.put(f"{plain.uri}/{key}", CONTENT, compression="zstd" if ending else None)
        stored = s3dlio.get(f"{plain.uri}/{key}{ending}")
        record = {"rank": 0, "key": key + ending, "size": len(stored), "etag": "e"}
        record["checksum"] = f"crc32c:{s3dlio.crc32c(stored):08x}"
        manifest = {"format_version": 1, "framework": "torch", "global_step": step, "epoch": 1, "world_size": 1}
        manifest |= {"wall_time": "2026-01-01T00:00:00+00:00", "shards": [record], "status": "complete"}
        s3dlio.put(f"{plain.uri}/manifests/{name}.json", json.dumps(manifest).encode())
        assert plain.load_latest() == plain.load(step) == CONTENT
        room = bytearray(len(CONTENT))
        assert plain.load_latest(into=room) == len(CONTENT)
        assert room == CONTENT
        found = plain.reader().load_manifest(step)
        assert plain.reader().read_shard_range(found, 0, 10, 5) == CONTENT[10:15]
    plain.save(3, 1, "x", b"3")
    assert plain.load_latest() == b"3"
    assert plain.clean_up(0) == []
    assert [info.step for info in plain.keep_last(1)] == [1, 2]
    assert len(s3dlio.list(plain.uri + "/shards")) == 1


def test_clean_up_removes_what_no_manifest_names(store: s3dlio.CheckpointStore, place: Place) -> None:
    store.save(1, 1, "x", b"1")
    there = s3dlio.list(place.base)
    left = [store.writer(2, rank).save_distributed_shard(2, 1, "x", CONTENT)["key"] for rank in range(2)]
    assert store.clean_up(older_than=3600) == []
    assert store.clean_up(older_than=0) == sorted(key.rpartition("/")[0] + "/" for key in left)
    assert s3dlio.list(place.base) == there
    assert store.load_latest() == b"1"
    for wrong in (-1, float("inf"), float("nan"), 1e300):
        with pytest.raises(s3dlio.InvalidInputError, match="older_than"):
            store.clean_up(wrong)
    with pytest.raises(TypeError, match="older_than must be a timedelta or seconds, not '1'"):
        store.clean_up("1")  # type: ignore[arg-type]


def test_clean_up_does_nothing_while_a_manifest_cannot_be_read(plain: s3dlio.CheckpointStore) -> None:
    key = plain.save(1, 1, "x", b"1")
    whole = s3dlio.get(f"{plain.uri}/{key}")
    plain.writer(2, 0).save_distributed_shard(2, 1, "x", b"2")
    s3dlio.put(f"{plain.uri}/{key}", whole[:-20])
    with pytest.raises(s3dlio.CorruptDataError, match="the manifest is damaged"):
        plain.clean_up(0)
    assert len(s3dlio.list(plain.uri + "/shards")) == 2


def test_checkpoint_that_is_deleted_while_it_is_loaded_gives_way_to_the_newest(
    plain: s3dlio.CheckpointStore, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    from s3dlio.checkpoint import store as module

    plain.save(1, 1, "x", b"1")
    load, calls = module.load_shard, []

    def delete_first(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == 1:
            other = s3dlio.CheckpointStore(place.base)
            other.save(2, 1, "x", b"2")
            other.keep_last(1)
        return load(*arguments)

    monkeypatch.setattr(module, "load_shard", delete_first)
    assert plain.load_latest() == b"2"


def test_checkpoint_that_is_deleted_in_the_middle_of_a_load_gives_way_to_the_newest(
    store: s3dlio.CheckpointStore, place: Place, small_pieces: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On Azure that was an error: what had been opened was replaced."""
    monkeypatch.setattr(loading, "_STEP", 50_000)
    store.save(1, 1, "x", CONTENT)
    read, calls = loading._read_exactly, []

    def delete_between(*arguments: Any) -> None:
        calls.append(1)
        if len(calls) == 2:
            other = s3dlio.CheckpointStore(place.base)
            other.save(2, 1, "x", b"2")
            other.keep_last(1)
        read(*arguments)

    monkeypatch.setattr(loading, "_read_exactly", delete_between)
    # Files and memory stay for whoever has opened them.
    assert store.load_latest() == (b"2" if place.is_remote else CONTENT)
    assert store.load_latest() == b"2"
