"""What the tests of checkpoints under attack save, and the planted faults that they must see.

The bytes of a version follow from its number, which they begin with.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import s3dlio
from s3dlio._checksum import checksum_text
from s3dlio._options import WriterOptions
from s3dlio._stores.file import FileStore
from s3dlio._uri import Uri
from s3dlio.checkpoint import CheckpointStore, catalog, latest
from s3dlio.checkpoint.layout import LATEST, Name, Shard, new_manifest, new_name, pointer_document

BLOCK = 64 << 10
PART = 5 << 20  # the shortest that S3 takes
# None, less than a block, exactly one, and some of which several are in flight at once.
SIZES = (0, 5000, BLOCK, 5 * BLOCK + 1, 9000, 16 * BLOCK, 2 * BLOCK - 1, 12)
S3_SIZES = (0, 5000, PART, 300_000, 12, 2 * PART + 1, 9000)
POOL = random.Random("checkpoints").randbytes(12 << 20)  # does not compress


def content(version: int, sizes: tuple[int, ...] = SIZES) -> bytes:
    """The bytes of a version: no two of them agree in any place, but by chance."""
    size = sizes[version % len(sizes)]
    start = version * 512 % (len(POOL) - size)
    return (version.to_bytes(8, "big") + POOL[start : start + size])[:size]


def version_of(data: bytes, newest: int, sizes: tuple[int, ...] = SIZES) -> int | None:
    """The version, up to the newest, that has these bytes, or None; the newest one of none."""
    version = int.from_bytes(data[:8], "big") if data else newest - newest % len(sizes)
    return version if version <= newest and data == content(version, sizes) else None


def step_of(version: int) -> int:
    """Two in turn are of the same step."""
    return version // 2


def pieces(data: bytes, size: int = 30_000) -> Iterator[bytes]:
    return (data[start : start + size] for start in range(0, len(data), size))


def save(store: CheckpointStore, version: int, data: bytes) -> str:
    return store.save(step_of(version), version, "test", pieces(data))


# Planted faults: what a process does once it has called one of these, or saves by it.


def save_manifest_first(store: CheckpointStore, version: int, data: bytes) -> str:
    step = step_of(version)
    checksum = checksum_text(s3dlio.crc32c(data))
    shard = Shard(0, new_name(step).shard_key(0), len(data), checksum, len(data), checksum, (), "")
    key = store._catalog.add(new_manifest(step, version, "test", [shard.record()], 1, None))
    time.sleep(0.01)
    s3dlio.put(f"{store.uri}/{shard.key}", data)
    return key


def trust_a_slow_clock() -> None:
    """A checkpoint has the name of its own moment, also where there are later ones."""
    now, plain_name = time.time_ns, catalog.new_name
    time.time_ns = lambda: now() - 1000 * 1_000_000_000
    catalog.new_name = lambda step, after=0: plain_name(step)


def write_pointer_in_place() -> None:
    def replace(base: Uri, name: Name | None, options: WriterOptions, is_good: Callable[[Name], bool]) -> None:
        with Path(base.below(LATEST).key).open("wb", buffering=0) as file:
            for piece in pieces(pointer_document(name), 50):
                file.write(piece)
                time.sleep(0.0005)

    latest._replace = replace


def move_pointer_on_no_condition() -> None:
    def put_if(self: FileStore, uri: Uri, data: bytes, etag: str | None, options: WriterOptions) -> bool:
        time.sleep(0.02)
        self.put(uri, data, options)
        return True

    FileStore.put_if = put_if  # type: ignore[method-assign]
