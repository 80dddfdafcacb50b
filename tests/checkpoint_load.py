"""A program that saves checkpoints, and tells a logged disk before and after each of them.

    checkpoint_load.py FOLDER CONTROL NAME SCHEME COMPRESSION DURABILITY VERSIONS

Whatever the durability is, every checkpoint is acknowledged as if it were durable.
"""

from __future__ import annotations

import os
import sys

from checkpoint_work import BLOCK, content, save

import s3dlio
from s3dlio.checkpoint import CheckpointStore


def main(folder: str, control: str, name: str, scheme: str, compression: str, durability: str, versions: int) -> None:
    marks = os.open(control, os.O_WRONLY)
    options = s3dlio.WriterOptions(
        compression="zstd" if compression == "zstd" else None, threads=0, durability=durability, buffer_size=BLOCK
    )
    store = CheckpointStore(f"{scheme}://{folder}/{name}", options=options)
    for version in range(1, versions + 1):
        os.write(marks, f"mark begin {version} {name}".encode())
        save(store, version, content(version))
        os.write(marks, f"mark done {version} {name}".encode())
        if version % 5 == 4:
            os.write(marks, f"mark doom {version - 1} {name}".encode())
            store.keep_last(2)
    os.close(marks)


if __name__ == "__main__":
    main(*sys.argv[1:7], int(sys.argv[7]))
