"""The stores that the contract is run on: one row for each, and a folder in it."""

from __future__ import annotations

from pathlib import Path

import pytest
from places import Place

import s3dlio
from s3dlio.checkpoint import shards

STORES = {
    "file": ("file", None),
    "direct": ("direct", None),
    "file-threads": ("file", "threads"),
    "direct-threads": ("direct", "threads"),
    "file-uring": ("file", "uring"),
    "direct-uring": ("direct", "uring"),
    "memory": ("memory", None),
    "s3": ("s3", None),
    "s3-moto": ("s3", "moto"),
    "az": ("az", None),
}


@pytest.fixture(params=STORES)
def place(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Place:
    scheme, engine = STORES[request.param]
    if scheme == "memory":
        base = f"memory://{request.node.name.replace('/', '-')}"
        return Place(base, None, list)
    if scheme == "s3":
        bucket = request.getfixturevalue("moto" if engine == "moto" else "s3")
        base = f"{bucket}/{request.node.name.replace('/', '-')}"

        def uploads() -> list[str]:
            return [each.uri for each in s3dlio.list_stale_uploads(base)]

        return Place(base, None, uploads, is_remote=True, smallest_block=5 << 20)
    if scheme == "az":
        container = request.getfixturevalue("azure")
        return Place(f"{container}/{request.node.name.replace('/', '-')}", None, list, is_remote=True)
    if engine:
        monkeypatch.setenv("S3DLIO_IO_ENGINE", engine)
    folder: Path = request.getfixturevalue("disk_path")

    def hidden() -> list[str]:
        return [str(path) for path in folder.rglob("*") if path.name.startswith(".")]

    return Place(f"{scheme}://{folder}", engine, hidden)


# Of checkpoints.


@pytest.fixture(params=[None, 3], ids=["plain", "zstd"])
def store(place: Place, request: pytest.FixtureRequest) -> s3dlio.CheckpointStore:
    return s3dlio.CheckpointStore(place.base, compression_level=request.param)


@pytest.fixture
def plain(place: Place) -> s3dlio.CheckpointStore:
    return s3dlio.CheckpointStore(place.base)


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> int:
    """So that a small shard has many, and they come to no even end."""
    monkeypatch.setattr(shards, "PIECE", 70_000)
    return 70_000
