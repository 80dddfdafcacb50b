"""A saver killed at any moment leaves every checkpoint that it said to be saved, whole, and perhaps the next one, and
beside them only what `CheckpointStore.clean_up` takes away."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import checkpoint_saver
import pytest
import victims
from checkpoint_work import BLOCK, PART, S3_SIZES, SIZES, content, save, step_of, version_of
from harness import effort, new_seed

import s3dlio
from s3dlio.checkpoint import CheckpointStore
from s3dlio.checkpoint.layout import parse_pointer

PHASES = ("open", "write", "finalize", "manifest", "pointer", "delete")
ROWS = [(s, c, e) for s in ("file", "direct") for c in (None, "zstd") for e in ("uring", "threads")]


@pytest.fixture(scope="module")
def server() -> Iterator[victims.Server]:
    with victims.server(checkpoint_saver.__file__) as server:
        yield server


class Killer:
    """Kills savers of one kind in a store of its own, and counts what it finds there afterwards."""

    # How long a saver lives, in seconds, and how often it deletes.
    longest, deletes = 0.02, 0.3
    block, sizes = BLOCK, SIZES

    def __init__(
        self,
        server: victims.Server,
        uri: str,
        seed: str,
        compression: str | None = None,
        engine: str = "",
        saver: str = "whole",
    ) -> None:
        self.server, self.uri, self.choose, self.saver = server, uri, random.Random(seed), saver
        self.compression, self.engine = compression, engine
        self.store = CheckpointStore(uri)
        # The newest version that was begun, and the oldest that may be the latest; 0 is none.
        self.newest = self.oldest = 0
        # What must be there.
        self.expected: set[int] = set()
        self.count: Counter[str] = Counter()
        self.moments: Counter[str] = Counter()
        self.errors: list[str] = []

    def options(self) -> dict[str, Any]:
        return {
            "compression": self.compression,
            "level": 1,
            "threads": self.choose.choice((0, 2)),
            "buffer_size": self.block,
            "durability": self.choose.choice(("full", "data", "none")),
        }

    def kill(self) -> None:
        """Kills one saver and looks at what is there."""
        first = self.newest + self.choose.randrange(1, 1 + len(self.sizes))
        pid = self.server.start(
            saver=self.saver,
            engine=self.engine,
            uri=self.uri,
            first=first,
            options=self.options(),
            sizes=self.sizes,
            deletes=self.deletes,
        )
        shared = self.server.shared
        # Not each saver comes to delete.
        phases = tuple(phase for phase in PHASES if phase != "delete" or self.choose.random() < self.deletes)
        victims.wait_for_moment(shared, self.choose, first, phases, self.longest)
        os.kill(pid, signal.SIGKILL)
        assert self.server.reap() == -signal.SIGKILL, "the saver ended by itself"
        self.count["kills"] += 1
        self.newest = max(self.newest, shared.begun)
        self.oldest = max(self.oldest, shared.acknowledged)
        self.expected |= set(range(first, shared.acknowledged + 1))
        self.expected = {version for version in self.expected if version >= shared.doomed}
        self.look()
        phase = shared.phase
        if phase == "manifest":
            phase += " in place" if self.oldest == shared.begun else " not in place"
        self.moments[phase] += 1
        self.count["hidden"] += self.has_hidden()

    def look(self) -> None:
        try:
            self.look_at_latest()
            self.look_at_all()
        except s3dlio.S3dlioError as error:
            self.count["failed"] += 1
            self.errors.append(str(error))

    def look_at_latest(self) -> None:
        data = self.store.load_latest()
        assert not isinstance(data, int)
        version = 0 if data is None else version_of(data, self.newest, self.sizes)
        if version is None:
            self.count["torn"] += 1
        elif version < self.oldest:
            self.count["old"] += 1
        else:
            self.oldest = version

    def look_at_all(self) -> None:
        infos = self.store.list_checkpoints()
        there = [info.epoch for info in infos]
        self.count["damaged"] += sum(not info.is_complete() for info in infos)
        self.count["missing"] += len(self.expected - set(there))
        self.count["wrong"] += there != sorted(set(there)) or [info.step for info in infos] != [*map(step_of, there)]
        self.expected = set(there)
        for step, version in {info.step: info.epoch for info in infos}.items():
            # A server may still carry out what the saver had asked for.
            late = {self.server.shared.begun} if step == step_of(self.server.shared.begun) else set()
            data = self.store.load(step)
            self.count["wrong"] += all(data != content(each, self.sizes) for each in {version} | late)

    def finish(self) -> None:
        """Saves a last one, for which a hidden name goes, cleans up, and counts what went and what stayed although no
        manifest names it."""
        self.newest += 1
        save(self.store, self.newest, content(self.newest, self.sizes))
        before = self.names()
        self.store.clean_up(0)
        after = self.names()
        named = {"latest.json"}
        for info in self.store.list_checkpoints():
            named.add(info.key)
            named |= {shard["key"] for shard in json.loads(s3dlio.get(f"{self.uri}/{info.key}"))["shards"]}
        self.count["cleaned"] += len(before - after)
        self.count["uploads"] += sum(name.endswith("?upload") for name in before)
        self.count["left"] += len(after - named)
        self.count["missing"] += len(named - after)
        self.look()  # all that was there still is

    def names(self) -> set[str]:
        """Of all that takes up space: files, also hidden ones, and empty folders."""
        folder = Path(self.uri.partition("://")[2])
        paths = [path for path in folder.rglob("*") if path.is_file() or not any(path.iterdir())]
        return {str(path.relative_to(folder)) for path in paths}

    def has_hidden(self) -> bool:
        return any(Path(name).name.startswith(".") for name in self.names())


class S3Killer(Killer):
    longest, deletes = 0.3, 0.5
    block, sizes = PART, S3_SIZES

    def has_hidden(self) -> bool:
        return False

    def names(self) -> set[str]:
        """Of all objects, and of uploads that nobody has ended."""
        uploads = [each.uri for each in s3dlio.list_stale_uploads(self.uri)]
        return {uri.removeprefix(self.uri + "/") for uri in s3dlio.list(self.uri)} | {
            f"{uri}?upload" for uri in uploads
        }


def check(killers: list[Killer], kills: int, figure: Callable[[str], None], name: str, seed: int) -> Counter[str]:
    """Says what was found, which must be no fault."""
    count, moments = Counter[str](), Counter[str]()
    for killer in killers:
        count += killer.count
        moments += killer.moments
    wrong = count["missing"] + count["damaged"] + count["wrong"]
    figure(
        f"checkpoint kill9, {name}: {count['kills']} kills, {count['failed']} loads failed, {count['torn']} torn, "
        f"{count['old']} old, {wrong} wrong in lists; {count['cleaned']} leftovers cleaned up, "
        f"{count['uploads']} of them uploads, {count['left']} left; {count['hidden']} hidden names seen, seed {seed}"
    )
    figure(f"checkpoint kill9, {name}: in " + ", ".join(f"{moment} {moments[moment]}" for moment in sorted(moments)))
    assert count["kills"] == kills
    assert [error for killer in killers for error in killer.errors] == []
    assert faults(count) == {}
    assert count["cleaned"]
    return moments


def faults(count: Counter[str]) -> dict[str, int]:
    kinds = ("failed", "torn", "old", "missing", "damaged", "wrong", "left")
    return {kind: count[kind] for kind in kinds if count[kind]}


@pytest.mark.timeout(effort(300, 3600))
def test_killed_saver_leaves_whole_checkpoints_that_are_not_too_old(
    server: victims.Server, disk_path: Path, figure: Callable[[str], None]
) -> None:
    seed = new_seed()
    kills = effort(25, 500)
    killers = []
    for number, (scheme, compression, engine) in enumerate(ROWS):
        killer = Killer(server, f"{scheme}://{disk_path}/{number}", f"{seed} {number}", compression, engine)
        for _ in range(kills):
            killer.kill()
        killer.finish()
        killers.append(killer)
    moments = check(killers, kills * len(ROWS), figure, "files", seed)
    for moment in ("open", "write", "finalize", "manifest not in place", "pointer", "delete"):
        assert moments[moment], f"no kill in {moment}"


@pytest.mark.timeout(effort(300, 3600))
def test_killed_saver_leaves_whole_checkpoints_on_s3(s3: str, figure: Callable[[str], None]) -> None:
    seed = new_seed()
    kills = effort(50, 500)
    killers: list[Killer] = []
    # Which is told where the server is when it is started.
    with victims.server(checkpoint_saver.__file__) as server:
        for compression in (None, "zstd"):
            killer = S3Killer(server, f"{s3}/killed-{compression}", f"{seed} {compression}", compression)
            for _ in range(kills // 2):
                killer.kill()
            time.sleep(0.5)  # for what the server still carries out
            killer.finish()
            killers.append(killer)
    moments = check(killers, kills, figure, "S3", seed)
    assert moments["finalize"], "no kill at the end of an upload"
    assert moments["manifest not in place"] + moments["pointer"], "no kill beside the moment at which it is there"
    assert sum(killer.count["uploads"] for killer in killers), "no kill within an upload"


@pytest.mark.parametrize(("saver", "fault"), [("early", "old"), ("manifest first", "failed")])
def test_saver_that_breaks_the_promise_is_seen(server: victims.Server, disk_path: Path, saver: str, fault: str) -> None:
    """The planted faults: a harness that did not see these would prove nothing."""
    killer = Killer(server, f"file://{disk_path}/store", "planted", saver=saver)
    while not killer.count[fault]:
        assert killer.count["kills"] < 500, f"nothing {fault} in {killer.count['kills']} kills"
        killer.kill()


def test_saver_that_writes_the_pointer_in_place_does_no_harm(
    server: victims.Server, disk_path: Path, figure: Callable[[str], None]
) -> None:
    """Loads find the newest manifest without latest.json, which is but a hint."""
    killer = Killer(server, f"file://{disk_path}/store", "planted", saver="pointer in place")
    torn = 0
    while torn < 5:
        assert killer.count["kills"] < 500, "latest.json is never torn"
        killer.kill()
        pointer = disk_path / "store" / "latest.json"
        torn += pointer.exists() and parse_pointer(pointer.read_bytes()) is None
    figure(f"checkpoint kill9, latest.json in place: {killer.count['kills']} kills, {torn} torn pointers, no harm done")
    assert (killer.errors, faults(killer.count)) == ([], {})
