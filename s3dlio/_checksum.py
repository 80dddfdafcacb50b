"""CRC32C (Castagnoli), as Amazon S3, Google Cloud Storage, ext4 and iSCSI use it (RFC 3720, B.4)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from s3dlio._native import lib, pointer

if TYPE_CHECKING:
    from typing_extensions import Buffer


def crc32c(buffer: Buffer, value: int = 0) -> int:
    """Returns the CRC32C of ``buffer``, any contiguous buffer by its bytes, as an int of 32 bits.

    ``value`` is the checksum of what came before: ``crc32c(b, crc32c(a)) == crc32c(a + b)``.  Releases the GIL.
    """
    data = pointer(buffer)
    result: int = lib.s3dlio_crc32c(value, data, len(data))
    return result


def crc32c_combine(crc1: int, crc2: int, length2: int) -> int:
    """Returns the CRC32C of A followed by B from those of A and of B and B's length in bytes, reading neither."""
    result: int = lib.s3dlio_crc32c_combine(crc1, crc2, length2)
    return result


def checksum_text(crc: int) -> str:
    """The form in which checksums are shown and stored: ``crc32c:c99465aa``."""
    return f"crc32c:{crc:08x}"
