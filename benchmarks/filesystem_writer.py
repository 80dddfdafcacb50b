"""The filesystem writer, durable and with CRC32C, against open().write() and the reference's filesystem writer, both
with fsync(): a stream in chunks of 8 MiB."""

from __future__ import annotations

from functools import partial

import race
import writers
from race import Contender, Race

CONTENDERS = (
    Contender("s3dlio, file://", partial(writers.ours, "file")),
    Contender("open().write(), fsync()", partial(writers.python_open, 0), target=1.1),
    Contender(
        "reference's writer, fsync()", partial(writers.reference, "file"), target=1.3, python=race.reference_python
    ),
    # A long file that is to last leaves the page cache unless it is told to stay there, as the others do.
    Contender("s3dlio, file://, direct=False", partial(writers.ours, "file", direct=False)),
)


def main() -> None:
    with Race(__file__, "Filesystem writer: a durable stream in chunks of 8 MiB", CONTENDERS) as contest:
        writers.streams(contest)


if __name__ == "__main__":
    main()
