"""Saves, crashes, loads and deletions in any order, two savers at once, against a plain model."""

from __future__ import annotations

import random
import shutil
import tempfile
from dataclasses import dataclass
from unittest import mock

import pytest
from harness import effort
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

import s3dlio
from s3dlio.checkpoint import latest

STEPS = st.integers(0, 4)
SEEDS = st.integers(0, 2**32)
SIZES = st.sampled_from([0, 1, 65_535, 65_536, 200_000])


class CrashError(BaseException):
    """The process ends here: nothing clears up."""


@dataclass
class Saved:
    step: int
    data: bytes


def content(seed: int, size: int) -> bytes:
    return random.Random(seed).randbytes(size)


class Checkpoints(RuleBasedStateMachine):
    """The model is a list of what is there, in the order of commits."""

    scheme = "file"

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.mkdtemp(prefix="checkpoints-")
        base = f"{self.scheme}://{self.folder}"
        plain = s3dlio.WriterOptions(durability="none", buffer_size=65_536, threads=0)
        packed = s3dlio.WriterOptions(durability="none", buffer_size=65_536, threads=0, compression="zstd")
        self.stores = [s3dlio.CheckpointStore(base, options=options) for options in (plain, packed)]
        self.saved: list[Saved] = []
        self.left = 0
        # What another saver is about to finish.
        self.open: list[tuple[s3dlio.ShardStream, Saved]] = []

    def teardown(self) -> None:
        for stream, _ in self.open:
            stream.cancel()
        if self.scheme == "memory":
            s3dlio.delete(self.stores[0].uri, recursive=True)
        shutil.rmtree(self.folder)

    @rule(step=STEPS, seed=SEEDS, size=SIZES, which=st.booleans())
    def save(self, step: int, seed: int, size: int, which: bool) -> None:
        data = content(seed, size)
        self.stores[which].save(step, seed % 7, "x", data, {"seed": seed})
        self.saved.append(Saved(step, data))

    @rule(step=STEPS, seed=SEEDS, size=SIZES, which=st.booleans())
    def begin_another(self, step: int, seed: int, size: int, which: bool) -> None:
        data = content(seed, size)
        stream = self.stores[which].writer(1, 0).get_distributed_shard_stream(step, 1, "x")
        stream.write_chunk(data)
        self.open.append((stream, Saved(step, data)))

    @precondition(lambda self: self.open)
    @rule(which=st.booleans(), number=st.integers(0, 9))
    def finish_another(self, which: bool, number: int) -> None:
        stream, saved = self.open.pop(number % len(self.open))
        record = stream.finalize()
        self.stores[which].writer(1, 0).finalize_distributed_checkpoint(saved.step, 1, "x", [record])
        self.saved.append(saved)

    @rule(step=STEPS, seed=SEEDS)
    def crash_before_the_manifest(self, step: int, seed: int) -> None:
        self.stores[0].writer(1, 0).save_distributed_shard(step, 1, "x", content(seed, 1000))
        self.left += 1

    @rule(step=STEPS, seed=SEEDS, after=st.booleans())
    def crash_at_the_pointer(self, step: int, seed: int, after: bool) -> None:
        """The checkpoint is in place, though nobody was told."""
        data = content(seed, 1000)
        advance = latest.advance

        def crash(*arguments: object) -> None:
            if after:
                advance(*arguments)  # type: ignore[arg-type]
            raise CrashError

        with (
            mock.patch.object(latest, "advance", crash),
            mock.patch.object(s3dlio.ShardStream, "discard"),
            pytest.raises(CrashError),
        ):
            self.stores[0].save(step, 1, "x", data)
        self.saved.append(Saved(step, data))

    @rule(which=st.booleans())
    def spoil_the_pointer(self, which: bool) -> None:
        uri = self.stores[0].uri + "/latest.json"
        if which:
            s3dlio.delete(uri)
        else:
            s3dlio.put(uri, b"{", durability="none")

    @rule(step=STEPS)
    def delete(self, step: int) -> None:
        assert self.stores[0].delete_checkpoint(step) == any(saved.step == step for saved in self.saved)
        self.saved = [saved for saved in self.saved if saved.step != step]

    @rule(n=st.integers(1, 3))
    def keep_last(self, n: int) -> None:
        deleted = self.stores[1].keep_last(n)
        assert [info.step for info in deleted] == [saved.step for saved in self.saved[:-n]]
        self.saved = self.saved[-n:]

    @precondition(lambda self: not self.open)
    @rule()
    def clean_up(self) -> None:
        assert len(self.stores[0].clean_up(0)) == self.left
        self.left = 0
        assert len(s3dlio.list(self.stores[0].uri + "/shards")) == len(self.saved)

    @rule(step=STEPS, into=st.booleans())
    def load(self, step: int, into: bool) -> None:
        of_step = [saved.data for saved in self.saved if saved.step == step]
        if not of_step:
            with pytest.raises(s3dlio.NotFoundError):
                self.stores[0].load(step)
        elif into:
            room = bytearray(len(of_step[-1]))
            assert self.stores[0].load(step, into=room) == len(room)
            assert room == of_step[-1]
        else:
            assert self.stores[0].load(step) == of_step[-1]

    @invariant()
    def the_newest_is_loaded(self) -> None:
        assert self.stores[0].load_latest() == (self.saved[-1].data if self.saved else None)

    @invariant()
    def all_are_listed(self) -> None:
        found = self.stores[0].list_checkpoints()
        assert [info.step for info in found] == [saved.step for saved in self.saved]
        assert all(info.is_complete() for info in found)


class InMemory(Checkpoints):
    scheme = "memory"


long_enough = settings(
    max_examples=effort(40, 1000),
    stateful_step_count=effort(25, 50),
    deadline=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
)
TestOnFiles = pytest.mark.timeout(effort(300, 3000))(Checkpoints.TestCase)
TestOnFiles.settings = long_enough
TestInMemory = pytest.mark.timeout(effort(300, 3000))(InMemory.TestCase)
TestInMemory.settings = long_enough
