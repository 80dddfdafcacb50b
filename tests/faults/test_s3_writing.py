"""What a network and a server may do to S3 requests that store: the right bytes, or an error in bounded time, and
nothing torn."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from proxy import Fault, Proxy, wait_until
from s3_cases import ANSWER_IS_LOST, OLD, STALL, Case, cases_of, in_turns, numbered
from s3_work import PART, WRITES

import s3dlio


class Writing:
    """Objects of a name of their own, so that several may be under way."""

    def __init__(self, base: str, proxy: Proxy, folder: Path) -> None:
        self._base = base
        self._proxy = proxy
        self._folder = folder
        self.counts = Counter({"right": 0, "loud": 0, "stored although told otherwise": 0})

    def uri(self, case: Case) -> str:
        return f"{self._base}/{case.number}/a"

    def data(self, case: Case) -> bytes:
        return random.Random(case.number).randbytes(WRITES[case.name].size)

    def prepare(self, case: Case) -> None:
        s3dlio.put(self.uri(case), OLD)
        if case.name == "copy":
            s3dlio.put(f"{self.uri(case)}-source", self.data(case))

    def attempt(self, case: Case) -> None:
        uri, data = self.uri(case), self.data(case)
        folder = self._folder / str(case.number)
        folder.mkdir()
        case.attempt(self._proxy, uri.removesuffix("/a"), lambda: WRITES[case.name].do(uri, data, folder))

    def check(self, case: Case) -> None:
        self.counts[self._outcome(case, s3dlio.get(self.uri(case)))] += 1

    def left_open(self, cases: list[Case]) -> list[str]:
        """Whose uploads nobody has ended, but for those that nobody knows: the answer to Create was lost."""
        begun = Counter(path for operation, path in self._proxy.requests if operation == "CreateMultipartUpload")
        found = Counter(upload.uri for upload in s3dlio.list_stale_uploads(f"{self._base}/"))
        left = []
        for case in cases:
            uri = self.uri(case)
            is_lost = case.fault.operation == "CreateMultipartUpload" and case.fault.kind in ANSWER_IS_LOST
            unknown = begun[uri.removeprefix("s3:/")] - (0 if is_lost else 1)
            if found[uri] > max(0, unknown):
                left.append(str(case))
        return left

    def _outcome(self, case: Case, stored: bytes) -> str:
        data = self.data(case)
        assert stored in (OLD, data), f"{case}: torn"
        if case.error is None:
            assert stored == data, f"{case}: lost in silence"
            return "right"
        if stored == data:
            assert case.fault.operation == "HeadObject" or case.fault.kind in ANSWER_IS_LOST, f"{case}: yet stored"
            return "stored although told otherwise"
        return "loud"


def test_faults_of_writing_are_overcome_or_told(
    s3: str, proxy: Proxy, through: Callable[..., None], tmp_path: Path, figure: Callable[[str], None]
) -> None:
    cases = numbered(
        case for name, write in WRITES.items() for case in cases_of(name, write.requests, lambda operation: (0,))
    )
    writing = Writing(f"{s3}/faults", proxy, tmp_path)
    in_turns(cases, writing.prepare)
    for stalls in (False, True):
        through(proxy, STALL if stalls else None)
        in_turns([case for case in cases if case.stalls == stalls], writing.attempt, 24 if stalls else 4)
    through(None)
    in_turns(cases, writing.check)
    # An abort that has to wait for the store goes on by itself.
    assert wait_until(lambda: not writing.left_open(cases), 10), writing.left_open(cases)
    assert sum(writing.counts.values()) == len(cases) >= 60
    told = ", ".join(f"{count} {what}" for what, count in writing.counts.items())
    figure(f"s3 faults of writing: {len(cases)} faults, {told}, 0 silent, 0 torn")


@pytest.mark.parametrize(
    ("kind", "operation", "what"), [("flip in request", "PutObject", "torn"), ("not stored", "PutObject", "in silence")]
)
def test_client_without_checksums_is_caught(
    s3: str, proxy: Proxy, through: Callable[..., None], tmp_path: Path, kind: str, operation: str, what: str
) -> None:
    """A planted fault: else the others might prove nothing."""
    writing = Writing(f"{s3}/planted", proxy, tmp_path)
    case = Case("stream of one part", Fault(kind, operation), 0)
    writing.prepare(case)
    through(proxy)
    s3dlio.configure_s3(checksums=False, verify="none")
    writing.attempt(case)
    with pytest.raises(AssertionError, match=what):
        writing.check(case)


@pytest.mark.parametrize("kind", ["500", "truncated head", "reset in response", "lost acknowledgement"])
def test_upload_is_given_back_although_its_abort_fails_first(
    s3: str, proxy: Proxy, through: Callable[..., None], kind: str
) -> None:
    uri = f"{s3}/abort/{kind.replace(' ', '-')}"
    through(proxy)
    faults = Fault("500", "UploadPart", 1000), Fault(kind, "AbortMultipartUpload")
    with proxy.breaking(*faults), pytest.raises(s3dlio.StorageError):
        WRITES["stream in parts"].do(uri, bytes(2 * PART + 1), Path())
    assert wait_until(lambda: s3dlio.list_stale_uploads(uri) == [], 10)
    assert faults[1].fired == 1
    assert not s3dlio.exists(uri)
