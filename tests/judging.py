"""What may be true after a system call of a writer has failed (tests/faults)."""

from __future__ import annotations

import errno
import re
from pathlib import Path
from typing import NamedTuple

from tracing import ABANDONED, NAME, OLD, Call, Fault, Run, Scenario, is_whole

HIDDEN = f".{NAME}.s3dlio-0"
SYNCS = ("fsync", "fdatasync")
TRY_AGAIN = ("EINTR", "EAGAIN")


class Verdict(NamedTuple):
    """Something that must not be, and its kind: torn, leaked, left, ..."""

    kind: str
    text: str


def must_succeed(fault: Fault, engine: str) -> bool:
    """Faults that the library gets over: by trying again, by another way, or since nothing depends on the call."""
    if fault.call in ("pwrite64", "io_uring_enter") and fault.error in TRY_AGAIN:
        return True
    if fault.call == "io_uring_setup" and engine != "uring":
        return True
    return fault.call in ("fallocate", "madvise", "munmap", "io_uring_register", "fstatfs", "statx", "access", "flock")


def must_fail(scenario: Scenario, fault: Fault, calls: list[Call], failed: Call) -> bool:
    """Faults after which the data may be lost although it can still be read."""
    if fault.call in SYNCS:
        return True
    # Where nothing was synced, the first close is that of the written file (or of a copy of its descriptor), and the
    # last chance to hear of a failed write, as on NFS.
    closes = [call for call in calls if call.in_library and call.name == "close"]
    return scenario.durability == 2 and fault.call == "close" and closes[0] is failed


def is_placed(calls: list[Call]) -> bool:
    """Whether one of these calls gave the file its name."""
    return any(
        call.name in ("linkat", "rename", "renameat") and re.search(rf'"([^"]*/)?{NAME}"(, \w+)?\) += 0$', call.text)
        for call in calls
    )


def judge(scenario: Scenario, fault: Fault | None, run: Run, folder: Path) -> list[Verdict]:
    """What is wrong after a run; `fault` was seen to fire."""
    if run.returncode != 0:
        return [Verdict("crashed", f"exit {run.returncode} {run.engine}")]
    injected = [i for i, call in enumerate(run.calls) if fault and call.injected and call.name == fault.call]
    failed = run.calls[injected[0]] if injected else None
    # The one failure that is reported with the file in place: that of the fsync which makes its name last.
    placed = fault is not None and (fault.folder_only or is_placed(run.calls[: injected[0]]))
    in_place = run.status == 0 or (placed and fault is not None and fault.call in SYNCS)
    found = [*judge_file(scenario, run, folder, in_place), *judge_names(scenario, folder, in_place)]
    # strace returns the error in the place of the call, so that what should be closed stays open.
    kept = sum(run.calls[i].name == "close" for i in injected)
    if run.leaked_fds != kept:
        found.append(Verdict("leaked", f"{run.leaked_fds} descriptors more, {kept} were not let close"))
    if fault and failed:
        found += judge_status(scenario, fault, run, failed)
        if fault.call in SYNCS:
            again = [c.name for c in run.calls[injected[-1] + 1 :] if c.in_library and c.name in SYNCS]
            if again:
                found.append(Verdict("synced again", f"{again}"))
    return found


def judge_status(scenario: Scenario, fault: Fault, run: Run, failed: Call) -> list[Verdict]:
    number = getattr(errno, fault.error)
    expected = [-number]
    # From write and close, EAGAIN would say to call again; and pthread_create(3) says EAGAIN for ENOMEM.
    if fault.error == "EAGAIN" or (fault.error == "ENOMEM" and fault.call in ("clone3", "mmap", "mprotect")):
        expected.append(-errno.EBUSY)
    if run.status and run.status not in expected:
        return [Verdict("other status", f"{run.statuses}")]
    if run.status and must_succeed(fault, scenario.engine):
        return [Verdict("gave up", f"{run.statuses}")]
    if not run.status and must_fail(scenario, fault, run.calls, failed):
        return [Verdict("swallowed", "reported as success")]
    return []


def judge_file(scenario: Scenario, run: Run, folder: Path, in_place: bool) -> list[Verdict]:
    path = scenario.path(folder)
    if in_place:
        good = path.exists() and is_whole(path, scenario)
    elif scenario.state in ("old", "abandoned"):
        good = path.exists() and path.read_bytes() == OLD
    else:
        good = not path.exists()
    return [] if good else [Verdict("torn", f"status {run.status}, {'new' if in_place else 'old'} file expected")]


def judge_names(scenario: Scenario, folder: Path, in_place: bool) -> list[Verdict]:
    names = {str(path.relative_to(folder)) for path in folder.rglob("*")}
    expected = {str(scenario.path(folder).relative_to(folder))} if in_place else set()
    if scenario.state in ("old", "abandoned"):
        expected.add(NAME)
    if in_place and scenario.state == "folders":
        expected |= {"new", "new/deeper"}
    if scenario.state == "abandoned":
        # Removing what others left is tried; a fault there, or an end before that, leaves it for the next writer.
        names -= {HIDDEN} if (folder / HIDDEN).exists() and (folder / HIDDEN).read_bytes() == ABANDONED else set()
    return [] if names == expected else [Verdict("left", f"{sorted(names)}, not {sorted(expected)}")]
