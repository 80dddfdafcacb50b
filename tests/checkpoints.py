"""Bytes for the tests of checkpoints, and how one of their bits is spoilt."""

from __future__ import annotations

import random

CONTENT = random.Random(1).randbytes(300_001)


def flipped(data: bytes, bit: int) -> bytes:
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)
