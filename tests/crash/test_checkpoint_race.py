"""Processes that save to one store at the same moment, and others that load from it all the time: for these there is
always a latest checkpoint, it is whole, and none is older than what was there before."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import checkpoint_racer
import pytest
from harness import effort

import s3dlio
from s3dlio._stores.base import Source
from s3dlio._stores.s3 import S3Store
from s3dlio._uri import Uri
from s3dlio.checkpoint import CheckpointStore
from s3dlio.checkpoint.layout import Name, parse_manifest_key

SAVERS, READERS = 4, 2


class Save(NamedTuple):
    version: int
    began: int
    acknowledged: int
    key: str


def race(uri: str, place: Path, rounds: int, keeps: bool = False, fault: str = "", **job: Any) -> Counter[str]:
    """Lets them save and load, and counts what the readers saw.  One saver deletes, or has the planted fault."""
    place.mkdir()
    stop = place / "stop"
    job |= {"uri": uri, "rounds": rounds, "stop": str(stop)}
    job = {"durability": "none", "compression": None, "pointer": None} | job
    with ExitStack() as stack:

        def start(name: str, **more: Any) -> subprocess.Popen[bytes]:
            whole = job | more | {"result": str(place / name)}
            process = subprocess.Popen([sys.executable, checkpoint_racer.__file__, json.dumps(whole)])
            stack.callback(process.wait, 30)
            stack.callback(process.kill)
            return process

        # The faulty one goes on when the others have ended, so that it is met by itself as well.
        special = {"keeps": keeps, "fault": fault, "rounds": rounds * 2 if fault else rounds}
        savers = [start("saver-0", saver=0, **special)]
        savers += [start(f"saver-{n}", saver=n, keeps=False, fault="") for n in range(1, SAVERS)]
        readers = [start(f"reader-{n}", saver=None) for n in range(READERS)]
        deadline = time.monotonic() + effort(120, 1200)
        assert [each.wait(deadline - time.monotonic()) for each in savers] == [0] * SAVERS
        stop.touch()
        assert [each.wait(60) for each in readers] == [0] * READERS
    saves = [Save(*each) for n in range(SAVERS) for each in json.loads((place / f"saver-{n}").read_text())]
    count = Counter[str](saves=len(saves))
    for n in range(READERS):
        told = json.loads((place / f"reader-{n}").read_text())
        count += judge_loads(saves, told["loads"])
        count += judge_looks(saves, told["looks"])
    return count


def judge_loads(saves: list[Save], loads: list[tuple[int, int | str | None]]) -> Counter[str]:
    """What is wrong in a reader's sequence."""
    of_version = {save.version: save for save in saves}
    count = Counter[str](loads=len(loads))
    newest: Name | None = None
    for (_, found), began in zip(loads, began_before(saves, [began for began, _ in loads]), strict=True):
        if found is None:
            count["missing"] += began > 0
        elif isinstance(found, str):
            count[found.partition(":")[0]] += 1
        else:
            save = of_version[found]
            # Acknowledged before another one began that was itself acknowledged before this load began.
            count["old"] += save.acknowledged < began
            name = name_of(save.key)
            count["backward"] += newest is not None and name < newest
            newest = max(name, newest or name)
    return count


def judge_looks(saves: list[Save], looks: list[tuple[int, str | None]]) -> Counter[str]:
    """The same for the file latest.json."""
    count = Counter[str](looks=len(looks))
    newest: Name | None = None
    for (_, key), began in zip(looks, began_before(saves, [began for began, _ in looks]), strict=True):
        if key is None:
            count["pointer missing"] += began > 0
        elif key == "torn":
            count["pointer torn"] += 1
        else:
            name = name_of(key)
            count["pointer backward"] += newest is not None and name < newest
            newest = max(name, newest or name)
    return count


def began_before(saves: list[Save], moments: list[int]) -> Iterator[int]:
    """For each of these moments, which grow: of the saves that were acknowledged before, when the last one began; 0 for
    none."""
    saves = sorted(saves, key=lambda save: save.acknowledged)
    latest = [0, *accumulate((save.began for save in saves), max)]
    count = 0
    for moment in moments:
        while count < len(saves) and saves[count].acknowledged < moment:
            count += 1
        yield latest[count]


def name_of(key: str) -> Name:
    name = parse_manifest_key(key)
    assert name is not None
    return name


def report(count: Counter[str], where: str, figure: Callable[[str], None]) -> None:
    kinds = ("failed", "missing", "torn", "old", "backward")
    line = (
        f"checkpoint race, {where}: {count['saves']} saves by {SAVERS} processes, {count['loads']} loads by {READERS}: "
    )
    line += ", ".join(f"{count[kind]} {kind}" for kind in kinds)
    if count["looks"]:
        line += f"; latest.json read {count['looks']} times: "
        line += ", ".join(f"{count[f'pointer {kind}']} {kind}" for kind in ("missing", "torn", "backward"))
    figure(line)


def faults(count: Counter[str]) -> dict[str, int]:
    return {kind: count[kind] for kind in sorted(count) if count[kind] and kind not in ("saves", "loads", "looks")}


@pytest.mark.timeout(effort(300, 3600))
def test_readers_beside_savers_see_whole_checkpoints_that_grow_newer(
    disk_path: Path, figure: Callable[[str], None]
) -> None:
    count: Counter[str] = Counter()
    for scheme, compression, durability in (("file", None, "none"), ("direct", "zstd", "full")):
        store = disk_path / scheme
        count += race(
            f"{scheme}://{store}",
            disk_path / f"{scheme}-race",
            effort(50, 250),
            pointer=str(store / "latest.json"),
            compression=compression,
            durability=durability,
        )
    report(count, "files", figure)
    assert faults(count) == {}


@pytest.mark.timeout(effort(300, 3600))
def test_readers_beside_savers_of_which_one_deletes_never_fail(disk_path: Path, figure: Callable[[str], None]) -> None:
    pointer = str(disk_path / "store" / "latest.json")
    count = race(f"file://{disk_path}/store", disk_path / "race", effort(100, 2000), keeps=True, pointer=pointer)
    report(count, "files and keep_last", figure)
    assert faults(count) == {}


@pytest.mark.timeout(effort(300, 3600))
@pytest.mark.parametrize("keeps", [False, True])
def test_readers_beside_savers_on_s3(s3: str, tmp_path: Path, keeps: bool, figure: Callable[[str], None]) -> None:
    count = race(f"{s3}/race-{keeps}-{os.getpid()}", tmp_path / "race", effort(20, 200), keeps)
    report(count, "S3 and keep_last" if keeps else "S3", figure)
    assert faults(count) == {}


def test_pointer_that_is_replaced_while_it_is_read_is_read_again(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # A load failed, and a save left the pointer where it was.
    store = CheckpointStore(f"{s3}/replaced")
    store.save(1, 1, "test", b"first")
    pointer = f"{store.uri}/latest.json"
    to_come = []
    plain_open = S3Store.open

    def open_and_replace(self: S3Store, uri: Uri, *, once: bool = False) -> Source:
        source = plain_open(self, uri, once=once)
        if str(uri) == pointer and to_come:
            s3dlio.put(pointer, s3dlio.get(pointer) + to_come.pop())
        return source

    monkeypatch.setattr(S3Store, "open", open_and_replace)
    to_come.append(b"\n")
    assert store.load_latest() == b"first"
    to_come.append(b"\n")
    key = store.save(2, 2, "test", b"second")
    assert not to_come
    assert json.loads(s3dlio.get(pointer))["manifest_key"] == key


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        ("manifest first", "failed"),
        ("slow clock", "old"),
        ("pointer in place", "pointer torn"),
        ("pointer on no condition", "pointer backward"),
    ],
)
def test_saver_that_breaks_the_promise_is_seen(disk_path: Path, fault: str, kind: str) -> None:
    """The planted faults: a race that did not show these would prove nothing."""
    for attempt in range(5):
        store = disk_path / str(attempt)
        pointer = str(store / "latest.json")
        count = race(f"file://{store}", disk_path / f"race-{attempt}", 20, fault=fault, pointer=pointer)
        if count[kind]:
            return
    pytest.fail(f"{fault} is not seen: {dict(count)}")
