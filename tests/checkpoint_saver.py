"""Savers to be killed: each saves checkpoint after checkpoint, and deletes old ones from time to time."""

from __future__ import annotations

import importlib
import itertools
import os
import random
from collections.abc import Iterator
from typing import Any

import checkpoint_work
import victims
from checkpoint_work import content, step_of

import s3dlio
from s3dlio.checkpoint import CheckpointStore, catalog, latest


def save_all(shared: victims.Shared, job: dict[str, Any]) -> None:
    """Saves version after version until the server is gone."""
    server = os.getppid()
    store = CheckpointStore(job["uri"], options=s3dlio.WriterOptions(**job["options"]))
    tell_phases(shared)
    save = SAVERS[job["saver"]]
    choose = random.Random(job["first"])
    for version in itertools.count(job["first"]):
        if os.getppid() != server:
            return
        shared.begun = version
        shared.phase = "open"
        save(shared, store, version, content(version, job["sizes"]))
        shared.acknowledged = version
        shared.phase = "between"
        if choose.random() < job["deletes"]:
            shared.phase = "delete"
            delete_some(shared, store, choose)


def tell_phases(shared: victims.Shared) -> None:
    seal, advance = catalog.seal, latest.advance

    def told_seal(*arguments: Any) -> bytes:
        shared.phase = "manifest"
        return seal(*arguments)

    def told_advance(*arguments: Any) -> None:
        shared.phase = "pointer"
        advance(*arguments)

    catalog.seal, latest.advance = told_seal, told_advance


def delete_some(shared: victims.Shared, store: CheckpointStore, choose: random.Random) -> None:
    """All but the last two, or the oldest step."""
    infos = store.list_checkpoints()
    oldest, newest = infos[0].step, infos[-1].step
    if len(infos) > 2 and choose.random() < 0.5:
        shared.doomed = infos[-2].epoch
        store.keep_last(2)
    elif oldest < newest:
        shared.doomed = next(info.epoch for info in infos if info.step > oldest)
        store.delete_checkpoint(oldest)


def save_whole(shared: victims.Shared, store: CheckpointStore, version: int, data: bytes) -> None:
    def told() -> Iterator[bytes]:
        shared.phase = "write"
        yield from checkpoint_work.pieces(data, max(30_000, len(data) // 40))
        shared.phase = "finalize"

    store.save(step_of(version), version, "test", told())


def save_early(shared: victims.Shared, store: CheckpointStore, version: int, data: bytes) -> None:
    shared.acknowledged = version
    save_whole(shared, store, version, data)


def save_manifest_first(shared: victims.Shared, store: CheckpointStore, version: int, data: bytes) -> None:
    checkpoint_work.save_manifest_first(store, version, data)


def save_with_pointer_in_place(shared: victims.Shared, store: CheckpointStore, version: int, data: bytes) -> None:
    checkpoint_work.write_pointer_in_place()
    save_whole(shared, store, version, data)


# The first is what is tested; the others do what the test must be able to see.
SAVERS = {
    "whole": save_whole,
    "early": save_early,
    "manifest first": save_manifest_first,
    "pointer in place": save_with_pointer_in_place,
}


if __name__ == "__main__":
    importlib.import_module("s3dlio._stores.s3")  # what is imported at the first use
    s3dlio.exists("file:///")
    victims.serve(save_all)
