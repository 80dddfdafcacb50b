"""A writer killed at any moment leaves the whole old file or the whole new one, never one that is older than the last
that it said to be in place, and nothing beside it that the next writer does not take away."""

from __future__ import annotations

import contextlib
import fcntl
import os
import random
import shutil
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import rewriter
import victims
from harness import effort, need_root, need_tools, new_seed
from victims import spin

import s3dlio

ROWS = [(s, c, e) for s in ("file", "direct") for c in (None, "zstd") for e in ("uring", "threads")]


@pytest.fixture(scope="module")
def server() -> Iterator[victims.Server]:
    with victims.server(rewriter.__file__) as server:
        yield server


class Killer:
    """Kills writers of one kind in a folder of its own, and counts what it finds there afterwards."""

    def __init__(
        self,
        server: victims.Server,
        folder: Path,
        seed: str,
        scheme: str = "file",
        compression: str | None = None,
        engine: str = "threads",
        writer: str = "whole",
    ) -> None:
        self.server, self.folder, self.choose, self.writer = server, folder, random.Random(seed), writer
        self.scheme, self.compression, self.engine = scheme, compression, engine
        self.ending = ".zst" if compression else ""
        # The newest version that was begun, and the oldest that may be there; 0 is no file.
        self.newest = self.oldest = 0
        self.kills = 0
        self.count: Counter[str] = Counter()
        self.moments: Counter[str] = Counter()

    def options(self) -> dict[str, Any]:
        return {
            "compression": self.compression,
            "level": 1,
            "threads": self.choose.choice((0, 2)),
            "buffer_size": rewriter.BLOCK,
            "durability": self.choose.choice(("full", "data", "none")),
        }

    def kill(self, new: bool = False, chroot: bool = False) -> None:
        """Kills one writer, of the name 'a' or of ever new names, and looks at what is there."""
        folder = self.folder / "new" if new else self.folder
        folder.mkdir(exist_ok=True)
        put = self.writer == "whole" and self.choose.random() < 0.2  # in one call, which needs no engine
        first = self.newest + self.choose.randrange(1, 1 + len(rewriter.SIZES))
        pid = self.server.start(
            writer=self.writer,
            scheme=self.scheme,
            engine="" if put else self.engine,
            put=put,
            folder=str(folder),
            chroot=chroot,
            new=new,
            first=first,
            options=self.options(),
        )
        self.wait(first)
        os.kill(pid, signal.SIGKILL)
        assert self.server.reap() == -signal.SIGKILL, "the writer ended by itself"
        self.kills += 1
        shared = self.server.shared
        self.newest = max(self.newest, shared.begun)
        if new:
            self.look_at_new_names(folder, range(first, shared.acknowledged + 1))
        else:
            self.look_at_one_name(shared.acknowledged, chroot)

    def wait(self, first: int) -> None:
        phases = ("open", "write", "finalize", "finalize", "between")
        victims.wait_for_moment(self.server.shared, self.choose, first, phases)

    def read(self, path: Path) -> bytes | None:
        """The content, or None if there is no file."""
        try:
            with s3dlio.open_reader(f"file://{path}", decompress=bool(self.compression)) as reader:
                return reader.read()
        except s3dlio.NotFoundError:
            return None
        except s3dlio.CorruptDataError:
            return b"damaged"

    def look_at_one_name(self, acknowledged: int, locked: bool) -> None:
        name = "a" + self.ending
        self.oldest = max(self.oldest, acknowledged)
        data = self.read(self.folder / name)
        version = version_of(data, self.newest)
        if version is None:
            self.count["torn"] += 1
        elif version < self.oldest:
            self.count["wrong"] += 1
        else:
            self.oldest = version
        others = set(os.listdir(self.folder)) - {name, "new"}
        hidden = others & {f".{name}.s3dlio-0"}
        self.count["hidden"] += len(hidden)
        self.count["others"] += len(others - hidden)
        shared = self.server.shared
        moment = shared.phase
        if moment == "finalize":
            published = version == shared.begun
            moment = "between link and rename" if hidden else "after rename" if published else "before rename"
        self.moments[moment] += 1
        if hidden:
            if locked:
                wait_for_lock(self.folder / f".{name}.s3dlio-0")
            self.put_next()
            self.count["left"] += len(set(os.listdir(self.folder)) - {name, "new"})

    def put_next(self) -> None:
        """Writes a version without killing the writer."""
        self.newest = self.oldest = self.newest + 1
        s3dlio.put(f"{self.scheme}://{self.folder}/a", rewriter.content(self.newest), **self.options())

    def look_at_new_names(self, folder: Path, acknowledged: range) -> None:
        """All that were acknowledged and at most the one after, each whole; nothing else at all."""
        names = set(os.listdir(folder))
        for version in acknowledged:
            self.count["wrong"] += f"{version}{self.ending}" not in names
        for name in names:
            stem = name.removesuffix(self.ending)
            if not stem.isdigit() or int(stem) > self.newest:
                self.count["others"] += 1
            elif self.read(folder / name) != rewriter.content(int(stem)):
                self.count["torn"] += 1
        shared = self.server.shared
        published = f"{shared.begun}{self.ending}" in names
        moment = shared.phase
        self.moments[moment if moment != "finalize" else "after link" if published else "before link"] += 1
        shutil.rmtree(folder)


class LinkKiller(Killer):
    """Kills as soon as there is a hidden name."""

    def wait(self, first: int) -> None:
        hidden = self.folder / f".a{self.ending}.s3dlio-0"
        spin(hidden.exists)


def wait_for_lock(path: Path) -> None:
    """The kernel ends the ring of a killed process some time after the process, and with it the lock on a file that had
    its hidden name while it was written."""

    def is_free() -> bool:
        with path.open("rb") as file, contextlib.suppress(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        return False

    spin(is_free)


def version_of(data: bytes | None, newest: int) -> int | None:
    """The newest version of this content; 0 for no file, None for what is none."""
    if data is None:
        return 0
    return next((version for version in range(newest, 0, -1) if data == rewriter.content(version)), None)


@pytest.mark.timeout(effort(300, 3600))
def test_killed_writer_leaves_a_whole_file_that_is_not_too_old(
    server: victims.Server, disk_path: Path, figure: Callable[[str], None]
) -> None:
    seed = new_seed()
    kills = effort(125, 1250)
    count: Counter[str] = Counter()
    moments: Counter[str] = Counter()
    for number, row in enumerate(ROWS):
        (disk_path / str(number)).mkdir()
        killer = Killer(server, disk_path / str(number), f"{seed} {row}", *row)
        for _ in range(kills):
            killer.kill(new=killer.choose.random() < 0.3)
        count += killer.count
        moments += killer.moments
        count["kills"] += killer.kills
    figure(
        f"kill9: {count['kills']} kills, {count['torn']} torn, {count['wrong']} wrong, {count['hidden']} hidden names "
        f"seen, {count['left']} left by the next write, {count['others']} other names, seed {seed}"
    )
    figure("kill9: in " + ", ".join(f"{moment} {moments[moment]}" for moment in sorted(moments)))
    assert count["kills"] == len(ROWS) * kills
    assert not count["torn"] + count["wrong"] + count["left"] + count["others"]
    for moment in ("open", "write", "before rename", "after rename", "between", "before link", "after link"):
        assert moments[moment], f"no kill in {moment}"


def test_killed_writer_without_o_tmpfile_leaves_at_most_its_hidden_name(
    server: victims.Server, disk_path: Path, figure: Callable[[str], None]
) -> None:
    """Without /proc a file cannot be given its name later, and has a hidden one from the beginning."""
    need_root()
    seed = new_seed()
    count: Counter[str] = Counter()
    for engine in ("uring", "threads"):
        (disk_path / engine).mkdir()
        killer = Killer(server, disk_path / engine, f"{seed} {engine}", engine=engine)
        killer.put_next()  # this process can do without a hidden name, and looks for one only to replace a file
        for _ in range(effort(30, 300)):
            killer.kill(chroot=True)
        count += killer.count
        count["kills"] += killer.kills
    figure(
        f"kill9 without O_TMPFILE: {count['kills']} kills, {count['torn']} torn, {count['wrong']} wrong, "
        f"{count['hidden']} hidden names seen, {count['left']} left by the next write, seed {seed}"
    )
    assert count["hidden"], "no kill while the file had its hidden name"
    assert not count["torn"] + count["wrong"] + count["left"] + count["others"]


def test_writer_killed_between_link_and_rename_leaves_a_hidden_name_for_the_next(
    disk_path: Path, figure: Callable[[str], None]
) -> None:
    """Every time: the rename is held up by strace(1) until the kill."""
    need_tools("strace")
    kills = effort(10, 100)
    count: Counter[str] = Counter()
    # A second before each rename; without --seccomp-bpf every system call would stop.
    slow = ("strace", "-f", "--seccomp-bpf", "-qqq", "-o", "/dev/null", "-e", "trace=renameat", "-e", "signal=none")
    slow += ("-e", "inject=renameat:delay_enter=1000000")
    with victims.server(rewriter.__file__, *slow) as server:
        for number, row in enumerate(ROWS):
            (disk_path / str(number)).mkdir()
            killer = LinkKiller(server, disk_path / str(number), f"{row}", *row)
            for _ in range(kills):
                killer.kill()
            count += killer.count
            count["kills"] += killer.kills
    figure(
        f"kill9 between link and rename: {count['kills']} kills, {count['torn']} torn, {count['wrong']} wrong, "
        f"{count['hidden']} hidden names seen, {count['left']} left by the next write"
    )
    # Nearly: on a busy machine a rename may be over before the kill.
    assert count["hidden"] > count["kills"] * 0.8
    assert not count["torn"] + count["wrong"] + count["left"] + count["others"]


@pytest.mark.parametrize(("writer", "fault"), [("in place", "torn"), ("early", "wrong"), ("other names", "others")])
def test_writer_that_breaks_the_promise_is_seen(
    server: victims.Server, disk_path: Path, writer: str, fault: str
) -> None:
    """The planted faults: a harness that did not see these would prove nothing."""
    killer = Killer(server, disk_path, "planted", writer=writer)
    while not killer.count[fault]:
        assert killer.kills < 500, f"nothing {fault} in {killer.kills} kills"
        killer.kill()
