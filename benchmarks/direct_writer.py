"""The direct writer, durable and with CRC32C, against open().write() and fsync, in turn in one run.

Usage: direct_writer.py [--size MIB] [--rounds N] [--folder DIR]

Prints the median of each and the median, minimum and maximum of the ratio, round by round.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path
from statistics import median

import s3dlio

CHUNK = 8 << 20


def with_s3dlio(path: Path, chunk: bytes, count: int) -> None:
    with s3dlio.open_writer(f"direct://{path}") as writer:
        for _ in range(count):
            writer.write_chunk(chunk)


def with_open(path: Path, chunk: bytes, count: int) -> None:
    with path.open("wb", buffering=0) as file:
        for _ in range(count):
            file.write(chunk)
        os.fsync(file.fileno())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=1024, metavar="MIB", help="MiB to write (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="rounds after a warm-up (default: %(default)s)")
    parser.add_argument("--folder", type=Path, default=Path.cwd(), help="where to write (default: here)")
    arguments = parser.parse_args()

    chunk = os.urandom(CHUNK)
    count = arguments.size * (1 << 20) // CHUNK
    contenders = {"direct writer": with_s3dlio, "open().write(), fsync": with_open}
    speeds: dict[str, list[float]] = {name: [] for name in contenders}
    for round_ in range(arguments.rounds + 1):
        for name, write in contenders.items():
            with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
                began = time.perf_counter()
                write(Path(folder) / "a", chunk, count)
                if round_ > 0:
                    speeds[name].append(count * CHUNK / (time.perf_counter() - began) / 1e9)
    for name, values in speeds.items():
        print(f"{name:24} {median(values):5.2f} GB/s ({min(values):.2f} to {max(values):.2f})")
    ratios = [a / b for a, b in zip(*speeds.values(), strict=True)]
    print(f"{'ratio':24} {median(ratios):5.2f}      ({min(ratios):.2f} to {max(ratios):.2f})")


if __name__ == "__main__":
    main()
