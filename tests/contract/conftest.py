"""The stores that the contract is run on: one row for each, and a folder in it."""

from __future__ import annotations

from pathlib import Path

import pytest
from places import Place

STORES = {
    "file": ("file", None),
    "direct": ("direct", None),
    "file-threads": ("file", "threads"),
    "direct-threads": ("direct", "threads"),
    "file-uring": ("file", "uring"),
    "direct-uring": ("direct", "uring"),
    "memory": ("memory", None),
}


@pytest.fixture(params=STORES)
def place(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Place:
    scheme, engine = STORES[request.param]
    if scheme == "memory":
        base = f"memory://{request.node.name.replace('/', '-')}"
        return Place(base, None, list)
    if engine:
        monkeypatch.setenv("S3DLIO_IO_ENGINE", engine)
    folder: Path = request.getfixturevalue("disk_path")

    def hidden() -> list[str]:
        return [str(path) for path in folder.rglob("*") if path.name.startswith(".")]

    return Place(f"{scheme}://{folder}", engine, hidden)
