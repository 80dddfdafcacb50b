"""A save of a checkpoint of which one step fails: what was there stays, and the new one is there whole or not at all.

Run on a FUSE file system that is told which of its calls fails (shortfs.c).
"""

from __future__ import annotations

import errno
import itertools
import random
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from harness import effort
from shortfs import EVERY_TIME, OPS, ShortFs, build, mounted

import s3dlio

OLD = random.Random(1).randbytes(50_000)
NEW = random.Random(2).randbytes(300_000)
# Those of a save.  The file system hears of a release after close(2), and nobody of what it says to it.
STEPS = tuple(op for op in OPS if op not in ("direct", "release"))


@pytest.fixture
def fuse(tmp_path_factory: pytest.TempPathFactory, disk_path: Path) -> Iterator[ShortFs]:
    with mounted(build(tmp_path_factory.mktemp("shortfs")), "direct_io", disk_path) as found:
        yield found


class Trial:
    """One save under a fault, in a store that has a checkpoint."""

    def __init__(self, fuse: ShortFs, scheme: str, compression: str | None) -> None:
        self.fuse = fuse
        self.behind = fuse.behind / "ck"
        shutil.rmtree(self.behind, ignore_errors=True)
        options = s3dlio.WriterOptions(compression=compression, buffer_size=65_536, threads=0)
        s3dlio.CheckpointStore(f"file://{self.behind}", options=options).save(1, 1, "x", OLD)
        self.before = self.tree()
        self.store = s3dlio.CheckpointStore(f"{scheme}://{fuse.mount}/ck", options=options)
        # Past the caches of the mounted file system.
        self.judge = s3dlio.CheckpointStore(f"file://{self.behind}")
        fuse.reset()

    def tree(self) -> set[str]:
        return {str(path.relative_to(self.behind)) for path in self.behind.rglob("*")}

    def save(self) -> s3dlio.S3dlioError | None:
        try:
            self.store.save(2, 1, "x", NEW)
        except s3dlio.S3dlioError as error:
            return error
        finally:
            self.fuse.settle()
        return None

    def wrong(self, error: s3dlio.S3dlioError | None, number: int) -> str:
        """What is not as it should be after it, or ''."""
        found = self.judge.load_latest()
        if found not in (OLD, NEW) or self.judge.load(1) != OLD:
            return "torn"
        if error is None and found != NEW:
            return "lost"
        if error is not None and error.errno != number:
            return f"told otherwise: {error!r}"
        if error is not None and found == OLD and self.tree() != self.before:
            return f"left behind: {self.tree() - self.before}"
        if any(info.status != "complete" for info in self.judge.list_checkpoints()):
            return "damaged"
        return ""

    def wrong_afterwards(self) -> str:
        """The disk is well again: the next save works, and nothing is left that clean_up does not find."""
        self.fuse.reset()
        self.store.save(3, 1, "x", OLD + NEW)
        if self.judge.load_latest() != OLD + NEW:
            return "the next save is lost"
        self.judge.keep_last(1)
        self.judge.clean_up(0)
        files = {path for path in self.behind.rglob("*") if path.is_file()}
        folders = [*(self.behind / "shards").iterdir()]
        return "" if (len(files), len(folders)) == (3, 1) else f"not cleaned up: {files} {folders}"


@pytest.mark.timeout(effort(300, 1800))
def test_each_step_of_a_save_that_fails_is_told_and_tears_nothing(fuse: ShortFs, figure: Callable[[str], None]) -> None:
    count: Counter[str] = Counter()
    for scheme, compression in itertools.product(("file", "direct"), (None, "zstd")):
        whole = Trial(fuse, scheme, compression)
        assert whole.save() is None
        calls = {op: fuse.count(op) for op in STEPS}
        assert calls["write"] > 3
        assert calls["fsync"] >= 3
        assert calls["fsyncdir"] >= 3
        assert calls["mkdir"] == 1
        for op, number in itertools.product(STEPS, (errno.ENOSPC, errno.EIO)):
            for nth in [*range(1, calls[op] + 1), EVERY_TIME]:
                trial = Trial(fuse, scheme, compression)
                fuse.rule(op, nth=nth, error=number)
                error = trial.save()
                fired = fuse.count(op, "fired")
                what = (scheme, compression, op, nth, errno.errorcode[number], repr(error))
                assert trial.wrong(error, number) == "", what
                assert error or nth != EVERY_TIME or op not in ("write", "fsync", "fsyncdir", "mkdir", "rename"), what
                assert trial.wrong_afterwards() == "", what
                if fired:
                    count["injected"] += 1
                    count["told" if error else "without harm"] += 1
    figure(
        f"checkpoint steps: {count['injected']} errors injected, {count['told']} told, {count['without harm']} without "
        "harm, 0 torn, 0 lost, 0 left behind"
    )
    assert count["told"] > 100


@pytest.mark.parametrize("scheme", ["file", "direct"])
@pytest.mark.parametrize("compression", [None, "zstd"])
def test_sector_that_cannot_be_read_is_damage(fuse: ShortFs, scheme: str, compression: str | None) -> None:
    trial = Trial(fuse, scheme, compression)
    assert trial.save() is None
    # The pointer and the manifest are read before.
    fuse.reset()
    trial.store.reader().load_latest_manifest()
    before = fuse.count("read")
    fuse.reset()
    fuse.rule("read", nth=before + 1, error=errno.EIO)
    with pytest.raises(
        s3dlio.CorruptDataError, match=r"the shard of rank 0 is damaged at byte 0: or after: .*[Ii]nput"
    ):
        trial.store.load_latest()
    assert fuse.count("read", "fired") == 1
    fuse.reset()
    fuse.rule("read", nth=before + 1, error=errno.EIO)
    with pytest.warns(RuntimeWarning, match="going back"):
        assert trial.store.load_latest(fall_back=True) == OLD


def test_wrong_saves_are_seen(fuse: ShortFs) -> None:
    """The planted faults: a judge that did not see these would prove nothing."""
    trial = Trial(fuse, "file", None)
    fuse.rule("write", nth=2, error=errno.EIO)
    error = trial.save()
    assert error
    assert trial.wrong(None, errno.EIO) == "lost"
    assert trial.wrong(error, errno.ENOSPC).startswith("told otherwise")
    (trial.behind / "shards/other").mkdir()
    assert trial.wrong(error, errno.EIO) == "left behind: {'shards/other'}"
    (shard,) = trial.behind.glob("shards/*/rank-0.bin")
    shard.write_bytes(OLD[:-1] + b"?")
    with pytest.raises(s3dlio.CorruptDataError):
        trial.wrong(error, errno.EIO)
