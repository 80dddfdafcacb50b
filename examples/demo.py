"""Streams a real directory of this machine through the plain, the direct and the zstd writer, and verifies the result.

Usage: demo.py [--source DIR] [--target DIR] [--limit MIB] [--keep]
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import s3dlio

CHUNK = 8 << 20
MIB = 1 << 20


class LimitReachedError(Exception):
    """The stream is as long as was asked for."""


class ChunkSink:
    """The file object that tarfile writes to: hands every chunk to a writer, up to the limit."""

    def __init__(self, writer: s3dlio.ObjectWriter, limit: int) -> None:
        self._writer = writer
        self._limit = limit
        self.size = 0

    def write(self, chunk: bytes) -> int:
        self._writer.write_chunk(chunk)
        self.size += len(chunk)
        if self.size >= self._limit:
            raise LimitReachedError
        return len(chunk)


def files_below(source: Path) -> Iterator[Path]:
    for folder, folders, names in os.walk(source):
        folders.sort()
        for name in sorted(names):
            path = Path(folder) / name
            if path.is_file() and not path.is_symlink() and os.access(path, os.R_OK):
                yield path


def collect(source: Path, limit: int) -> tuple[bytes, int]:
    """The tar stream of a directory in memory, so that reading the source does not count as time of a writer.  It
    travels through a writer of its own, the memory store's.  Returns the stream and the count of files."""
    uri = "memory://demo/source.tar"
    count = 0
    with s3dlio.open_writer(uri) as writer:
        sink = ChunkSink(writer, limit)
        try:
            with tarfile.open(fileobj=sink, mode="w|", bufsize=MIB) as archive:  # type: ignore[call-overload]
                for path in files_below(source):
                    archive.add(path, recursive=False)
                    count += 1
        except LimitReachedError:
            pass
    data = s3dlio.get(uri)
    s3dlio.delete(uri)
    return data, count


@dataclass
class Row:
    name: str
    stats: s3dlio.WriterStats
    seconds: float
    verified: str


def write(name: str, uri: str, options: s3dlio.WriterOptions, data: bytes) -> Row:
    """Writes the stream, durably, in chunks, and verifies it."""
    create = s3dlio.create_direct_filesystem_writer if name == "direct" else s3dlio.create_filesystem_writer
    stream = memoryview(data)
    began = time.perf_counter()
    with create(uri, options) as writer:
        for start in range(0, len(stream), CHUNK):
            writer.write_chunk(stream[start : start + CHUNK])
    seconds = time.perf_counter() - began
    return Row(name, writer.stats(), seconds, verify(writer, data))


def verify(writer: s3dlio.ObjectWriter, data: bytes) -> str:
    """Reads back what was written, plain or with the stock zstd tool, and compares its CRC32C."""
    path = writer.uri.removeprefix("direct://").removeprefix("file://")
    if not path.endswith(".zst"):
        crc = s3dlio.crc32c(s3dlio.get(writer.uri))
        how = "read back"
    elif shutil.which("zstd"):
        with subprocess.Popen(["zstd", "-dcq", path], stdout=subprocess.PIPE) as process:
            crc = 0
            while chunk := process.stdout.read(MIB):  # type: ignore[union-attr]
                crc = s3dlio.crc32c(chunk, crc)
        if process.returncode != 0:
            sys.exit(f"zstd does not accept {path}")
        how = "zstd tool"
    else:
        with s3dlio.open_reader(writer.uri, decompress=True) as reader:
            crc = 0
            while chunk := reader.read(MIB):
                crc = s3dlio.crc32c(chunk, crc)
        how = "zstd library"
    if not crc == s3dlio.crc32c(data) == writer.stats().crc32c:
        sys.exit(f"{path} is not what was written: crc32c {crc:08x}, not {s3dlio.crc32c(data):08x}")
    return how


def show(rows: list[Row]) -> None:
    print(
        f"{'writer':8} {'bytes':>12} {'stored':>12} {'seconds':>8} {'GB/s':>6}  {'path':22} {'crc32c':10} verified by"
    )
    for row in rows:
        stats = row.stats
        path = f"{stats.io_engine}, {'O_DIRECT' if stats.direct else 'buffered'}"
        print(
            f"{row.name:8} {stats.bytes_written:12} {stats.compressed_bytes:12} {row.seconds:8.3f} "
            f"{stats.bytes_written / row.seconds / 1e9:6.2f}  {path:22} {stats.crc32c:08x}   {row.verified}"
        )
        if stats.direct_reason:
            print(f"{'':8} no O_DIRECT: {stats.direct_reason}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--source", type=Path, default=Path("/usr/share"), help="directory to stream (default: %(default)s)"
    )
    parser.add_argument("--target", type=Path, default=None, help="folder to write to (default: a temporary one here)")
    parser.add_argument(
        "--limit", type=int, default=256, metavar="MIB", help="end of the stream (default: %(default)s)"
    )
    parser.add_argument("--keep", action="store_true", help="keep the files")
    arguments = parser.parse_args()
    if not arguments.source.is_dir():
        parser.error(f"{arguments.source} is no directory")

    folder = Path(tempfile.mkdtemp(prefix="s3dlio-demo-", dir=arguments.target or Path.cwd()))
    try:
        print(f"reading {arguments.source} as a tar stream ...", flush=True)
        data, count = collect(arguments.source, arguments.limit * MIB)
        print(
            f"{count} files, {len(data)} bytes; writing to {folder} in chunks of {CHUNK // MIB} MiB, durably\n",
            flush=True,
        )
        base = folder.as_uri()
        rows = [
            write("plain", f"{base}/plain.tar", s3dlio.WriterOptions(), data),
            write("direct", f"{base}/direct.tar", s3dlio.WriterOptions(), data),
            write("zstd", f"{base}/packed.tar", s3dlio.WriterOptions(compression="zstd"), data),
        ]
        show(rows)
    finally:
        if not arguments.keep:
            shutil.rmtree(folder)


if __name__ == "__main__":
    main()
