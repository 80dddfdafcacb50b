"""Chunks from 16 bytes to 64 KiB into one file through the page cache, for the cost of a call, against the buffered
open().write() and the reference."""

from __future__ import annotations

from functools import partial

import race
import writers
from race import KIB, Contender, Race

OPEN, REFERENCE = "open().write(), buffered", "reference's write_chunk()"
CONTENDERS = (
    Contender("s3dlio, write_chunk()", partial(writers.ours, "file")),
    Contender(OPEN, partial(writers.python_open, -1)),
    Contender(REFERENCE, partial(writers.reference, "file"), python=race.reference_python),
)
# Bytes in a chunk, and calls.
SIZES = ((KIB, 200_000), (16, 200_000), (64, 200_000), (4 * KIB, 50_000), (64 * KIB, 5_000))


def main() -> None:
    with Race(__file__, "Small chunks: calls that append to one file", CONTENDERS, rounds=7) as contest:
        for chunk_nbytes, count in contest.pick(full=SIZES, quick=SIZES[:2]):
            for durable in (False, True):
                nbytes = chunk_nbytes * count
                size = f"{chunk_nbytes // KIB} KiB" if chunk_nbytes >= KIB else f"{chunk_nbytes} bytes"
                contest.case(
                    f"{size}, {'durable (the others with fsync())' if durable else 'not durable'}",
                    (nbytes, chunk_nbytes, durable),
                    count / 1e6,
                    "M/s",
                    targets={OPEN: 1.0, REFERENCE: 2.0} if chunk_nbytes == KIB else {},
                    check=race.of_size(nbytes),
                )


if __name__ == "__main__":
    main()
