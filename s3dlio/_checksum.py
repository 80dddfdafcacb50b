"""CRC32C (Castagnoli), as Amazon S3, Google Cloud Storage, ext4 and iSCSI use it (RFC 3720, B.4)."""

from __future__ import annotations

from s3dlio._native import crc32c, lib

__all__ = ["checksum_text", "crc32c", "crc32c_combine"]


def crc32c_combine(crc1: int, crc2: int, length2: int) -> int:
    """Returns the CRC32C of A followed by B from those of A and of B and B's length in bytes, reading neither."""
    result: int = lib.s3dlio_crc32c_combine(crc1, crc2, length2)
    return result


def checksum_text(crc: int) -> str:
    """The form in which checksums are shown and stored: ``crc32c:c99465aa``."""
    return f"crc32c:{crc:08x}"
