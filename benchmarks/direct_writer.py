"""The direct writer, durable and with CRC32C, against a bare C loop, and against open().write() and the reference's
direct writer, both with fsync(): a stream in chunks of 8 MiB."""

from __future__ import annotations

from functools import partial

import race
import writers
from race import Contender, Race

CONTENDERS = (
    Contender("s3dlio, direct://", partial(writers.ours, "direct")),
    Contender("bare io_uring loop in C", command=lambda: [race.compiled("bare_uring.c", "-luring")], target=0.9),
    Contender("open().write(), fsync()", partial(writers.python_open, 0), target=1.2),
    Contender(
        "reference's direct writer, fsync()",
        partial(writers.reference, "direct"),
        target=1.5,
        python=race.reference_python,
    ),
)


def main() -> None:
    with Race(__file__, "Direct writer: a durable stream in chunks of 8 MiB", CONTENDERS) as contest:
        writers.streams(contest)


if __name__ == "__main__":
    main()
