"""What every store promises beside its writer, run on every store."""

from __future__ import annotations

import io
import os
import random
import re
import threading

import numpy as np
import pytest
from places import Place

import s3dlio
from s3dlio._stores.registry import store_for
from s3dlio._uri import parse_uri


def names(place: Place, found: list[str]) -> list[str]:
    return [uri.removeprefix(place.base + "/") for uri in found]


@pytest.fixture
def tree(place: Place) -> Place:
    for name in ("b", "a", "ab", "s/x", "s/t/y", "s.z"):
        s3dlio.put(place.uri(name), name.encode())
    return place


def test_list_is_recursive_and_in_order_of_names(tree: Place) -> None:
    assert names(tree, s3dlio.list(tree.base)) == ["a", "ab", "b", "s.z", "s/t/y", "s/x"]
    assert s3dlio.list(tree.base + "/") == s3dlio.list(tree.base)


def test_list_of_one_level_shows_folders_with_a_slash(tree: Place) -> None:
    assert names(tree, s3dlio.list(tree.base, recursive=False)) == ["a", "ab", "b", "s.z", "s/"]
    assert names(tree, s3dlio.list(tree.uri("s"), False)) == ["s/t/", "s/x"]


def test_list_of_an_object_is_itself(tree: Place) -> None:
    assert s3dlio.list(tree.uri("a")) == [tree.uri("a")]


def test_list_of_nothing_is_empty(tree: Place) -> None:
    assert s3dlio.list(tree.uri("nothing/here")) == []


def test_delete_removes_one_object_and_only_that(tree: Place) -> None:
    s3dlio.delete(tree.uri("a"))
    assert not s3dlio.exists(tree.uri("a"))
    assert names(tree, s3dlio.list(tree.base)) == ["ab", "b", "s.z", "s/t/y", "s/x"]
    s3dlio.delete(tree.uri("a"))


def test_delete_recursive_removes_what_is_below(tree: Place) -> None:
    s3dlio.delete(tree.uri("s"), recursive=True)
    assert names(tree, s3dlio.list(tree.base)) == ["a", "ab", "b", "s.z"]
    s3dlio.delete(tree.uri("s"), recursive=True)


def test_stat_of_an_object_tells_size_time_and_tag(place: Place) -> None:
    s3dlio.put(place.uri("a"), b"12345")
    before = s3dlio.stat(place.uri("a"))
    assert before["size"] == 5
    assert re.fullmatch(r"20\d\d-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+Z", before["last_modified"])
    assert s3dlio.stat(place.uri("a")) == before
    s3dlio.put(place.uri("a"), b"54321")
    assert s3dlio.stat(place.uri("a"))["etag"] != before["etag"]


@pytest.mark.parametrize("operation", [s3dlio.get, s3dlio.stat, s3dlio.open_reader])
def test_missing_object_is_not_found_and_named(place: Place, operation: object) -> None:
    with pytest.raises(s3dlio.NotFoundError) as caught:
        operation(place.uri("nothing"))  # type: ignore[operator]
    assert isinstance(caught.value, RuntimeError)
    assert isinstance(caught.value, FileNotFoundError)
    assert place.uri("nothing") in str(caught.value)
    assert caught.value.uri == caught.value.filename == place.uri("nothing")
    assert caught.value.strerror


def test_exists_is_true_for_objects_only(tree: Place) -> None:
    assert s3dlio.exists(tree.uri("a"))
    assert not s3dlio.exists(tree.uri("nothing"))
    assert not s3dlio.exists(tree.uri("s"))


RANGES = [(0, None), (0, 0), (0, 1), (1, 4095), (4095, 2), (4096, 4096), (511, 70_000), (99_999, 1), (99_999, 5)]


@pytest.mark.parametrize(("offset", "length"), [*RANGES, (100_000, 1), (100_000, None), (10**9, 5)])
def test_get_range_returns_just_those_bytes(place: Place, offset: int, length: int | None) -> None:
    data = random.Random(1).randbytes(100_000)
    s3dlio.put(place.uri("a"), data)
    end = None if length is None else offset + length
    assert s3dlio.get_range(place.uri("a"), offset, length) == data[offset:end]


@pytest.mark.parametrize(("offset", "length"), [(-1, None), (0, -1)])
def test_get_range_of_a_negative_range_is_refused(place: Place, offset: int, length: int) -> None:
    with pytest.raises(s3dlio.InvalidInputError, match="must not be negative"):
        s3dlio.get_range(place.uri("a"), offset, length)


def test_arguments_of_the_wrong_kind_are_named(place: Place) -> None:
    with pytest.raises(TypeError, match="offset must be a whole number"):
        s3dlio.get_range(place.uri("a"), "0", 1)
    with pytest.raises(TypeError, match="length must be a whole number"):
        s3dlio.get_range(place.uri("a"), 0, 0.5)
    with pytest.raises(TypeError, match="buffer_size must be a whole number"):
        s3dlio.open_reader(place.uri("a"), buffer_size="1")
    s3dlio.put(place.uri("a"), b"0123456789")
    assert s3dlio.get_range(place.uri("a"), np.int64(2), np.int64(3)) == b"234"
    for size in (0, -1, 2**50):
        with pytest.raises(s3dlio.InvalidInputError, match="buffer_size must be 1 to"):
            s3dlio.open_reader(place.uri("a"), buffer_size=size)


def test_get_returns_bytes(place: Place) -> None:
    s3dlio.put(place.uri("a"), bytearray(b"abc"))
    assert type(s3dlio.get(place.uri("a"))) is bytes
    s3dlio.put(place.uri("a"), b"")
    assert s3dlio.get(place.uri("a")) == b""


def test_large_object_comes_back_whole(place: Place) -> None:
    data = random.Random(2).randbytes(40_000_003)
    s3dlio.put(place.uri("a"), data)
    assert s3dlio.get(place.uri("a")) == data


def test_reader_behaves_like_a_file(place: Place) -> None:
    data = random.Random(3).randbytes(3_000_000)
    s3dlio.put(place.uri("a"), data)
    like = io.BytesIO(data)
    choose = random.Random(4)
    with s3dlio.open_reader(place.uri("a"), buffer_size=10_000) as reader:
        assert reader.seekable()
        assert reader.readable()
        for _ in range(300):
            whence = choose.choice((os.SEEK_SET, os.SEEK_CUR, os.SEEK_END))
            offset = choose.randrange(0, 3_100_000) if whence == os.SEEK_SET else choose.randrange(-2000, 1000)
            if whence != os.SEEK_CUR or like.tell() + offset >= 0:
                assert reader.seek(offset, whence) == like.seek(offset, whence)
            size = choose.choice((0, 1, 10, 5_000, 10_000, 200_000))
            assert reader.read(size) == like.read(size)
            assert reader.tell() == like.tell()
            target = bytearray(choose.choice((0, 1, 9_999, 100_000)))
            expected = bytearray(len(target))
            assert reader.readinto(target) == like.readinto(expected)
            assert target == expected
        reader.seek(1_000_000)
        assert reader.read() == data[1_000_000:]


def test_reader_refuses_what_a_file_refuses(place: Place) -> None:
    s3dlio.put(place.uri("a"), b"abc")
    reader = s3dlio.open_reader(place.uri("a"))
    with pytest.raises(ValueError, match="before the beginning"):
        reader.seek(-1)
    with pytest.raises(io.UnsupportedOperation):
        reader.write(b"x")
    reader.close()
    reader.close()
    with pytest.raises(ValueError, match="closed"):
        reader.read()


def test_reader_goes_on_with_the_version_it_opened(place: Place) -> None:
    old, new = random.Random(5).randbytes(2_000_000), random.Random(6).randbytes(2_000_000)
    s3dlio.put(place.uri("a"), old)
    with s3dlio.open_reader(place.uri("a"), buffer_size=1000) as reader:
        assert reader.read(500) == old[:500]
        s3dlio.put(place.uri("a"), new)
        if place.is_remote:
            with pytest.raises(s3dlio.StorageError, match="replaced since it was opened"):
                reader.read()
        else:
            assert reader.read() == old[500:]
    assert s3dlio.get(place.uri("a")) == new


def test_decompressing_reader_behaves_like_a_file(place: Place) -> None:
    data = random.Random(7).randbytes(500_000) + bytes(2_000_000)
    s3dlio.put(place.uri("a"), data, compression="zstd")
    like = io.BytesIO(data)
    choose = random.Random(8)
    with s3dlio.open_reader(place.uri("a.zst"), decompress=True, buffer_size=10_000) as reader:
        for _ in range(40):
            position = choose.randrange(2_600_000)
            reader.seek(position)
            like.seek(position)
            size = choose.choice((0, 1, 10_000, 300_000))
            assert reader.read(size) == like.read(size)
        assert reader.seek(-100, os.SEEK_END) == len(data) - 100
        assert reader.read() == data[-100:]


def test_reader_knows_zstd_only_when_asked(place: Place) -> None:
    s3dlio.put(place.uri("a"), bytes(100_000), compression="zstd")
    with s3dlio.open_reader(place.uri("a.zst")) as reader:
        assert reader.read() == s3dlio.get(place.uri("a.zst"))
    s3dlio.put(place.uri("b.zst"), b"no zstd frame")
    with s3dlio.open_reader(place.uri("b.zst"), decompress=True) as reader, pytest.raises(s3dlio.CorruptDataError):
        reader.read()


def test_damaged_or_cut_zstd_object_is_an_error(place: Place) -> None:
    s3dlio.put(place.uri("a"), random.Random(9).randbytes(3000), compression="zstd")
    stored = s3dlio.get(place.uri("a.zst"))
    choose = random.Random(10)
    damaged = [stored[:length] for length in (0, 1, 5, len(stored) // 2, len(stored) - 1)]
    damaged.append(stored + b"tail")
    for _ in range(50):
        at, bit = choose.randrange(len(stored)), choose.randrange(8)
        damaged.append(stored[:at] + bytes([stored[at] ^ (1 << bit)]) + stored[at + 1 :])
    for number, data in enumerate(damaged):
        s3dlio.put(place.uri("bad"), data)
        with s3dlio.open_reader(place.uri("bad"), decompress=True) as reader:
            with pytest.raises(s3dlio.S3dlioError) as caught:
                reader.read()
            assert place.uri("bad") in str(caught.value), f"case {number}"


@pytest.mark.parametrize("size", [1000, 1 << 20, 2_097_095, 3 << 20])
def test_zstd_read_of_just_the_content_meets_the_damage_behind_it(place: Place, size: int) -> None:
    # The checksum stands behind the last byte.  A read of exactly the content's size did not look at it where it lay in
    # an input chunk of its own, as with 2,097,095 random bytes.
    data = random.Random(size).randbytes(size)
    s3dlio.put(place.uri("a"), data, compression="zstd")
    stored = s3dlio.get(place.uri("a.zst"))
    flipped = bytearray(stored)
    flipped[size // 2] ^= 1
    for bad in (bytes(flipped), stored[:-4], stored[:-1]):
        s3dlio.put(place.uri("bad"), bad)
        target = bytearray(size)
        with s3dlio.open_reader(place.uri("bad"), decompress=True) as reader, pytest.raises(s3dlio.CorruptDataError):
            reader.readinto(target)
        with (
            s3dlio.open_reader(place.uri("bad"), decompress=True, buffer_size=1) as reader,
            pytest.raises(s3dlio.CorruptDataError),
        ):
            reader.read(size)
    with s3dlio.open_reader(place.uri("a.zst"), decompress=True) as reader:
        assert reader.readinto(target) == size
        assert target == data
        assert reader.read() == b""
    with s3dlio.open_reader(place.uri("a.zst"), decompress=True) as reader:
        raw = reader.raw
        assert [raw.read(1), raw.readinto(bytearray()), raw.read(2)] == [data[:1], 0, data[1:3]]


def test_raw_reader_does_not_write_into_bytes(place: Place) -> None:
    s3dlio.put(place.uri("a"), b"OVERWRITTEN", compression="zstd")
    s3dlio.put(place.uri("b"), b"OVERWRITTEN")
    victim = bytes(bytearray(b"immutable!!"))
    for name, decompress in (("a.zst", True), ("b", False)):
        with (
            s3dlio.open_reader(place.uri(name), decompress=decompress) as reader,
            pytest.raises((TypeError, ValueError)),
        ):
            reader.raw.readinto(victim)
    assert victim == b"immutable!!"


def test_new_folders_come_with_the_object(place: Place) -> None:
    s3dlio.put(place.uri("some/new/folder/a"), b"x")
    assert s3dlio.get(place.uri("some/new/folder/a")) == b"x"


def test_put_if_stores_only_over_what_was_seen(place: Place) -> None:
    uri = parse_uri(place.uri("a"))
    store, options = store_for(uri), s3dlio.WriterOptions()
    assert not store.put_if(uri, b"0", "of-nothing", options)
    assert store.put_if(uri, b"1", None, options)
    assert not store.put_if(uri, b"2", None, options)
    seen = store.stat(uri)["etag"]
    assert store.put_if(uri, b"3", seen, options)
    assert not store.put_if(uri, b"4", seen, options)
    assert s3dlio.get(place.uri("a")) == b"3"


def test_of_many_that_put_if_at_once_one_does(place: Place) -> None:
    uri = parse_uri(place.uri("a"))
    store, options = store_for(uri), s3dlio.WriterOptions()
    s3dlio.put(place.uri("a"), b"before")
    for _ in range(5):
        seen = store.stat(uri)["etag"]
        start, done = threading.Barrier(4), []

        def try_it(number: int, seen: str = seen, start: threading.Barrier = start, done: list[int] = done) -> None:
            start.wait(timeout=30)
            if store.put_if(uri, random.randbytes(10) + bytes([number]), seen, options):
                done.append(number)

        threads = [threading.Thread(target=try_it, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(timeout=60)
        assert len(done) == 1
        assert s3dlio.get(place.uri("a"))[-1] == done[0]
