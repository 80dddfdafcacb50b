"""s3dlio.crc32c() against other packages' functions, the cost of the call from Python included."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from functools import lru_cache

from race import KIB, MIB, Contender, Race


@lru_cache(1)
def data_of(nbytes: int) -> bytes:
    return os.urandom(nbytes)


def calls(module: str, name: str, value_first: bool = False) -> Callable[[str, int, int], dict[str, int]]:
    crc32c = getattr(importlib.import_module(module), name)

    def run(_: str, nbytes: int, count: int) -> dict[str, int]:
        data = data_of(nbytes)
        if value_first:
            for _i in range(count):
                crc32c(0, data)
        else:
            for _i in range(count):
                crc32c(data)
        return {}

    assert (crc32c(0, b"123456789") if value_first else crc32c(b"123456789")) == 0xE3069283
    return run


CONTENDERS = (
    Contender("s3dlio.crc32c()", lambda: calls("s3dlio", "crc32c")),
    Contender("awscrt.checksums.crc32c()", lambda: calls("awscrt.checksums", "crc32c"), target=0.95),
    Contender("crc32c.crc32c()", lambda: calls("crc32c", "crc32c")),
    Contender("google_crc32c.extend()", lambda: calls("google_crc32c", "extend", value_first=True)),
)
# Bytes, and calls in one run.
SIZES = ((4 * KIB, 200_000), (MIB, 2_000), (256 * MIB, 4))


def main() -> None:
    with Race(__file__, "CRC32C of memory", CONTENDERS, rounds=11) as contest:
        for nbytes, count in contest.pick(full=SIZES, quick=SIZES[:2]):
            title = f"{nbytes // MIB} MiB" if nbytes >= MIB else f"{nbytes // KIB} KiB"
            contest.case(title, (nbytes, count), nbytes * count / 1e9, "GB/s", settle=False, room=0)


if __name__ == "__main__":
    main()
