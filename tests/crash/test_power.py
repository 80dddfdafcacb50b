"""A loss of power at any moment: every acknowledged file is there, and none is torn; see power_loss.py."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import power_load
import power_loss
import pytest
from harness import effort, new_seed
from logdisk import MKFS, need_logdisk
from power_load import ENGINES, which_version
from power_loss import Crash, Load, Promised

import s3dlio

WITHOUT_FSYNC = s3dlio.WriterOptions(durability="none")
HIDDEN = re.compile(r"\.(.*)\.s3dlio-\d+")
# A process without /proc can make no file without a name, and writes under a hidden one from the beginning.
WITHOUT_PROC = ("unshare", "--mount", "sh", "-c", 'mount -t tmpfs tmpfs /proc && exec "$@"', "sh")


def owner_of(promised: Promised, folder: Path, name: str) -> str | None:
    """The file in the making that may have a hidden name for ``name`` in ``folder``, which is its own or, while that is
    missing, one above."""
    for file in sorted(promised.begun, key=lambda file: Path(file).parent != folder):
        in_the_making = promised.begun[file] > promised.acknowledged.get(file, -1)
        if in_the_making and Path(file).name == name and folder in Path(file).parents:
            return file
    return None


@dataclass
class Found:
    """What was wrong in the states looked at."""

    states: int = 0
    lossy: int = 0
    hidden: int = 0
    swept: int = 0
    lost: list[str] = field(default_factory=list)
    torn: list[str] = field(default_factory=list)
    stray: list[str] = field(default_factory=list)

    def look(self, folder: Path, promised: Promised, crash: Crash) -> None:
        self.states += 1
        versions = {}
        abandoned = []
        for path in folder.rglob("*"):
            if not path.is_file():
                continue
            hidden = HIDDEN.fullmatch(path.name)
            name = str(path.relative_to(folder))
            if hidden:
                owner = owner_of(promised, path.relative_to(folder).parent, hidden[1])
                if owner:
                    abandoned.append((path, folder / owner))
                else:
                    self.stray.append(f"{crash}: {name}")
            elif name not in promised.begun:
                self.stray.append(f"{crash}: {name}")
            else:
                versions[name] = which_version(path, name, promised.begun[name])
                if versions[name] is None:
                    self.torn.append(f"{crash}: {name}")
        for name, version in promised.acknowledged.items():
            there = versions.get(name, -1)
            if there is not None and there < version:
                self.lost.append(f"{crash}: {name}: version {there} instead of {version}")
        self.hidden += len(abandoned) > 0
        for path, owner in abandoned:
            if path.parent == owner.parent:  # goes when the file is replaced
                for _ in range(2):
                    s3dlio.put(f"file://{owner}", b"", WITHOUT_FSYNC)
                self.swept += not path.exists()
                if path.exists():
                    self.stray.append(f"{crash}: {path} after the next writer")


def search(kind: str, place: Path, how: str, rounds: int, count: int, seed: int) -> tuple[Found, Promised]:
    """Writes files as ``how`` says and looks at ``count`` states after a loss of power."""
    found = Found()
    start = (*(WITHOUT_PROC if how == "named" else ()), sys.executable, power_load.__file__)
    promised, found.lossy = power_loss.search(
        kind,
        place,
        [Load(start, (how, str(rounds)), engine) for engine in ENGINES],
        count,
        seed,
        lambda promised, crash: found.look(place / "mount", promised, crash),
    )
    return found, promised


@pytest.mark.timeout(3000)
@pytest.mark.parametrize(
    ("kind", "how", "count"),
    [
        ("ext4", "full", effort(200, 0)),
        ("xfs", "full", effort(150, 0)),
        ("btrfs", "full", effort(50, 500)),
        ("ext4", "named", effort(50, 500)),
        ("xfs", "named", effort(50, 500)),
    ],
)
def test_acknowledged_files_after_a_loss_of_power_are_there_and_whole(
    kind: str, how: str, count: int, memory_path: Path, figure: Callable[[str], None]
) -> None:
    need_logdisk()
    seed = new_seed()
    found, promised = search(kind, memory_path, how, 2 if count == 0 else effort(2, 6), count, seed)
    named = " without O_TMPFILE" if how == "named" else ""
    figure(
        f"power loss: {kind}{named} {found.states} states, {found.lossy} without some unflushed writes, {found.hidden}"
        f" with hidden names, {len(found.lost)} acknowledged files lost, {len(found.torn)} torn, seed {seed}"
    )
    assert len(promised.acknowledged) >= 8
    assert found.states == count or (count == 0 and found.states > 300)
    assert found.lossy > found.states // 5
    if named:
        assert found.hidden
        assert found.swept
    assert (found.lost, found.torn, found.stray) == ([], [], [])


# Planted faults: a search that did not see these would prove nothing.


@pytest.mark.parametrize("kind", MKFS)
def test_files_acknowledged_without_fsync_are_seen_to_be_lost(kind: str, memory_path: Path) -> None:
    need_logdisk()
    found, _ = search(kind, memory_path, "none", 1, 25, 1)
    assert found.lost


@pytest.mark.parametrize("kind", MKFS)
def test_files_acknowledged_without_fsync_of_the_folder_are_seen_to_be_lost(kind: str, memory_path: Path) -> None:
    need_logdisk()
    found, _ = search(kind, memory_path, "data", 2, 50, 1)
    assert found.lost
    assert not found.torn  # what durability='data' promises


@pytest.mark.parametrize("kind", MKFS)
def test_files_written_in_place_are_seen_to_be_torn(kind: str, memory_path: Path) -> None:
    need_logdisk()
    found, _ = search(kind, memory_path, "in place", 1, 25, 1)
    assert found.torn
