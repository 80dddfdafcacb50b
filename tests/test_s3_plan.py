"""How an object is cut into parts: arithmetic, without a server."""

from __future__ import annotations

import pytest

from s3dlio._stores.s3_upload import MAX_OBJECT, MAX_PART, MAX_PARTS, MIN_PART, part_size

MIB = 1 << 20


@pytest.mark.parametrize("first", [MIN_PART, 8 * MIB, 64 * MIB, 64 * MIB - 4096])
def test_the_largest_object_fits_into_the_allowed_parts(first: int) -> None:
    sizes = [part_size(number, first) for number in range(1, MAX_PARTS + 1)]
    assert sum(sizes) >= MAX_OBJECT
    assert sizes[0] == first
    assert sizes == sorted(sizes)
    assert min(sizes) >= MIN_PART
    assert max(sizes) <= MAX_PART


def test_an_ordinary_object_has_small_parts() -> None:
    assert {part_size(number, 8 * MIB) for number in range(1, 961)} == {8 * MIB}
    assert part_size(961, 8 * MIB) == 16 * MIB
