from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import s3dlio
from s3dlio._options import MAX_BLOCK_SIZE, MIN_BLOCK_SIZE


def test_builder_changes_and_returns_its_object() -> None:
    # The reference's builder returns None and is called for its effect; losing that call would store something else.
    options = s3dlio.PyWriterOptions()
    assert options.with_compression("zstd", level=9) is options
    assert options.with_buffer_size(1 << 20).with_durability("data").with_direct(True, require=True) is options
    assert (options.compression, options.level) == ("zstd", 9)
    assert (options.buffer_size, options.durability, options.direct, options.require_direct) == (
        1 << 20,
        "data",
        True,
        True,
    )


def test_keywords_and_builder_say_the_same() -> None:
    built = s3dlio.PyWriterOptions().with_compression("zstd", 6).with_durability("none")
    assert repr(built) == repr(s3dlio.WriterOptions(compression="zstd", level=6, durability="none"))


def test_writer_keeps_the_settings_it_was_made_with() -> None:
    options = s3dlio.WriterOptions()
    writer = s3dlio.open_writer("memory://options/a", options)
    options.with_compression("zstd")
    writer.write_chunk(b"abc")
    assert writer.finalize() == (3, 3)
    assert writer.uri == "memory://options/a"


@pytest.mark.parametrize(
    ("settings", "allowed"),
    [
        ({"compression": "lz4"}, "'zstd'"),
        ({"compression": "zstd", "level": 0}, "1 to 22"),
        ({"compression": "zstd", "level": 23}, "1 to 22"),
        ({"level": -5}, "1 to 22"),
        ({"buffer_size": 0}, "at least 1"),
        ({"buffer_size": -1}, "at least 1"),
        ({"in_flight": 0}, "1 to 1024"),
        ({"threads": -1}, "0 to 256"),
        ({"durability": "some"}, "'none', 'data', 'full'"),
        ({"timeout": 0}, "0.001"),
        ({"timeout": float("nan")}, "0.001"),
    ],
)
def test_value_out_of_range_names_what_is_allowed(settings: dict[str, Any], allowed: str) -> None:
    with pytest.raises(RuntimeError) as caught:
        s3dlio.WriterOptions(**settings)
    assert isinstance(caught.value, ValueError)
    assert allowed in str(caught.value)
    with pytest.raises(RuntimeError, match=r"must be"):
        s3dlio.open_writer("memory://options/a", **settings)


@pytest.mark.parametrize(
    "settings",
    [
        {"level": 3.0},
        {"level": True},
        {"buffer_size": "1"},
        {"direct": 1},
        {"create_parents": None},
        {"timeout": "1"},
        {"in_flight": 2.5},
    ],
)
def test_value_of_another_type_is_a_type_error(settings: dict[str, Any]) -> None:
    with pytest.raises(TypeError):
        s3dlio.WriterOptions(**settings)


def test_refused_change_leaves_the_options_as_they_were() -> None:
    options = s3dlio.WriterOptions(compression="zstd", level=5)
    with pytest.raises(s3dlio.InvalidInputError):
        options.with_compression("zstd", level=99)
    assert options.level == 5
    with pytest.raises(AttributeError):
        options.level = 99  # type: ignore[misc]


@given(st.integers(min_value=1, max_value=1 << 70))
def test_any_buffer_size_is_clamped(size: int) -> None:
    block = s3dlio.WriterOptions().with_buffer_size(size).block_size()
    assert MIN_BLOCK_SIZE <= block <= MAX_BLOCK_SIZE
    assert block == size or not MIN_BLOCK_SIZE <= size <= MAX_BLOCK_SIZE


def test_options_and_keywords_together_are_refused() -> None:
    with pytest.raises(TypeError, match="not both"):
        s3dlio.open_writer("memory://options/a", s3dlio.WriterOptions(), level=3)
    with pytest.raises(TypeError, match="levle"):
        s3dlio.open_writer("memory://options/a", levle=3)


def test_settings_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(s3dlio.InvalidInputError, match="contradict"):
        s3dlio.WriterOptions(direct=False, require_direct=True)
