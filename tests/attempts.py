"""Attempts to store a file where that may fail, and a judge of what they leave: the same for the real writer and for
the wrong ones that a test plants."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import s3dlio


@dataclass(frozen=True)
class Outcome:
    """What the writer said: nothing, or an error; and whether the new file is in place all the same."""

    uri: str
    error: Exception | None
    visible: bool
    engine: str = ""
    direct: bool = False


def odd_chunks(data: bytes, choose: random.Random) -> Iterator[bytes]:
    position = 0
    while position < len(data):
        size = choose.choice((1, 4095, 4096, 65537, choose.randint(1, 300_000)))
        yield data[position : position + size]
        position += size


def store(uri: str, data: bytes, choose: random.Random, **options: Any) -> Outcome:
    """Writes the file with small blocks, in chunks that fit none of them.  A compressed one's name ends in .zst."""
    try:
        writer = s3dlio.open_writer(uri, **{"buffer_size": 65536, "level": 1} | options)
    except s3dlio.S3dlioError as error:
        return Outcome(uri, error, False)
    error = None
    try:
        with writer:
            for chunk in odd_chunks(data, choose):
                writer.write_chunk(chunk)
    except s3dlio.S3dlioError as raised:
        error = raised
    stats = writer.stats()
    return Outcome(uri, error, stats.visible, stats.io_engine, stats.direct)


def tree(folder: Path) -> set[Path]:
    return set(folder.rglob("*"))


def store_at_once(uri: str, data: bytes, **options: Any) -> Outcome:
    """The same by `s3dlio.put`, which has a shorter way for what is small."""
    try:
        s3dlio.put(uri, data, **options)
    except s3dlio.S3dlioError as error:
        return Outcome(uri, error, False)
    return Outcome(uri, None, True)


def judge(outcome: Outcome, path: Path, old: bytes | None, new: bytes, folder: Path, before: set[Path]) -> str:
    """What is wrong: '' if the file at ``path`` is the whole new one, or the old one (None: there was none) and the
    writer said so, and nothing else has come to what was in ``folder`` before."""
    expected = new if outcome.visible else old
    if (_content(path) if path.exists() else None) != expected:
        return "torn"
    if outcome.error is None and not outcome.visible:
        return "lost"
    wanted = before | {path, *path.parents} if outcome.visible else before
    return "left" if tree(folder) != {name for name in wanted if folder in name.parents} else ""


def is_loud(outcome: Outcome, numbers: tuple[int, ...]) -> bool:
    """Whether the error tells the object, what was tried with it, and one of these causes."""
    error = outcome.error
    return (
        isinstance(error, s3dlio.S3dlioError)
        and error.errno in numbers
        and error.uri == outcome.uri
        and error.operation in ("open", "write", "finalize", "put")
        and outcome.uri in str(error)
    )


def _content(path: Path) -> bytes:
    """What the device has, not what the page cache still holds: O_DIRECT may not be had, so the cache is emptied."""
    with path.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        data = file.read()
    if path.suffix != ".zst":
        return data
    try:
        with s3dlio.open_reader(f"file://{path}", decompress=True) as reader:
            return reader.read()
    except s3dlio.CorruptDataError:
        return data
