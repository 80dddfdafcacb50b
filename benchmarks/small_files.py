"""Many files of 16 KiB: put() against open().write(), and against the steps by hand that make a file complete and
durable: a temporary name, fsync(), rename(), fsync() of the folder."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import race
from race import KIB, Contender, Race

Put = Callable[[str, int], None]
NBYTES = 16 * KIB
DATA = os.urandom(NBYTES)


def ours(durability: str) -> Put:
    import s3dlio

    def put(path: str, count: int) -> None:
        for i in range(count):
            s3dlio.put(f"file://{path}{i}", DATA, durability=durability)

    return put


def ours_at_once(durability: str) -> Put:
    import s3dlio

    def put(path: str, count: int) -> None:
        s3dlio.put_many(((f"file://{path}{i}", DATA) for i in range(count)), durability=durability)

    return put


def plain_open() -> Put:
    def put(path: str, count: int) -> None:
        for i in range(count):
            with open(f"{path}{i}", "wb") as file:  # noqa: PTH123
                file.write(DATA)

    return put


def by_hand() -> Put:
    def put(path: str, count: int) -> None:
        folder = Path(path).parent
        for i in range(count):
            with open(f"{path}{i}.tmp", "wb") as file:  # noqa: PTH123
                file.write(DATA)
                file.flush()
                os.fsync(file.fileno())
            os.rename(f"{path}{i}.tmp", f"{path}{i}")  # noqa: PTH104
            race.fsync(str(folder))

    return put


def reference() -> Put:
    import s3dlio

    def put(path: str, count: int) -> None:
        for i in range(count):
            s3dlio.put_bytes(f"file://{path}{i}", DATA)

    return put


NONE, FULL, OPEN = "s3dlio, put(durability='none')", "s3dlio, put()", "open().write()"
MANY_NONE, MANY_FULL = "s3dlio, put_many(durability='none')", "s3dlio, put_many()"
HAND, REFERENCE = "write, fsync, rename, fsync folder", "reference's put_bytes()"
CONTENDERS = (
    Contender(NONE, lambda: ours("none")),
    Contender(FULL, lambda: ours("full")),
    Contender(MANY_NONE, lambda: ours_at_once("none")),
    Contender(MANY_FULL, lambda: ours_at_once("full")),
    Contender(OPEN, plain_open, target=1.0),
    Contender(HAND, by_hand, target=1.0),
    Contender(REFERENCE, reference, python=race.reference_python),
)


def main() -> None:
    with Race(__file__, "Small files: 16 KiB each", CONTENDERS) as contest:
        for count, names in contest.pick(
            full=((10_000, (NONE, OPEN, REFERENCE, MANY_NONE)), (10_000, (FULL, HAND, MANY_FULL))),
            quick=((500, (NONE, OPEN, REFERENCE, MANY_NONE)), (100, (FULL, HAND, MANY_FULL))),
        ):

            def check(path: Path, answer: dict[str, object], count: int = count) -> None:
                sizes = {entry.name: entry.stat().st_size for entry in os.scandir(path.parent)}
                assert sizes == {f"a{i}": NBYTES for i in range(count)}

            title = f"{count} files, {'durable' if FULL in names else 'not durable'}"
            contest.case(title, (count,), count, "files/s", contenders=names, check=check, keep=True)


if __name__ == "__main__":
    main()
