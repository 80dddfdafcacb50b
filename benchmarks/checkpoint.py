"""Checkpoints in files: saved durably, and loaded with every byte compared, against the reference and our direct writer
alone, and beside PyTorch's own."""

from __future__ import annotations

import os
import random
import shutil
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import corpus
import fast_disk
import race
from race import GIB, MIB, Contender, Race

LEVEL = 3


class Store(Protocol):
    """What a contender saves with and loads from."""

    # Those of one kind load what one of them has saved.
    kind: str

    def save(self, folder: str, data: bytes) -> None: ...

    def load(self, folder: str, nbytes: int) -> Any:
        """Returns a buffer."""


class Ours:
    def __init__(self, scheme: str, level: int | None = None, into: bool = False) -> None:
        self.kind, self._scheme, self._level, self._into = f"ours-{level}", scheme, level, into

    def _store(self, folder: str) -> Any:
        import s3dlio

        return s3dlio.CheckpointStore(f"{self._scheme}://{folder}", compression_level=self._level)

    def save(self, folder: str, data: bytes) -> None:
        self._store(folder).save(1, 0, "bytes", data)

    def load(self, folder: str, nbytes: int) -> Any:
        if not self._into:
            return self._store(folder).load_latest()
        room = memory(nbytes)
        assert self._store(folder).load_latest(into=room) == nbytes
        return room


class Writer:
    """The bound: the bytes alone, without a manifest."""

    kind = "writer"

    def save(self, folder: str, data: bytes) -> None:
        import s3dlio

        with s3dlio.create_direct_filesystem_writer(f"direct://{folder}/data") as writer:
            writer.write_chunk(data)

    def load(self, folder: str, nbytes: int) -> Any:
        raise NotImplementedError  # it is the bound of a save alone


class Reference:
    def __init__(self, level: int | None = None, sync: bool = False) -> None:
        self.kind, self._level, self._sync = f"reference-{level}", level, sync

    def _store(self, folder: str) -> Any:
        import s3dlio

        return s3dlio.PyCheckpointStore(f"file://{folder}", compression_level=self._level)

    def save(self, folder: str, data: bytes) -> None:
        self._store(folder).save(1, 0, "bytes", data)
        if self._sync:
            for path in files_below(folder):
                race.fsync(str(path))

    def load(self, folder: str, nbytes: int) -> Any:
        return self._store(folder).load_latest()


class Torch:
    kind = "torch"

    def save(self, folder: str, data: bytes) -> None:
        import torch

        Path(folder).mkdir()
        torch.save({"state": tensor(data)}, f"{folder}/state.pt")
        race.fsync(f"{folder}/state.pt")

    def load(self, folder: str, nbytes: int) -> Any:
        import torch

        return torch.load(f"{folder}/state.pt", weights_only=True)["state"].numpy()


class TorchDistributed:
    """It syncs its files, and loads into the tensors that it is given."""

    kind = "torch-distributed"

    def __init__(self) -> None:
        warnings.filterwarnings("ignore", "torch.distributed is disabled")  # which is meant

    def save(self, folder: str, data: bytes) -> None:
        from torch.distributed import checkpoint

        checkpoint.save({"state": tensor(data)}, checkpoint_id=folder, no_dist=True)

    def load(self, folder: str, nbytes: int) -> Any:
        import torch
        from torch.distributed import checkpoint

        room = memory(nbytes)
        checkpoint.load({"state": torch.from_numpy(room)}, checkpoint_id=folder, no_dist=True)
        return room


def files_below(folder: str | Path) -> Iterator[Path]:
    return (path for path in Path(folder).rglob("*") if path.is_file())


def nbytes_below(folder: str | Path) -> int:
    return sum(path.stat().st_size for path in files_below(folder))


@lru_cache(1)
def piece(source: str) -> bytes:
    return Path(source).read_bytes() if source else random.Random(0).randbytes(MIB)


@lru_cache(1)
def state(source: str, nbytes: int) -> bytes:
    """A file over and over, or else what cannot be compressed."""
    return piece(source) * (nbytes // len(piece(source)))


@lru_cache(1)
def tensor(data: bytes) -> Any:
    import torch

    return torch.frombuffer(bytearray(data), dtype=torch.uint8)


@lru_cache(1)
def memory(nbytes: int) -> Any:
    """An array whose pages are there already."""
    import numpy as np

    return np.ones(nbytes, np.uint8)


def contender(name: str, make: Callable[[], Store], target: float | None = None, **settings: Any) -> Contender:
    def work() -> Callable[..., dict[str, int] | None]:
        store = make()

        def save_or_load(path: str, task: str, stored: str, source: str, nbytes: int) -> dict[str, int] | None:
            """Saves at ``path``, or below ``stored`` what is to be loaded later, or loads it.  "pack" saves too, and
            tells how many bytes that takes."""
            place = path if task in ("save", "pack") else f"{stored}/{store.kind}"
            if task != "load":
                store.save(place, state(source, nbytes))
                return {"stored": nbytes_below(place)} if task == "pack" else None
            found = memoryview(store.load(place, nbytes)).cast("B")
            expected = piece(source)
            assert len(found) == nbytes
            assert (found[:64], found[-64:]) == (expected[:64], expected[-64:])
            return None

        return save_or_load

    return Contender(name, work, target, **settings)


REFERENCE = {"python": race.reference_python}
SAVING = (
    contender("s3dlio, file://", lambda: Ours("file")),
    contender("s3dlio, direct://", lambda: Ours("direct")),
    contender("s3dlio, direct writer alone", Writer, target=0.85),
    contender("reference's save()", Reference, target=3.0, **REFERENCE),
    contender("reference's save(), fsync()", lambda: Reference(sync=True), **REFERENCE),
    contender("torch.save(), fsync()", Torch),
    contender("torch.distributed.checkpoint.save()", TorchDistributed),
)
LOADING = (
    contender("s3dlio, file://, load_latest()", lambda: Ours("file")),
    contender("s3dlio, direct://, load_latest()", lambda: Ours("direct")),
    contender("reference's load_latest()", Reference, target=1.5, **REFERENCE),
    contender("torch.load()", Torch),
)
INTO = (
    contender("s3dlio, file://, into=array", lambda: Ours("file", into=True)),
    contender("s3dlio, direct://, into=array", lambda: Ours("direct", into=True)),
    LOADING[2],
    contender("torch.distributed.checkpoint.load()", TorchDistributed),
)
PACKED = (
    contender("s3dlio, zstd", lambda: Ours("file", LEVEL)),
    contender("s3dlio, zstd, into=array", lambda: Ours("file", LEVEL, into=True)),
    contender("reference, zstd", lambda: Reference(LEVEL), **REFERENCE),
)


def names(*contenders: Contender) -> list[str]:
    return [one.name for one in contenders]


class Cases:
    """Those with one state."""

    def __init__(self, contest: Race, source: str, nbytes: int) -> None:
        self._contest, self._source, self._nbytes = contest, source, nbytes
        self._stored = contest.folder / "stored"
        self._stored.mkdir()

    def __enter__(self) -> Cases:
        return self

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self._stored)

    def save(self, title: str, *contenders: Contender, task: str = "save") -> None:
        def check(path: Path, answer: dict[str, Any]) -> None:
            assert nbytes_below(path) >= answer.get("stored", self._nbytes)

        # For the page cache, through which the others write, and what they hold.
        self._case(task, title, contenders, check=check, room=3 * self._nbytes)

    def prepare(self, *contenders: Contender) -> None:
        for name in self._contest.available(names(*contenders)):
            self._contest.worker(name).run("", *self._arguments("prepare"))
        self._contest.end_workers()
        os.sync()

    def load(self, title: str, *contenders: Contender, cold: bool, in_place: bool = True) -> None:
        """With ``in_place`` the memory that it takes is there, see `machine.fetch_memory`."""
        room = 3 * self._nbytes if in_place else 0  # some hold the state twice
        self._case("load", title, contenders, before=self._chill if cold else self._warm, room=room)

    def _case(self, task: str, title: str, contenders: Sequence[Contender], **settings: Any) -> None:
        amount = self._nbytes / 1e9
        self._contest.case(title, self._arguments(task), amount, "GB/s", contenders=names(*contenders), **settings)
        self._contest.end_workers()  # which hold much memory

    def _arguments(self, task: str) -> tuple[str, str, str, int]:
        return task, str(self._stored), self._source, self._nbytes

    def _chill(self) -> None:
        for path in files_below(self._stored):
            with path.open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)

    def _warm(self) -> None:
        room = bytearray(MIB)
        for path in files_below(self._stored):
            with path.open("rb", buffering=0) as file:
                while file.readinto(room):
                    pass


def on_fast_disk(contest: Race, nbytes: int, title: str) -> None:
    """A save where the disk is no limit."""
    folder, source = contest.folder / "fast", contest.folder / "words"
    folder.mkdir()
    source.write_bytes(fast_disk.words(MIB))
    try:
        with fast_disk.fast_disk(folder), contest.below(folder), Cases(contest, str(source), nbytes) as cases:
            cases.save(title, *SAVING)
    except race.Unavailable as reason:
        contest.note(f"{title} is left out: {reason}")


def main() -> None:
    contenders = (*SAVING, *LOADING, *INTO, *PACKED)
    with Race(__file__, "Checkpoints: one shard, in files", contenders) as contest:
        nbytes = contest.pick(full=GIB, quick=64 * MIB)
        size = f"{nbytes // MIB} MiB"
        with Cases(contest, "", nbytes) as plain:
            plain.save(f"save of {size}", *SAVING)
            plain.prepare(SAVING[0], *SAVING[3:])
            plain.load(f"load of {size} as new bytes, cold cache", *LOADING, cold=True)
            plain.load(f"load of {size} into an array, cold cache", *INTO, cold=True)
            plain.load(f"load of {size} as new bytes, warm cache", *LOADING, cold=False)
            as_it_is = ", warm cache, memory as it is"
            plain.load(f"load of {size} as new bytes{as_it_is}", *LOADING, cold=False, in_place=False)
            plain.load(f"load of {size} into an array, warm cache", *INTO, cold=False)
        on_fast_disk(contest, nbytes, f"save of {size}, disk in memory")
        source, about = corpus.make()
        count = contest.pick(full=6, quick=1)
        nbytes = source.stat().st_size * count
        contest.note(f"What is compressed is {count} times {about}.")
        with Cases(contest, str(source), nbytes) as packed:
            packed.save(f"save with zstd, level {LEVEL}", PACKED[0], PACKED[2], task="pack")
            packed.prepare(PACKED[0], PACKED[2])
            packed.load("load with zstd, warm cache", *PACKED, cold=False)


if __name__ == "__main__":
    main()
