"""One fault for each way to use S3, each of its requests, and each kind of fault."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from proxy import Fault, Proxy

import s3dlio

# What happens to requests that carry something, to answers that bring something, and to all.
TO_BODIES = ("reset in mid body", "flip in request")
TO_CONTENTS = ("flip in response", "half an answer", "stall in response")
TO_ALL = (
    "500",
    "503 SlowDown",
    "200 with an error",
    "200 with nothing",
    "flip in request head",
    "flip in response head",
    "truncated head",
    "truncated body",
    "reset in response",
    "lost acknowledgement",
    "stall",
)
# The server has seen the request, and the client not the answer, or not as it was.
ANSWER_IS_LOST = (
    *TO_CONTENTS,
    "flip in response head",
    "truncated head",
    "truncated body",
    "reset in response",
    "lost acknowledgement",
)
FOR_EVER = 1000


def kinds_for(operation: str) -> tuple[str, ...]:
    carries = operation in ("PutObject", "UploadPart", "CompleteMultipartUpload")
    tells = operation not in ("PutObject", "UploadPart")
    contents = TO_CONTENTS if tells and operation != "HeadObject" else ("half an answer",) if tells else ()
    return (TO_BODIES if carries else ()) + contents + TO_ALL


# What is there before, and stays unless the call succeeds.
OLD = b"what was there before"
# For a call with all its repetitions, on a busy machine.
BOUND = 30.0
# Seconds without an answer.  Only where it is waited for: a busy machine may be as slow.
STALL = 1.5


@dataclass
class Case:
    """A fault in the midst of what ``name`` says, and how that ended."""

    name: str
    fault: Fault
    number: int
    error: s3dlio.S3dlioError | None = None

    @property
    def stalls(self) -> bool:
        return self.fault.kind.startswith("stall")

    def __str__(self) -> str:
        fault = self.fault
        times = "for ever" if fault.times == FOR_EVER else f"{fault.times} times after {fault.skip}"
        return f"{self.name}, {fault.operation}: {fault.kind} {times}, which gave {self.error!r}"

    def attempt(self, proxy: Proxy, place: str, work: Callable[[], object]) -> None:
        """Does it with the fault, for requests about what is below ``place``."""
        self.fault.key = place.split("/", 3)[3] + "/"
        began = time.monotonic()
        with proxy.breaking(self.fault):
            try:
                work()
            except s3dlio.S3dlioError as error:
                self.error = error
        seconds = time.monotonic() - began
        assert self.fault.fired > 0, f"{self}: has not fired"
        assert seconds < BOUND, f"{self}: took {seconds:.1f} s"
        what = place if self.fault.operation != "ListObjectsV2" else "s3://"  # a list is of a bucket
        assert self.error is None or what in str(self.error), f"{self}: tells not of what"


def cases_of(name: str, requests: Iterable[str], skips: Callable[[str], tuple[int, ...]]) -> Iterable[Case]:
    for operation in requests:
        for kind in kinds_for(operation):
            once = 2 if kind == "503 SlowDown" else 1
            for times, skip in [(once, skip) for skip in skips(operation)] + [(FOR_EVER, 0)]:
                yield Case(name, Fault(kind, operation, times, skip), 0)


def numbered(cases: Iterable[Case]) -> list[Case]:
    found = [*cases]
    for number, case in enumerate(found):
        case.number = number
    return found


def in_turns(cases: Iterable[Case], work: Callable[[Case], None], at_once: int = 4) -> None:
    """Several at once: most of the time is spent waiting."""
    with ThreadPoolExecutor(at_once) as pool:
        for _ in pool.map(work, cases):
            pass
