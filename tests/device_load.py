"""A program that writes files to a disk that breaks, and reports what it was told about each.

    device_load.py FOLDER HOW SEED

It makes the old files, prints a line, waits for one, and then writes every file anew.  HOW is 'full', or a wrong way
that acknowledges what may be lost: 'no fsync', or 'repeated fsync' when the first has failed.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import json
import os
import random
import sys
import time
from pathlib import Path
from typing import Any

from power_load import content

STREAMS = list(itertools.product(("file", "direct"), ("plain", "zstd.zst")))
OLD = [f"{scheme}-{compression}" for scheme, compression in STREAMS]
NEW = [f"new/{scheme}/{scheme}-{compression}" for scheme, compression in STREAMS]


def open_writer(folder: Path, name: str) -> Any:
    import s3dlio

    scheme, compression = Path(name).stem.split("-")
    # Few blocks, so that some errors come while it still writes.
    options = s3dlio.WriterOptions(
        compression=compression if compression == "zstd" else None, buffer_size=65_536, in_flight=2
    )
    return s3dlio.open_writer(f"{scheme}://{folder}/{name.removesuffix('.zst')}", options)


def write(folder: Path, name: str, data: bytes) -> dict[str, Any]:
    """Writes one file; tells how that ended."""
    import s3dlio

    writer = None
    began = time.monotonic()
    end: dict[str, Any] = {"error": None, "visible": True}
    try:
        writer = open_writer(folder, name)
        for at in range(0, len(data), 50_000):
            writer.write_chunk(data[at : at + 50_000])
            if at == 150_000:
                write_back(folder)
        writer.finalize()
    except s3dlio.S3dlioError as error:
        end = {"error": str(error), "errno": error.errno, "operation": error.operation, "uri": error.uri}
        end["visible"] = writer is not None and writer.stats().visible
        end["sticks"] = writer is None or raises_again(writer, error)
    end["seconds"] = time.monotonic() - began
    return end


def write_back(folder: Path) -> None:
    """What the kernel may do at any moment, syncfs(2): an error of it must still reach the writer."""
    fd = os.open(folder, os.O_RDONLY)
    ctypes.CDLL(None).syncfs(fd)
    os.close(fd)


def raises_again(writer: Any, error: Any) -> bool:
    """A file that is in place ends its writer even if the folder's fsync has failed."""
    try:
        writer.write_chunk(b"more")
    except type(error) as again:
        return bool(again.errno == error.errno)
    except ValueError:
        return bool(writer.stats().visible)
    return False


def write_badly(folder: Path, name: str, data: bytes, how: str) -> dict[str, Any]:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        if how == "repeated fsync":
            for _ in range(3):
                with contextlib.suppress(OSError):
                    os.fsync(file.fileno())
                    break
            else:
                raise OSError("every fsync has failed")
    return {"error": None, "visible": True, "seconds": 0.0}


def count_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def main(folder: Path, how: str, seed: int) -> None:
    for name in OLD:
        assert write(folder, name, content(name, 0))["error"] is None
    names = OLD + NEW
    random.Random(seed).shuffle(names)
    before = count_descriptors()
    print("ready", flush=True)
    sys.stdin.readline()
    ends = {}
    for name in names:
        data = content(name, 1)
        try:
            ends[name] = write(folder, name, data) if how == "full" else write_badly(folder, name, data, how)
        except OSError:  # of a wrong way that was told at once
            ends[name] = {"error": "told", "visible": True, "seconds": 0.0}
    print(json.dumps({"ends": ends, "leaked": count_descriptors() - before}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
