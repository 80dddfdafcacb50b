"""What a network and a server may do to S3 requests that read: the right bytes, or an error in bounded time, and no
file that is torn."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from queue import SimpleQueue

import pytest
from proxy import Fault, Proxy
from s3_cases import OLD, STALL, Case, cases_of, in_turns, numbered
from s3_work import RANGE, READS, Read, files_in

import s3dlio
from s3dlio._stores import s3_tasks

LANES = 16

# A part of an object has no checksum (docs/s3.md): a bit that flips within it nobody sees without TLS.
UNSEEN = "get_range of a part", "flip in response"
A_BIT_OFF = "with a bit flipped in a part of an object, which has no checksum"


class Reading:
    """Objects of each way to read, as often as reads are under way."""

    def __init__(self, base: str, proxy: Proxy, folder: Path, lanes: int = 1) -> None:
        self._proxy = proxy
        self._folder = folder
        self._places: SimpleQueue[str] = SimpleQueue()
        self.counts = Counter({"right": 0, "loud": 0, A_BIT_OFF: 0})
        for lane in range(lanes):
            place = f"{base}/{lane}"
            for name, read in READS.items():
                s3dlio.put_many((f"{place}/{name}/{path}", data) for path, data in self._data(read).items())
            self._places.put(place)

    def _data(self, read: Read) -> dict[str, bytes]:
        return {name: random.Random(name).randbytes(size) for name, size in read.sizes.items()}

    def attempt(self, case: Case) -> None:
        read = READS[case.name]
        folder = self._folder / str(case.number)
        folder.mkdir()
        if case.name.startswith("download"):
            (folder / "a").write_bytes(OLD)
        place = self._places.get(timeout=60)
        got: dict[str, bytes] = {}
        try:
            base = f"{place}/{case.name}"
            case.attempt(self._proxy, base, lambda: got.update(read.do(base, folder)))
        finally:
            self._places.put(place)
        self.counts[self._outcome(case, got, folder)] += 1

    def _outcome(self, case: Case, got: dict[str, bytes], folder: Path) -> str:
        read = READS[case.name]
        right = {name: data[slice(*read.part)] for name, data in self._data(read).items()}
        for name, data in files_in(folder).items():
            assert data in (right.get(name), OLD), f"{case}: {name} is torn, or left over"
        if case.error is not None:
            return "loud"
        if (case.name, case.fault.kind) == UNSEEN and got != right:
            assert flipped_bits(got["a"], right["a"]) == case.fault.fired, f"{case}: other bytes"
            return A_BIT_OFF
        assert got == right, f"{case}: other bytes"
        return "right"


def flipped_bits(one: bytes, other: bytes) -> int:
    assert len(one) == len(other)
    return (int.from_bytes(one, "big") ^ int.from_bytes(other, "big")).bit_count()


def test_faults_of_reading_are_overcome_or_told(
    s3: str, proxy: Proxy, through: Callable[..., None], tmp_path: Path, figure: Callable[[str], None]
) -> None:
    cases = numbered(
        case
        for name, read in READS.items()
        # The second of its requests as well, where there are several.
        for case in cases_of(name, read.requests, lambda operation: (0, 1) if operation == "GetObject" else (0,))
        if not (name == "get" and case.fault.skip)
    )
    reading = Reading(f"{s3}/faults-of-reading", proxy, tmp_path, LANES)
    for stalls in (False, True):
        through(proxy, STALL if stalls else None)
        in_turns([case for case in cases if case.stalls == stalls], reading.attempt, LANES if stalls else 4)
    assert sum(reading.counts.values()) == len(cases) >= 60
    assert reading.counts[A_BIT_OFF] == 3  # in the first request, in the second, and in all
    told = ", ".join(f"{count} {what}" for what, count in reading.counts.items())
    figure(f"s3 faults of reading: {len(cases)} faults, {told}, 0 else silent")


@pytest.mark.parametrize("name", ["get", "get_range of all", "download"])
def test_client_that_compares_no_checksum_is_caught(
    s3: str, proxy: Proxy, through: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """A planted fault."""
    reading = Reading(f"{s3}/planted-reading", proxy, tmp_path)
    through(proxy)
    monkeypatch.setattr(s3_tasks, "whole_crc", lambda answer: "")
    with pytest.raises(AssertionError, match=r"other bytes|torn"):
        reading.attempt(Case(name, Fault("flip in response", "GetObject"), 0))


def test_client_that_writes_in_place_is_caught(
    s3: str, proxy: Proxy, through: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A planted fault."""

    def download(uri: str, folder: Path) -> dict[str, bytes]:
        with s3dlio.open_reader(f"{uri}/a") as reader, (folder / "a").open("wb") as file:
            while chunk := reader.read(RANGE):
                file.write(chunk)
        return files_in(folder)

    reading = Reading(f"{s3}/planted-reading", proxy, tmp_path)
    through(proxy)
    planted = Read(download, READS["download"].sizes, ("GetObject",))
    monkeypatch.setitem(READS, "download", planted)
    with pytest.raises(AssertionError, match="torn"):
        reading.attempt(Case("download", Fault("500", "GetObject", 1000, 2), 0))
