"""Peak memory of a writer beside the data itself, for streams of any length: each in a new process, from the moment
that the writer is open and the chunk that it gets, of 8 MiB, is there."""

from __future__ import annotations

import base64
import os
import re
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import race
from race import GIB, KIB, MIB, Contender, Race

LIMIT_MIB = 80


class Peak:
    """How much more memory this process takes at most than in the moment that this is made."""

    def __init__(self) -> None:
        Path("/proc/self/clear_refs").write_text("5")  # forgets the peak so far, see proc(5)
        self._baseline = status("VmRSS")

    def nbytes(self) -> int:
        return status("VmHWM") - self._baseline


def status(field: str) -> int:
    found = re.search(rf"^{field}:\s*(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found
    return int(found[1]) * KIB


def measure(scheme: str, direct: bool | None, compression: str | None) -> Callable[[str, int], dict[str, int]]:
    import s3dlio

    def write(path: str, nbytes: int) -> dict[str, int]:
        size = min(nbytes, 8 * MIB)
        # One half cannot be compressed, the other somewhat.
        chunk = os.urandom(size // 2) + base64.b64encode(os.urandom(size // 2))[: size // 2]
        with s3dlio.open_writer(f"{scheme}://{path}", direct=direct, compression=compression) as writer:
            peak = Peak()
            for _ in range(nbytes // size):
                writer.write_chunk(chunk)
        return {"peak": peak.nbytes(), "bytes": writer.bytes_written()}

    return write


CONTENDERS = tuple(
    Contender(f"{name}{', zstd' if compression else ''}", partial(measure, name.partition(":")[0], direct, compression))
    for name, direct in (("direct://", None), ("file://", None), ("file://, direct=False", False))
    for compression in (None, "zstd")
)


def main() -> None:
    title = "Memory: the peak of one writer beside the data itself"
    with Race(__file__, title, CONTENDERS, rounds=1) as contest:
        process = 0
        for nbytes in contest.pick(full=(MIB, 64 * MIB, GIB, 16 * GIB), quick=(MIB, 64 * MIB)):
            size = f"{nbytes // GIB} GiB" if nbytes >= GIB else f"{nbytes // MIB} MiB"
            if shutil.disk_usage(contest.folder).free < 2 * nbytes:
                contest.note(f"{size} is left out: the disk has no room for it.")
                continue
            rows = {}
            for name in (contender.name for contender in CONTENDERS):
                process += 1
                contest.path.parent.mkdir()
                worker = contest.worker(name, process)
                answer = worker.run(str(contest.path), nbytes)
                worker.close()
                shutil.rmtree(contest.path.parent)
                assert answer["bytes"] == nbytes
                rows[name] = {"value": race.spread([answer["peak"] / MIB]), "target": f"at most {LIMIT_MIB}"}
            contest.add({"title": f"a stream of {size}", "unit": "MiB", "rounds": 1, "rows": rows})


if __name__ == "__main__":
    main()
