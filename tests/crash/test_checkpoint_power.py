"""A loss of power at any moment: every acknowledged checkpoint is there, and all that are there are whole; see
power_loss.py."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import checkpoint_load
import power_loss
import pytest
from checkpoint_work import content, save, version_of
from harness import effort, new_seed
from logdisk import need_logdisk
from power_loss import Crash, Load, Promised

import s3dlio
from s3dlio._stores.file import FileStore
from s3dlio._uri import Uri
from s3dlio.checkpoint import CheckpointStore

WITHOUT_FSYNC = s3dlio.WriterOptions(durability="none")
# Of each saver its scheme, compression and engine.
SAVERS = [("file", "none", "uring"), ("direct", "zstd", "threads"), ("file", "zstd", ""), ("direct", "none", "uring")]


@dataclass
class Found:
    """What was wrong in the states looked at."""

    states: int = 0
    lossy: int = 0
    loads: int = 0
    cleaned: int = 0
    lost: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    stray: list[str] = field(default_factory=list)

    def look(self, folder: Path, promised: Promised, crash: Crash) -> None:
        self.states += 1
        for name, begun in promised.begun.items():
            oldest = promised.acknowledged.get(name, 0)
            doomed = promised.doomed.get(name, 0)
            where = f"{crash}: {name}"
            store = CheckpointStore(f"file://{folder}/{name}", options=WITHOUT_FSYNC)
            try:
                self.look_at_store(store, where, range(oldest, begun + 1), doomed)
            except s3dlio.S3dlioError as error:
                self.failed.append(f"{where}: {error}")
            else:
                self.go_on(store, folder / name, where, begun + 1)

    def look_at_store(self, store: CheckpointStore, where: str, latest: range, doomed: int) -> None:
        """``latest`` are the versions that may be the latest; all that are older are there, from ``doomed`` on."""
        data = store.load_latest()
        assert not isinstance(data, int)
        version = 0 if data is None else version_of(data, latest[-1])
        if version is None:
            self.failed.append(f"{where}: wrong bytes")
        elif version not in latest:
            self.lost.append(f"{where}: version {version} instead of {latest}")
        there = {info.epoch: info for info in store.list_checkpoints()}
        self.failed += [
            f"{where}: version {info.epoch} is damaged" for info in there.values() if not info.is_complete()
        ]
        missing = set(range(max(doomed, 1), latest[0] + 1)) - set(there)
        self.lost += [f"{where}: version {version}" for version in missing]
        for step, epoch in {info.step: info.epoch for info in there.values()}.items():
            self.loads += 1
            if store.load(step) != content(epoch):
                self.failed.append(f"{where}: wrong bytes in step {step}")

    def go_on(self, store: CheckpointStore, folder: Path, where: str, version: int) -> None:
        """The next saver is not hindered, and cleans up."""
        save(store, version, content(version))
        if store.load_latest() != content(version):
            self.lost.append(f"{where}: what is saved next")
        self.cleaned += len(store.clean_up(0))
        left = [path for path in folder.rglob("*") if path.is_file() and path.name.startswith(".")]
        shards = {path.name for path in folder.glob("shards/*")}
        manifests = {path.stem for path in folder.glob("manifests/*")}
        self.stray += [f"{where}: {each}" for each in left] + [f"{where}: {each}" for each in shards ^ manifests]


def search(kind: str, place: Path, durability: str, versions: int, count: int, seed: int) -> tuple[Found, Promised]:
    """Saves checkpoints and looks at ``count`` states after a loss of power."""
    found = Found()
    loads = [
        Load(
            (sys.executable, checkpoint_load.__file__),
            (f"{number}-{scheme}-{compression}", scheme, compression, durability, str(versions)),
            engine,
        )
        for number, (scheme, compression, engine) in enumerate(SAVERS)
    ]
    promised, found.lossy = power_loss.search(
        kind, place, loads, count, seed, lambda promised, crash: found.look(place / "mount", promised, crash)
    )
    return found, promised


@pytest.mark.timeout(3000)
@pytest.mark.parametrize(
    ("kind", "count"), [("ext4", effort(80, 0)), ("xfs", effort(60, 0)), ("btrfs", effort(30, 300))]
)
def test_acknowledged_checkpoints_after_a_loss_of_power_are_there_and_whole(
    kind: str, count: int, memory_path: Path, figure: Callable[[str], None]
) -> None:
    need_logdisk()
    seed = new_seed()
    found, promised = search(kind, memory_path, "full", effort(7, 14 if count else 7), count, seed)
    figure(
        f"checkpoint power loss: {kind} {found.states} states, {found.lossy} without some unflushed writes, "
        f"{len(found.lost)} acknowledged checkpoints lost, {len(found.failed)} damaged, {found.loads} loads by step, "
        f"{found.cleaned} leftovers cleaned up, {len(found.stray)} left, seed {seed}"
    )
    assert len(promised.acknowledged) == len(SAVERS)
    assert found.states == count or (count == 0 and found.states > 300)
    assert found.lossy > found.states // 10
    assert found.cleaned
    assert (found.lost, found.failed, found.stray) == ([], [], [])


@pytest.mark.parametrize("kind", ["ext4", "xfs"])
def test_checkpoints_acknowledged_without_fsync_are_seen_to_be_lost(kind: str, memory_path: Path) -> None:
    """The planted fault: a search that did not see this would prove nothing."""
    need_logdisk()
    found, _ = search(kind, memory_path, "none", 3, 15, 1)
    assert found.lost


def test_deleted_manifest_is_gone_for_good_before_its_shards_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # On btrfs a loss of power could bring the manifest back, and not the shards that it names.
    store = CheckpointStore(f"file://{tmp_path}")
    for version in (1, 2, 3):
        save(store, version, content(version))
    seen = []

    def sync(self: FileStore, uri: Uri) -> None:
        seen.append((uri.key, len(list(tmp_path.glob("manifests/*"))), len(list(tmp_path.glob("shards/*")))))

    monkeypatch.setattr(FileStore, "sync", sync)
    store.keep_last(1)
    assert seen == [(f"{tmp_path}/manifests/", 1, 3)]
    assert len(list(tmp_path.glob("shards/*"))) == 1
