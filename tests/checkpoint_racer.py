"""A process that saves to, or loads from, a store that others use at the same moment.

    checkpoint_racer.py JOB

The job is a JSON object.  What the process did is written to its file ``result``, as JSON: savers tell of each save the
version, when it began and was acknowledged (time.monotonic_ns, which is one clock for all processes), and the key of
its manifest; readers tell of each load of the latest checkpoint when it began and the version, and of each look at the
file ``pointer``, if there is one, the key that it named.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import checkpoint_work
from checkpoint_work import content, version_of

import s3dlio
from s3dlio.checkpoint import CheckpointStore
from s3dlio.checkpoint.layout import parse_pointer

# Not empty: the bytes tell the version.
SIZES = (5000, 12, checkpoint_work.BLOCK, 3 * checkpoint_work.BLOCK + 1)
# The versions of one saver, of which there are fewer.
NUMBERS = 1_000_000

FAULTS = {
    "slow clock": checkpoint_work.trust_a_slow_clock,
    "pointer in place": checkpoint_work.write_pointer_in_place,
    "pointer on no condition": checkpoint_work.move_pointer_on_no_condition,
}


def save_all(store: CheckpointStore, job: dict[str, Any]) -> list[Any]:
    if job["fault"] in FAULTS:
        FAULTS[job["fault"]]()
    save = checkpoint_work.save_manifest_first if job["fault"] == "manifest first" else checkpoint_work.save
    saves = []
    first = job["saver"] * NUMBERS
    for version in range(first, first + job["rounds"]):
        began = time.monotonic_ns()
        key = save(store, version, content(version, SIZES))
        saves.append((version, began, time.monotonic_ns(), key))
        if job["keeps"] and version % 5 == 4:
            store.keep_last(2)
    return saves


def load_all(store: CheckpointStore, job: dict[str, Any]) -> dict[str, list[Any]]:
    """Until the file ``stop`` is there, or the test is gone; then once more."""
    loads, looks = [], []
    stop, test = Path(job["stop"]), os.getppid()
    is_last = False
    while True:
        loads.append((time.monotonic_ns(), load(store)))
        if job["pointer"]:
            looks.append((time.monotonic_ns(), look(Path(job["pointer"]))))
        if is_last:
            return {"loads": loads, "looks": looks}
        is_last = stop.exists() or os.getppid() != test


def load(store: CheckpointStore) -> int | str | None:
    """The version that is the latest, None for none, or what is wrong."""
    try:
        data = store.load_latest()
    except s3dlio.S3dlioError as error:
        return f"failed: {error}"
    if data is None:
        return None
    assert isinstance(data, bytes)
    version = version_of(data, sys.maxsize, SIZES)
    return "torn" if version is None else version


def look(pointer: Path) -> str | None:
    """The key that the file names, None for no file, or what is wrong."""
    try:
        name = parse_pointer(pointer.read_bytes())
    except FileNotFoundError:
        return None
    return "torn" if name is None else name.manifest_key


def main(job: dict[str, Any]) -> None:
    options = s3dlio.WriterOptions(compression=job["compression"], durability=job["durability"])
    store = CheckpointStore(job["uri"], options=options)
    done = load_all(store, job) if job["saver"] is None else save_all(store, job)
    Path(job["result"]).write_text(json.dumps(done))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
