"""A program that writes files, each in versions, and tells a logged disk before and after each of them.

    power_load.py FOLDER CONTROL HOW ROUNDS

HOW is a durability, 'named' for the full one, or 'in place'; whatever it is, every file is acknowledged as if it were
durable.
"""

from __future__ import annotations

import functools
import itertools
import os
import random
import sys
from pathlib import Path

# What S3DLIO_IO_ENGINE may be; without a choice, a file of one block needs no engine.
ENGINES = ("uring", "threads", "")
# A file that leaves the page cache on its way.
LONG = "long/file-plain"


@functools.lru_cache(256)
def content(name: str, version: int) -> bytes:
    """What a version of a file holds: some have less than one block of the writer, some many."""
    choose = random.Random(f"{name} {version}")
    if name.endswith(LONG):
        return choose.randbytes((17 << 20) + 123)
    return choose.randbytes(choose.choice((0, 1, 4095, 30_000, 65_536, 150_000, 400_001)))


def which_version(path: Path, name: str, newest: int) -> int | None:
    """The version that the file ``path`` holds, if any; what is compressed must be a whole frame."""
    import s3dlio

    if path.suffix == ".zst":
        try:
            with s3dlio.open_reader(f"file://{path}", decompress=True) as reader:
                data = reader.read()
        except s3dlio.S3dlioError:
            return None
    else:
        data = path.read_bytes()
    return next((version for version in range(newest, -1, -1) if data == content(name, version)), None)


def write_in_place(path: Path, data: bytes) -> None:
    """Wrong on purpose: durable when it returns, but until then neither the old file nor the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    for folder in (path.parent, path.parent.parent, path.parent.parent.parent):
        fd = os.open(folder, os.O_RDONLY)
        os.fsync(fd)
        os.close(fd)
    with path.open("wb", buffering=0) as file:
        for at in range(0, len(data), 65_536):
            file.write(data[at : at + 65_536])
            os.fsync(file.fileno())


def write(folder: Path, name: str, data: bytes, how: str) -> None:
    import s3dlio

    if how == "in place":
        return write_in_place(folder / name, data)
    scheme, compression = Path(name).stem.split("-")
    options = s3dlio.WriterOptions(
        compression="zstd" if compression == "zstd" else None,
        threads=0,
        durability="full" if how == "named" else how,
        buffer_size=65_536,
    )
    with s3dlio.open_writer(f"{scheme}://{folder}/{name.removesuffix('.zst')}", options) as writer:
        half = len(data) // 2
        writer.write_chunk(data[:half])
        writer.write_chunk(data[half:])
    return None


def main(folder: str, control: str, how: str, rounds: int) -> None:
    marks = os.open(control, os.O_WRONLY)
    engine = os.environ["S3DLIO_IO_ENGINE"] or "auto"
    for number in range(rounds):
        for scheme, compression in itertools.product(("file", "direct"), ("plain", "zstd.zst")):
            replaced = f"{engine}/old/{scheme}-{compression}"
            new = f"{engine}/{number}/{scheme}/{scheme}-{compression}"
            names = [(replaced, number), (new, 0)]
            if how == "full" and number == 0 and (scheme, compression) == ("file", "plain"):
                names.append((f"{engine}/{LONG}", 0))
            for name, version in names:
                if how != "in place" and scheme == "file":  # a folder that somebody else has made just now
                    (Path(folder) / name).parent.mkdir(parents=True, exist_ok=True)
                os.write(marks, f"mark begin {version} {name}".encode())
                write(Path(folder), name, content(name, version), how)
                os.write(marks, f"mark done {version} {name}".encode())
    os.close(marks)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]))
