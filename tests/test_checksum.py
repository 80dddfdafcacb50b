from __future__ import annotations

import crc32c as independent
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import s3dlio


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (bytes(32), 0x8A9136AA),
        (b"\xff" * 32, 0x62A8AB43),
        (bytes(range(32)), 0x46DD794E),
        (bytes(range(31, -1, -1)), 0x113FDB5C),
        (b"123456789", 0xE3069283),
        (b"hello world", 0xC99465AA),
        (b"", 0),
    ],
)
def test_published_vectors(data: bytes, expected: int) -> None:
    assert s3dlio.crc32c(data) == expected


@given(st.binary(max_size=5000), st.integers(0, 2**32 - 1))
def test_equals_an_independent_implementation(data: bytes, value: int) -> None:
    assert s3dlio.crc32c(data, value) == independent.crc32c(data, value)


@given(st.binary(), st.binary())
def test_combine_equals_the_checksum_of_both(first: bytes, second: bytes) -> None:
    combined = s3dlio.crc32c_combine(s3dlio.crc32c(first), s3dlio.crc32c(second), len(second))
    assert combined == independent.crc32c(first + second)


def test_any_contiguous_buffer_counts_by_its_bytes() -> None:
    array = np.arange(1000, dtype=np.float32)
    assert s3dlio.crc32c(array) == independent.crc32c(array.tobytes())
    assert s3dlio.crc32c(memoryview(array)) == independent.crc32c(array.tobytes())


@pytest.mark.parametrize("value", [-1, 2**32])
def test_start_value_out_of_range_is_refused(value: int) -> None:
    with pytest.raises(OverflowError):
        s3dlio.crc32c(b"", value)


def test_arguments_by_keyword() -> None:
    assert s3dlio.crc32c(buffer=b"world", value=s3dlio.crc32c(b"hello ")) == 0xC99465AA
    assert s3dlio.crc32c(b"world", value=s3dlio.crc32c(b"hello ")) == 0xC99465AA
    for arguments, names in (((), {}), ((b"", 0, 0), {}), ((b"",), {"buffer": b""}), ((b"",), {"other": 1})):
        with pytest.raises(TypeError, match="crc32c"):
            s3dlio.crc32c(*arguments, **names)  # type: ignore[arg-type]


def test_wrong_input_is_refused() -> None:
    with pytest.raises(TypeError):
        s3dlio.crc32c("text")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="contiguous"):
        s3dlio.crc32c(np.arange(10)[::2])
    # An error was already set when the package's own was looked for: SystemError.
    for part in (memoryview(b"abcdef")[::2], np.arange(10)[::2]):
        with pytest.raises(s3dlio.InvalidInputError, match="contiguous"):
            s3dlio.crc32c(part)
    with pytest.raises(TypeError):
        s3dlio.crc32c(b"", "1")  # type: ignore[arg-type]
    assert s3dlio.crc32c(b"abc", np.uint32(5)) == s3dlio.crc32c(b"abc", 5)
