"""What a network and a server may do to the requests of a save: the old checkpoint stays, and the new one is there
whole, or an error says that it is not."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable

import pytest
from proxy import Fault, Proxy
from s3_cases import STALL, Case, cases_of, in_turns, numbered

import s3dlio

# How many of each a save makes that is not the first.
REQUESTS = {"PutObject": 3, "HeadObject": 5, "ListObjectsV2": 1, "GetObject": 1}


class Saving:
    """Stores of their own, so that several may be under way."""

    def __init__(self, base: str, proxy: Proxy) -> None:
        self._base = base
        self._proxy = proxy
        self.counts = Counter({"right": 0, "loud": 0, "stored although told otherwise": 0})

    def store(self, case: Case) -> s3dlio.CheckpointStore:
        return s3dlio.CheckpointStore(f"{self._base}/{case.number}")

    def data(self, case: Case, step: int) -> bytes:
        return random.Random(f"{case.number} {step}").randbytes(50_000)

    def prepare(self, case: Case) -> None:
        self.store(case).save(1, 1, "x", self.data(case, 1))

    def attempt(self, case: Case) -> None:
        case.attempt(
            self._proxy, f"{self._base}/{case.number}", lambda: self.store(case).save(2, 1, "x", self.data(case, 2))
        )

    def check(self, case: Case) -> None:
        store = self.store(case)
        assert store.load(1) == self.data(case, 1), f"{case}: the old one is lost"
        found = store.load_latest()
        assert found in (self.data(case, 1), self.data(case, 2)), f"{case}: torn"
        is_new = found == self.data(case, 2)
        assert is_new or case.error, f"{case}: lost in silence"
        assert len(store.list_checkpoints()) == 1 + is_new, f"{case}: other checkpoints"
        store.clean_up(0)
        assert len(s3dlio.list(f"{store.uri}/shards")) == 1 + is_new, f"{case}: left behind"
        self.counts["right" if not case.error else "loud" if not is_new else "stored although told otherwise"] += 1


def cases() -> list[Case]:
    return numbered(cases_of("save", REQUESTS, lambda operation: tuple(range(REQUESTS[operation]))))


@pytest.mark.timeout(300)
def test_faults_of_a_save_are_overcome_or_told(
    s3: str, proxy: Proxy, through: Callable[..., None], figure: Callable[[str], None]
) -> None:
    saving = Saving(f"{s3}/checkpoints", proxy)
    everything = cases()
    in_turns(everything, saving.prepare)
    for stalls in (False, True):
        through(proxy, STALL if stalls else None)
        in_turns([case for case in everything if case.stalls == stalls], saving.attempt, 24 if stalls else 4)
    through(None)
    in_turns(everything, saving.check)
    told = ", ".join(f"{count} {what}" for what, count in saving.counts.items())
    figure(f"s3 faults of checkpoints: {len(everything)} faults, {told}, 0 silent, 0 torn")
    assert sum(saving.counts.values()) == len(everything) > 100


def test_store_that_loses_a_shard_is_caught(s3: str, proxy: Proxy, through: Callable[..., None]) -> None:
    """A planted fault."""
    saving = Saving(f"{s3}/checkpoints-planted", proxy)
    case = Case("save", Fault("not stored", "PutObject", skip=1), 0)
    saving.prepare(case)
    through(proxy)
    saving.attempt(case)
    assert case.error is not None  # it is asked what it has
    case.error = None
    through(None)
    with pytest.raises(AssertionError, match="lost in silence"):
        saving.check(case)
