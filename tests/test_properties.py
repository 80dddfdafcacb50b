"""What holds for any chunks, any settings, any names and any order of calls, each against a plain model."""

from __future__ import annotations

import os
import random
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import crc32c as independent
import numpy as np
import pytest
from harness import effort
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st

import s3dlio
from s3dlio._uri import format_uri


def examples(short: int, long: int) -> settings:
    return settings(
        deadline=None,
        max_examples=effort(short, long),
        print_blob=True,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )


SCHEMES = st.sampled_from(["file", "direct", "memory"])
BORDERS = st.sampled_from([0, 1, 511, 512, 4095, 4096, 65535, 65536, 65537, 131072, 200_001, 1_000_000])
SIZES = st.lists(BORDERS | st.integers(0, 300_000), max_size=10)
SEEDS = st.integers(0, 2**32)
SETTINGS = st.fixed_dictionaries(
    {
        "buffer_size": st.integers(1, 400_000),
        "in_flight": st.integers(1, 9),
        "durability": st.sampled_from(["none", "data", "full"]),
        "direct": st.sampled_from([None, False, True]),
        "compression": st.sampled_from([None, "zstd"]),
        "level": st.sampled_from([1, 3, 7]),
        "threads": st.sampled_from([None, 0, 2]),
    }
)

# The ways to hand over the same bytes.
BUFFERS: list[Callable[[bytes], Any]] = [
    bytes,
    bytearray,
    memoryview,
    lambda data: np.frombuffer(data, dtype=np.uint8),
    lambda data: memoryview(data).cast("I") if len(data) % 4 == 0 and data else data,
    lambda data: np.frombuffer(data, dtype=np.float64) if len(data) % 8 == 0 else data,
]


def make_bytes(size: int, choose: random.Random) -> bytes:
    return choose.randbytes(size) if choose.random() < 0.5 else bytes([choose.randrange(256)]) * size


@examples(100, 2000)
@given(scheme=SCHEMES, sizes=SIZES, options=SETTINGS, seed=SEEDS)
def test_object_equals_the_concatenation_of_its_chunks(
    disk_path: Path, scheme: str, sizes: list[int], options: dict[str, Any], seed: int
) -> None:
    choose = random.Random(seed)
    chunks = [make_bytes(size, choose) for size in sizes]
    data = b"".join(chunks)
    with tempfile.TemporaryDirectory(dir=disk_path) as folder:
        with s3dlio.open_writer(f"{scheme}://{folder}/a", **options) as writer:
            for chunk in chunks:
                writer.write_chunk(choose.choice(BUFFERS)(chunk))
        with s3dlio.open_reader(writer.uri, decompress=options["compression"] is not None) as reader:
            assert reader.read() == data
        stored = s3dlio.stat(writer.uri)["size"]
        assert writer.checksum() == f"crc32c:{independent.crc32c(data):08x}"
        assert (writer.bytes_written(), writer.compressed_bytes()) == (len(data), stored)
        s3dlio.delete(writer.uri)


STEPS = st.lists(
    st.sampled_from(["write", "owned", "text", "strided", "ask"]).flatmap(
        lambda step: st.tuples(st.just(step), st.integers(0, 5000) | BORDERS)
    ),
    max_size=30,
)


@examples(60, 3000)
@given(scheme=SCHEMES, steps=STEPS, options=SETTINGS, end=st.sampled_from(["finalize", "abort", "raise"]), seed=SEEDS)
def test_writer_tells_at_each_step_what_a_plain_list_would(
    disk_path: Path, scheme: str, steps: list[tuple[str, int]], options: dict[str, Any], end: str, seed: int
) -> None:
    choose = random.Random(seed)
    data = bytearray()
    with tempfile.TemporaryDirectory(dir=disk_path) as folder, suppress(KeyError):
        writer = s3dlio.open_writer(f"{scheme}://{folder}/a", **options)
        with writer:
            for step, size in steps:
                chunk = make_bytes(size, choose)
                if step == "write":
                    writer.write_chunk(choose.choice(BUFFERS)(chunk))
                    data += chunk
                elif step == "owned":
                    writer.write_owned_bytes(chunk)
                    data += chunk
                elif step == "text":
                    with pytest.raises(TypeError):
                        writer.write_chunk("text")  # type: ignore[arg-type]
                elif step == "strided" and size > 2:  # of two bytes one is left, which is contiguous
                    with pytest.raises(s3dlio.InvalidInputError):
                        writer.write_chunk(memoryview(chunk)[::2])
                assert writer.bytes_written() == len(data)
                assert writer.checksum() == f"crc32c:{independent.crc32c(bytes(data)):08x}"
                assert not s3dlio.exists(writer.uri)
            if end == "abort":
                writer.abort()
            elif end == "raise":
                raise KeyError
        assert end != "raise"
    assert writer.bytes_written() == len(data)
    with pytest.raises(s3dlio.ClosedError):
        writer.write_chunk(b"x")
    if scheme == "memory":
        assert s3dlio.exists(writer.uri) == (end == "finalize")
        s3dlio.delete(writer.uri)


@examples(60, 3000)
@given(
    scheme=SCHEMES,
    size=BORDERS | st.integers(0, 300_000),
    ranges=st.lists(
        st.tuples(st.integers(0, 2**70) | BORDERS, st.none() | st.integers(0, 2**70) | BORDERS), max_size=9
    ),
    seed=SEEDS,
)
def test_range_equals_a_slice(
    disk_path: Path, scheme: str, size: int, ranges: list[tuple[int, int | None]], seed: int
) -> None:
    data = random.Random(seed).randbytes(size)
    uri = f"{scheme}://{disk_path}/a"
    s3dlio.put(uri, data, durability="none")
    assert s3dlio.get(uri) == data
    for offset, length in ranges:
        assert s3dlio.get_range(uri, offset, length) == data[offset : None if length is None else offset + length]


POSITIONS = st.integers(-70_000, 300_000) | st.sampled_from([0, 1, 4095, 4096, 65536, 200_001])
CALLS = st.one_of(
    st.tuples(st.just("seek"), POSITIONS, st.sampled_from([0, 1, 2])),
    st.tuples(st.sampled_from(["read", "read1", "readline", "peek"]), st.none() | st.integers(-1, 200_000)),
    st.tuples(st.just("readinto"), st.integers(0, 200_000)),
    st.tuples(st.sampled_from(["tell", "readable", "seekable", "writable"])),
)


def call(file: BinaryIO, name: str, arguments: tuple[Any, ...]) -> object:
    """What a call gives, or that it fails."""
    if name == "readinto":
        memory = bytearray(arguments[0])
        return file.readinto(memory), bytes(memory)  # type: ignore[attr-defined]
    if name in ("read1", "peek"):
        arguments = (abs(arguments[0] or 1),)
    try:
        result = getattr(file, name)(*arguments)
    except (ValueError, OSError):
        return "fails"
    # How much of these is the buffer's choice.
    return None if name in ("read1", "peek") else result


@examples(80, 3000)
@given(
    scheme=SCHEMES,
    size=BORDERS | st.integers(0, 300_000),
    calls=st.lists(CALLS, max_size=20),
    buffer_size=st.sampled_from([1, 4096, 65536, 1 << 20]),
    compression=st.sampled_from([None, "zstd"]),
    seed=SEEDS,
)
# A seek that was refused moved the reader of a zstd stream to its end, and the next read lost what it passed over.
@example("file", 1, [("seek", -2, 2), ("read", -1)], 1, "zstd", 0)
@example("file", 70_000, [("read", 3), ("seek", -80_000, 2), ("read", 100)], 4096, "zstd", 0)
def test_reader_does_what_a_file_does(
    disk_path: Path,
    scheme: str,
    size: int,
    calls: list[tuple[Any, ...]],
    buffer_size: int,
    compression: str | None,
    seed: int,
) -> None:
    data = make_bytes(size, random.Random(seed))
    (disk_path / "model").write_bytes(data)
    uri = f"{scheme}://{disk_path}/a" + (".zst" if compression else "")
    s3dlio.put(uri, data, compression=compression, level=1, durability="none")
    with (
        s3dlio.open_reader(uri, decompress=compression is not None, buffer_size=buffer_size) as reader,
        (disk_path / "model").open("rb") as model,
    ):
        for name, *arguments in calls:
            if name in ("read1", "peek"):
                call(reader, name, tuple(arguments))
                reader.seek(model.tell())
                continue
            result, expected = call(reader, name, tuple(arguments)), call(model, name, tuple(arguments))
            if compression and model.tell() > size:
                # There a decompressor does not go: like gzip.GzipFile it stays at the end.
                expected = model.seek(size)
            assert result == expected, name
            assert reader.tell() == model.tell(), name


# A name in a folder: any bytes but '/' and zero; and such as look like the library's own.
NAMES = (
    st.binary(min_size=1, max_size=200)
    | st.from_regex(rb"\A\.{0,2}[a.]{0,2}\.s3dlio-?[0-9]{0,3}(\.zst)?\Z")
    | st.sampled_from(
        [b"a b", b"%41", b"?", b"#", b"a\nb", b"~", b"\xff\xfe", "ä€".encode(), b"-rf", b"*", b"\\", b"a.zst"]
    )
)


@examples(100, 3000)
@given(scheme=st.sampled_from(["file", "direct"]), name=NAMES, deep=st.booleans(), compressed=st.booleans())
def test_object_of_any_name_is_found_under_it_alone(
    disk_path: Path, scheme: str, name: bytes, deep: bool, compressed: bool
) -> None:
    name = name.replace(b"/", b"_").replace(b"\0", b"_")
    assume(name not in (b".", b".."))
    compression = "zstd" if compressed else None
    with tempfile.TemporaryDirectory(dir=disk_path) as folder:
        place = os.fsencode(folder) + (b"/new/deep/" if deep else b"/") + name
        uri = format_uri(scheme, "", os.fsdecode(place))
        try:
            s3dlio.put(uri, b"content", compression=compression, durability="none")
        except s3dlio.InvalidInputError:
            assert b".s3dlio-" in name
            assert list(Path(folder).iterdir()) == []
            return
        stored = place + (b".zst" if compressed and not name.endswith(b".zst") else b"")
        uri = format_uri(scheme, "", os.fsdecode(stored))
        assert [os.fsencode(path) for path in Path(folder).rglob("*") if path.is_file()] == [stored]
        assert s3dlio.list(format_uri(scheme, "", folder)) == [uri]
        with s3dlio.open_reader(uri, decompress=compressed) as reader:
            assert reader.read() == b"content"
        assert s3dlio.exists(uri)
        s3dlio.delete(uri)
        assert not s3dlio.exists(uri)


JUNK = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=5),
    st.binary(max_size=5),
    st.lists(st.integers(), max_size=2),
    st.just(np.arange(3)),
)
VALUES = {
    "compression": st.sampled_from([None, "zstd"]),
    "level": st.integers(0, 23),
    "threads": st.none() | st.integers(-1, 3),
    "buffer_size": st.none() | st.integers(-1, 1 << 70),
    "in_flight": st.none() | st.integers(0, 1025),
    "durability": st.sampled_from(["none", "data", "full"]),
    "direct": st.sampled_from([None, False, True]),
    "require_direct": st.booleans(),
    "create_parents": st.booleans(),
    "timeout": st.floats(0, 2e6) | st.integers(0, 2_000_000),
}
# One of them may be anything.
ANY_SETTINGS = st.fixed_dictionaries({}, optional=VALUES).flatmap(
    lambda values: (
        st.just(values)
        | st.sampled_from(sorted(VALUES)).flatmap(lambda name: JUNK.map(lambda junk: values | {name: junk}))
    )
)


@examples(100, 2000)
@given(scheme=SCHEMES, values=ANY_SETTINGS)
def test_any_settings_are_refused_clearly_or_make_a_writer(
    disk_path: Path, scheme: str, values: dict[str, Any]
) -> None:
    with tempfile.TemporaryDirectory(dir=disk_path) as folder:
        uri = f"{scheme}://{folder}/a"
        try:
            options = s3dlio.WriterOptions(**values)
        except (TypeError, s3dlio.InvalidInputError):
            with pytest.raises((TypeError, s3dlio.InvalidInputError)):
                s3dlio.open_writer(uri, **values)
            return
        # That may be more memory than there is: 64 GiB of blocks, and hundreds of MiB for the highest levels.
        assume((options.block_size() or 4 << 20) * (options.in_flight or 8) < 1 << 30)
        assume(not options.compression or options.level < 16)
        if options.require_direct and scheme == "memory":
            with pytest.raises(s3dlio.UnsupportedError):
                s3dlio.open_writer(uri, options)
            return
        for writer in (s3dlio.open_writer(uri, options), s3dlio.open_writer(uri, **values)):
            with writer:
                writer.write_chunk(b"content")
            with s3dlio.open_reader(writer.uri, decompress=options.compression is not None) as reader:
                assert reader.read() == b"content"
        s3dlio.delete(writer.uri)


BUILDERS = {
    "with_compression": lambda compression, level: {"compression": compression, "level": level},
    "with_buffer_size": lambda size: {"buffer_size": size},
    "with_durability": lambda durability: {"durability": durability},
    "with_direct": lambda direct: {"direct": direct, "require_direct": False},
}
BUILDER_CALLS = st.one_of(
    st.tuples(st.just("with_compression"), VALUES["compression"] | JUNK, VALUES["level"] | JUNK),
    st.tuples(st.just("with_buffer_size"), VALUES["buffer_size"] | JUNK),
    st.tuples(st.just("with_durability"), VALUES["durability"] | JUNK),
    st.tuples(st.just("with_direct"), VALUES["direct"] | JUNK),
)


@examples(100, 5000)
@given(calls=st.lists(BUILDER_CALLS, max_size=8))
def test_builder_says_what_keywords_say_and_a_snapshot_keeps_it(calls: list[tuple[Any, ...]]) -> None:
    options = s3dlio.WriterOptions()
    said: dict[str, Any] = {}
    for name, *arguments in calls:
        before, text = options.snapshot(), repr(options)
        try:
            assert getattr(options, name)(*arguments) is options
            said |= BUILDERS[name](*arguments)
        except (TypeError, s3dlio.InvalidInputError):
            assert repr(options) == text
        assert repr(before) == text
        assert repr(options) == repr(s3dlio.WriterOptions(**said))
