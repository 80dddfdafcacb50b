"""How much memory a checkpoint takes while it is saved and loaded, however large it is."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from memory_use import NOW

MIB = 1 << 20
SIZE = 512 * MIB

# docs/checkpoint.md, "Memory", and so much for the threads and zstd.
BESIDE = 16 * MIB
SAVING = 36 * MIB + BESIDE
# By the level of zstd; what was saved just now is read past the page cache.
LOADING = {0: 4 * 32 * MIB + BESIDE, 3: 8 * MIB + 32 * MIB + BESIDE}

# Prints by how many bytes the peak is above what the process had before, beside the memory that is its own to keep.
PROGRAM = (
    NOW
    + """
import random, sys
import s3dlio

how, uri, size, level = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
chunk = bytearray(random.Random(0).randbytes(3 << 20) + bytes(1 << 20))  # three quarters cannot be compressed

def chunks():
    for _ in range(0, size, len(chunk)):
        yield chunk

def store(where):
    return s3dlio.CheckpointStore(where, compression_level=level or None)

store(uri + "-before").save(1, 0, "bytes", b"x")
store(uri + "-before").load_latest()
room = bytearray(b"x") * (size if how.startswith("load") else 0)
Path("/proc/self/clear_refs").write_text("5")  # forgets the peak so far, see proc(5)
before = now("VmRSS")
if how == "save":
    store(uri).save(1, 0, "bytes", chunks())
elif how == "hoard":
    store(uri).save(1, 0, "bytes", b"".join(chunks()))
elif how == "load hoarding":
    kept = [s3dlio.get(each) for each in s3dlio.list(uri + "/shards")]
elif how == "load":
    assert store(uri).load_latest(into=room) == size
    assert room[:: 1 << 20] == chunk[:: 1 << 20] * (size // len(chunk))
print(now("VmHWM") - before)
"""
)


@pytest.fixture
def peak(run_python: Callable[..., subprocess.CompletedProcess[str]]) -> Callable[[str, str, int, int], int]:
    return lambda *arguments: int(run_python(PROGRAM, *map(str, arguments)).stdout)


@pytest.mark.parametrize("level", [0, 3])
def test_saving_and_loading_take_the_memory_that_is_documented(
    tmp_path: Path, peak: Callable[..., int], level: int, figure: Callable[[str], None]
) -> None:
    uri = f"file://{tmp_path}/a"
    saving, loading = (peak(how, uri, SIZE, level) for how in ("save", "load"))
    figure(
        f"checkpoint memory: {SIZE // MIB} MiB{', zstd' * (level > 0)}: "
        f"save {saving / MIB:.0f} of {SAVING // MIB} MiB, load {loading / MIB:.0f} of {LOADING[level] // MIB} MiB"
    )
    assert 8 * MIB < saving <= SAVING
    assert loading <= LOADING[level]


def test_who_keeps_all_of_it_is_caught(tmp_path: Path, peak: Callable[..., int]) -> None:
    """Planted faults."""
    uri = f"file://{tmp_path}/a"
    assert peak("hoard", uri, 256 * MIB, 3) > SAVING
    assert peak("load hoarding", uri, 256 * MIB, 3) > LOADING[3]
