"""What the tests under faults let a client do with S3: each way to write and to read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import s3dlio
from s3dlio import MultipartUploadWriter, WriterOptions

MIB = 1 << 20
PART = 5 * MIB
# What one request and one step of a transfer read, under faults: so that small objects take the ways of large ones.
RANGE = MIB // 4


@dataclass(frozen=True)
class Write:
    """How an object is stored, of how many bytes, and by which requests."""

    do: Callable[[str, bytes, Path], object]
    size: int
    requests: tuple[str, ...]


def _put(uri: str, data: bytes, folder: Path) -> None:
    s3dlio.put(uri, data)


def _put_in_parts(uri: str, data: bytes, folder: Path) -> None:
    s3dlio.put(uri, data, buffer_size=PART, in_flight=2)


def _stream(uri: str, data: bytes, folder: Path) -> None:
    with s3dlio.open_writer(uri, buffer_size=PART, in_flight=2) as writer:
        for start in range(0, len(data), MIB):
            writer.write_chunk(data[start : start + MIB])


def _multipart(uri: str, data: bytes, folder: Path) -> None:
    with MultipartUploadWriter.from_uri(uri, part_size=PART, max_in_flight=2) as writer:
        for start in range(0, len(data), MIB):
            writer.write(data[start : start + MIB])


def _reserved(uri: str, data: bytes, folder: Path) -> None:
    with MultipartUploadWriter.from_uri(uri, part_size=PART, max_in_flight=2) as writer:
        done = 0
        while done < len(data):
            room = writer.reserve(min(MIB, len(data) - done))
            room[:] = data[done : done + len(room)]
            done += len(room)
            writer.commit(len(room))
        writer.flush()


def _upload(uri: str, data: bytes, folder: Path) -> None:
    path = folder / "file"
    path.write_bytes(data)
    try:
        s3dlio.upload(path, uri, options=WriterOptions(buffer_size=PART, in_flight=2))
    finally:
        path.unlink()


def _copy(uri: str, data: bytes, folder: Path) -> None:
    s3dlio.copy(f"{uri}-source", uri)


WHOLE = ("PutObject",)
CHECKED = ("PutObject", "HeadObject")
IN_PARTS = ("CreateMultipartUpload", "UploadPart", "CompleteMultipartUpload", "HeadObject")

WRITES = {
    "put": Write(_put, 100_000, WHOLE),
    "put in parts": Write(_put_in_parts, PART + 1000, ("UploadPart", "HeadObject")),
    "stream of one part": Write(_stream, 100_000, CHECKED),
    "stream in parts": Write(_stream, PART + 1000, IN_PARTS),
    "multipart writer": Write(_multipart, PART + 1000, IN_PARTS),
    "multipart writer, reserved": Write(_reserved, PART + 1000, ("UploadPart", "CompleteMultipartUpload")),
    "upload of a small file": Write(_upload, 100_000, CHECKED),
    "upload of a large file": Write(_upload, PART + 1000, IN_PARTS[1:]),
    "copy": Write(_copy, 100_000, ("HeadObject", "CopyObject")),
}


@dataclass(frozen=True)
class Read:
    """How the objects below a place are read, into a folder if need be: returns them by name.  ``sizes`` are theirs,
    ``part`` is what of each is read, from where to where."""

    do: Callable[[str, Path], dict[str, bytes]]
    sizes: dict[str, int]
    requests: tuple[str, ...]
    part: tuple[int, int | None] = (0, None)


def files_in(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def _get(uri: str, folder: Path) -> dict[str, bytes]:
    return {"a": s3dlio.get(f"{uri}/a")}


def _get_range(uri: str, folder: Path) -> dict[str, bytes]:
    return {"a": s3dlio.get_range(f"{uri}/a", A_PART[0], A_PART[1] - A_PART[0])}


def _get_range_of_all(uri: str, folder: Path) -> dict[str, bytes]:
    return {"a": s3dlio.get_range(f"{uri}/a", 0)}


def _read(uri: str, folder: Path) -> dict[str, bytes]:
    with s3dlio.open_reader(f"{uri}/a") as reader:
        return {"a": reader.read()}


def _download(uri: str, folder: Path) -> dict[str, bytes]:
    s3dlio.download(f"{uri}/a", folder)
    return files_in(folder)


def _download_all(uri: str, folder: Path) -> dict[str, bytes]:
    s3dlio.download(uri, folder, max_in_flight=2)
    return files_in(folder)


SMALL, LARGE = {"a": 100_000}, {"a": 3 * RANGE + 12345}
A_PART = RANGE + 1, 2 * RANGE + RANGE // 2
OPENED = ("HeadObject", "GetObject")
LISTED = ("ListObjectsV2", "HeadObject", "GetObject")

READS = {
    "get": Read(_get, SMALL, ("GetObject",)),
    "get of a large object": Read(_get, LARGE, ("GetObject",)),
    "get_range of a part": Read(_get_range, LARGE, OPENED, A_PART),
    "get_range of all": Read(_get_range_of_all, LARGE, OPENED),
    "reader": Read(_read, LARGE, OPENED),
    "download": Read(_download, LARGE, LISTED),
    "download of a folder": Read(_download_all, {"a": 100_000, "b": 2 * RANGE + 1, "deep/c": 0}, LISTED),
}
