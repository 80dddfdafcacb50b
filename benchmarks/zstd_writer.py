"""The writer with zstd at level 3 on all cores, durable, against the zstd tool and python-zstandard with as many
threads, both with fsync().  Everyone reads the same file from the page cache."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import corpus
import race
from race import MIB, Contender, Race

Compress = Callable[[str, str], dict[str, Any]]
LEVEL = 3
CORES = len(os.sched_getaffinity(0))


def chunks(source: str) -> Iterator[memoryview]:
    room = memoryview(bytearray(8 * MIB))
    with Path(source).open("rb", buffering=0) as file:
        while count := file.readinto(room):
            yield room[:count]


def ours(scheme: str, threads: int | None = None) -> Compress:
    import s3dlio

    def compress(path: str, source: str) -> dict[str, Any]:
        uri = f"{scheme}://{path}.zst"
        with s3dlio.open_writer(uri, compression="zstd", level=LEVEL, threads=threads) as writer:
            for chunk in chunks(source):
                writer.write_chunk(chunk)
        return {"stored": writer.compressed_bytes()}

    return compress


def tool() -> Compress:
    def compress(path: str, source: str) -> dict[str, Any]:
        subprocess.run(["zstd", f"-{LEVEL}", f"-T{CORES}", "-q", source, "-o", f"{path}.zst"], check=True)
        race.fsync(f"{path}.zst")
        return {"stored": Path(f"{path}.zst").stat().st_size}

    return compress


def python_zstandard() -> Compress:
    import zstandard

    def compress(path: str, source: str) -> dict[str, Any]:
        compressor = zstandard.ZstdCompressor(level=LEVEL, threads=CORES, write_checksum=True)
        with Path(f"{path}.zst").open("wb") as file:
            with compressor.stream_writer(file, closefd=False) as stream:
                for chunk in chunks(source):
                    stream.write(chunk)
            file.flush()
            os.fsync(file.fileno())
            return {"stored": file.tell()}

    return compress


TOOL, ZSTANDARD = f"zstd -{LEVEL} -T{CORES}, fsync()", "python-zstandard, fsync()"
CONTENDERS = (
    Contender("s3dlio, file://", lambda: ours("file")),
    Contender(TOOL, tool, target=1.0),
    Contender(ZSTANDARD, python_zstandard, target=1.0),
    Contender("s3dlio, direct://", lambda: ours("direct")),
)


def main() -> None:
    source, about = corpus.make()
    title = f"zstd: level {LEVEL}, {CORES} threads, durable"
    with Race(__file__, title, CONTENDERS, rounds=9) as contest:
        contest.note(f"The corpus has {about}.")

        def check(path: Path, answer: dict[str, Any]) -> None:
            unpacked = subprocess.Popen(["zstd", "-dcq", f"{path}.zst"], stdout=subprocess.PIPE)
            subprocess.run(["cmp", "-", str(source)], stdin=unpacked.stdout, check=True)
            assert unpacked.stdout
            unpacked.stdout.close()
            assert unpacked.wait() == 0
            assert Path(f"{path}.zst").stat().st_size == answer["stored"]

        contest.case("mixed files", (str(source),), source.stat().st_size / 1e9, "GB/s", check=check)
        rows = contest.result["cases"][-1]["rows"]
        own, *others = (rows[name]["stored"] for name in (CONTENDERS[0].name, TOOL, ZSTANDARD))
        sizes = " and ".join(f"{own / other:.4f}" for other in others)
        contest.note(f"Stored bytes, ours to those of the zstd tool and python-zstandard: {sizes}.")


if __name__ == "__main__":
    main()
