"""Names, manifests and the pointer as text; what comes from outside is not trusted."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import s3dlio
from s3dlio.checkpoint import layout
from s3dlio.checkpoint.layout import Name

NAME = Name("20261127-120000-123456789-0badcafe", 7)
RECORD: dict[str, Any] = {
    "rank": 0,
    "key": "shards/ckpt-7-20261127-120000-123456789-0badcafe/rank-0.bin.zst",
    "size": 100,
    "etag": "e",
    "checksum": "crc32c:00000001",
    "raw_size": 200,
    "raw_checksum": "crc32c:00000002",
    "pieces": ["40:00000003", "100:00000004"],
}
MANIFEST = layout.new_manifest(7, 1, "torch", [RECORD], 1, {"a": 1})


def test_names_are_unique_and_in_the_order_of_their_making() -> None:
    names = [layout.new_name(step) for step in (5, 3, 5, 1000)]
    assert names == sorted(names)
    assert len({str(name) for name in names}) == 4
    for name in names:
        assert layout.parse_manifest_key(name.manifest_key) == name
        assert layout.parse_shard(RECORD | {"key": name.shard_key(0) + ".zst"}).step == name.step


def test_name_is_later_than_what_it_must_follow() -> None:
    later = layout.new_name(1, after=NAME.moment + 10**18)
    assert later.moment == NAME.moment + 10**18 + 1
    assert later > NAME


def test_moment_of_a_name() -> None:
    assert NAME.moment == 1795780800123456789
    assert Name("20261127-120000", 1).moment == 1795780800000000000
    assert Name("99999999-999999", 1).moment == 0


@pytest.mark.parametrize(
    "key",
    [
        "manifests/ckpt-7.json",
        "manifests/ckpt-7-x.json",
        "manifests/ckpt--7-20261127-120000.json",
        "manifests/ckpt-7-20261127-120000.json.tmp",
        "manifests/a/ckpt-7-20261127-120000.json",
        "ckpt-7-20261127-120000.json",
        "../manifests/ckpt-7-20261127-120000.json",
        # A name that is not what it would be written as again is not found under that; the newest of all, it stopped
        # every load.
        "manifests/ckpt-07-20261127-120000.json",
        "manifests/ckpt-\u0667-20261127-120000.json",
        "manifests/ckpt-7-99999999-999999.json",
        "manifests/ckpt-7-20261301-120000.json",
    ],
)
def test_what_is_no_manifest_is_passed_over(key: str) -> None:
    assert layout.parse_manifest_key(key) is None


@pytest.mark.parametrize(
    ("field", "value", "text"),
    [
        ("key", "shards/ckpt-7-20261127-120000/../../../etc/rank-0.bin", "is no key of a shard"),
        ("key", "shards/../ckpt-7-20261127-120000/rank-0.bin", "is no key of a shard"),
        ("key", "/shards/ckpt-7-20261127-120000/rank-0.bin", "is no key of a shard"),
        ("key", "shards/ckpt-7-20261127-120000/rank-0.bin\n", "is no key of a shard"),
        ("key", "latest.json", "is no key of a shard"),
        ("key", 5, "is no key of a shard"),
        ("key", "shards/ckpt-7-20261127-120000/rank-1.bin", "is not of rank 0"),
        ("key", "shards/ckpt-7-20261127-120000/rank-0.bin", "another raw size or checksum"),
        ("rank", -1, "rank must be a whole number"),
        ("rank", True, "rank must be a whole number"),
        ("size", "100", "size must be a whole number"),
        ("size", 1 << 63, "size must be a whole number"),
        ("size", 99, "its pieces do not end where it does"),
        ("raw_size", 1.5, "raw_size must be a whole number"),
        ("checksum", None, "a checksum must be like"),
        ("checksum", "crc32c:0000000G", "a checksum must be like"),
        ("raw_checksum", 5, "a checksum must be like"),
        ("pieces", ["40:00000003"], "its pieces do not end where it does"),
        ("pieces", [], "its pieces do not end where it does"),
        ("pieces", ["40:00000003", "40:00000003", "100:00000004"], "is not the end and checksum of a further piece"),
        ("pieces", "40:00000003", "its pieces do not end where it does"),
        ("pieces", [40], "is not the end and checksum"),
    ],
)
def test_record_that_makes_no_sense_is_refused(field: str, value: object, text: str) -> None:
    with pytest.raises(s3dlio.InvalidInputError, match=text):
        layout.parse_shard(RECORD | {field: value})
    data = layout.seal(MANIFEST | {"shards": [RECORD | {field: value}]})
    with pytest.raises(s3dlio.CorruptDataError, match=text):
        layout.parse_manifest(data, NAME)


@pytest.mark.parametrize(
    ("field", "value", "text"),
    [
        ("format_version", 2, "format_version is 2, and 1 can be read"),
        ("format_version", None, "format_version is None"),
        ("global_step", 8, "it is of step 8"),
        ("epoch", "1", "epoch must be a whole number"),
        ("world_size", 2, "rank 1 is missing: 1 of 2"),
        ("world_size", 0, "rank 0 is in a world of 0"),
        ("world_size", 10**18, "ranks 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, … are missing"),
        ("shards", [RECORD, RECORD], "rank 0 is more than once"),
        ("shards", {}, "must be a list"),
        ("shards", "ab", "must be a list"),
        ("shards", [5], "must be a dict"),
    ],
)
def test_manifest_that_makes_no_sense_is_damaged(field: str, value: object, text: str) -> None:
    with pytest.raises(s3dlio.CorruptDataError, match=text):
        layout.parse_manifest(layout.seal(MANIFEST | {field: value}), NAME)


def test_manifest_comes_back() -> None:
    assert layout.parse_manifest(layout.seal(MANIFEST), NAME) == MANIFEST
    shard = layout.parse_shard(RECORD)
    assert shard.record() == RECORD
    assert list(shard.spans()) == [(0, 40, 3), (40, 100, 4)]


@pytest.mark.parametrize("data", [b"", b"{}", b"[]", b"[" * 100_000, b"\xff", b"5", b'{"a":' + b"9" * 5000 + b"}"])
def test_text_that_is_no_manifest_is_damaged(data: bytes) -> None:
    for name in (NAME, Name("20261127-120000", 7)):
        with pytest.raises(s3dlio.CorruptDataError):
            layout.parse_manifest(data, name)
    assert layout.parse_pointer(data) is None


def test_every_flipped_bit_of_a_manifest_is_seen() -> None:
    data = layout.seal(MANIFEST)
    for bit in range(8 * len(data)):
        changed = bytearray(data)
        changed[bit // 8] ^= 1 << bit % 8
        with pytest.raises(s3dlio.CorruptDataError):
            layout.parse_manifest(bytes(changed), NAME)


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from([RECORD, [RECORD]]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from([*RECORD, *MANIFEST]), inner, max_size=3)
    ),
    max_leaves=5,
)


@given(st.dictionaries(st.sampled_from(sorted(MANIFEST)), JSON), st.dictionaries(st.sampled_from(sorted(RECORD)), JSON))
def test_any_json_is_a_manifest_or_damaged(fields: dict[str, Any], of_record: dict[str, Any]) -> None:
    changed = MANIFEST | {"shards": [RECORD | of_record]} | fields
    for name, data in ((NAME, layout.seal(changed)), (Name("20261127-120000", 7), json.dumps(changed).encode())):
        try:
            manifest = layout.parse_manifest(data, name)
        except s3dlio.CorruptDataError:
            continue
        assert manifest["global_step"] == 7
        if layout.is_complete(manifest):
            assert [shard.rank for shard in layout.parse_shards(manifest)] == list(range(manifest["world_size"]))


def test_uri_of_a_shard_is_taken_apart() -> None:
    key = "shards/ckpt-7-20261127-120000/rank-0.bin"
    for base in ("", "a/", "/mnt/shards/", "shards/x/"):
        assert layout.split_shard_key(base + key) == (base, key)
    for other in ("a", "shards/a", key + "x", "x" + key):
        assert layout.split_shard_key(other) == (other, None)
