"""1 GiB of a file into memory that is there already, with a cold cache, against one thread that calls os.preadv() with
O_DIRECT into the same memory."""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable
from functools import lru_cache

from race import GIB, MIB, Contender, Race

Read = Callable[..., None]


@lru_cache(1)
def memory(nbytes: int, huge: bool) -> memoryview:
    """Page-aligned memory that is there already."""
    area = mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    area.madvise(mmap.MADV_HUGEPAGE if huge else mmap.MADV_NOHUGEPAGE)
    for start in range(0, nbytes, MIB):
        area[start : start + MIB] = bytes(MIB)
    return memoryview(area)


def complete(count: int, nbytes: int, data: memoryview) -> None:
    """The file repeats its first MiB, which is not of zeros."""
    assert count == nbytes
    assert data[:64] == data[nbytes - MIB : nbytes - MIB + 64] != bytes(64)
    data[:64] = data[nbytes - MIB : nbytes - MIB + 64] = bytes(64)


def ours(scheme: str) -> Read:
    import s3dlio

    def read(_: str, source: str, nbytes: int, huge: bool) -> None:
        data = memory(nbytes, huge)
        with s3dlio.open_reader(f"{scheme}://{source}") as reader:
            complete(reader.readinto(data), nbytes, data)

    return read


def fresh() -> Read:
    import s3dlio

    def read(_: str, source: str, nbytes: int, huge: bool) -> None:
        assert len(s3dlio.get_range(f"direct://{source}", 0, nbytes)) == nbytes

    return read


def preadv(request: int) -> Read:
    def read(_: str, source: str, nbytes: int, huge: bool) -> None:
        data = memory(nbytes, huge)
        fd = os.open(source, os.O_RDONLY | os.O_DIRECT)
        done = 0
        while done < nbytes:
            count = os.preadv(fd, [data[done : done + request]], done)
            if count == 0:
                break
            done += count
        os.close(fd)
        complete(done, nbytes, data)

    return read


CONTENDERS = (
    Contender("s3dlio, direct://, readinto()", lambda: ours("direct")),
    Contender("preadv() of 8 MiB, O_DIRECT", lambda: preadv(8 * MIB), target=1.2),
    Contender("preadv() of 1 GiB, O_DIRECT", lambda: preadv(GIB), target=1.2),
    Contender("s3dlio, file://, readinto()", lambda: ours("file")),
    Contender("s3dlio, direct://, get_range()", fresh),
)


def main() -> None:
    with Race(__file__, "Reader: one range, cold cache, into memory that is there already", CONTENDERS) as contest:
        source = contest.folder / "source"
        nbytes = contest.pick(full=GIB, quick=64 * MIB)
        piece = os.urandom(MIB)
        with source.open("wb") as file:
            for _ in range(nbytes // MIB):
                file.write(piece)
            os.fsync(file.fileno())

        def chill() -> None:
            with source.open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)

        for huge in (True, False):
            title = f"{nbytes // MIB} MiB, memory of {'huge pages' if huge else 'pages of 4 KiB'}"
            # get_range() makes its memory itself.
            names = [contender.name for contender in CONTENDERS if huge or contender.make is not fresh]
            arguments = (str(source), nbytes, huge)
            contest.case(title, arguments, nbytes / 1e9, "GB/s", contenders=names, before=chill)


if __name__ == "__main__":
    main()
