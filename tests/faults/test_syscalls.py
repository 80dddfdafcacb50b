"""System call by system call: one of them fails, and the file is whole and new, or the old one, and nothing is left.

A run without a fault shows which calls the library makes for a file; strace(1) then makes each of them fail in turn.
What may be true after that is in judging.py.
"""

from __future__ import annotations

import errno
import itertools
import os
import random
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from harness import SOAK, cannot, effort, need_tools, new_seed
from judging import Verdict, judge
from tracing import (
    AUTO,
    BLOCK,
    ERRORS,
    EXEMPT,
    MORE_ERRORS,
    OFF,
    OLD,
    PREFER,
    Call,
    Fault,
    Run,
    Scenario,
    Tracer,
    is_whole,
)

ENGINES = ("uring", "threads", "")
SIZES = (5 * BLOCK + 12345, 4321)  # several blocks, and less than one
WORKERS = 2  # threads of an engine with one write on its way and one more block
TRIES = 10
SHORT = 1000
# What a writer is known to need; without one of these the scenarios would have lost something.
NEEDED = {"openat", "pwrite64", "io_uring_setup", "io_uring_register", "io_uring_enter", "fsync", "fdatasync", "close"}
NEEDED |= {"linkat", "renameat", "ftruncate", "fallocate", "fcntl", "flock", "statx", "mkdirat", "unlinkat", "mmap"}


def scenarios() -> list[Scenario]:
    product = itertools.product
    states = ("new", "old", "folders", "abandoned")
    found = [Scenario(*each) for each in product(ENGINES, (OFF, PREFER), (0, 1), states, SIZES)]
    found += [
        Scenario(engine, direct, 0, state, nbytes, tmpfile=False)
        for engine, direct, state, nbytes in product(ENGINES, (OFF, PREFER), ("new", "old"), SIZES)
    ]
    found += [Scenario(*each) for each in product(ENGINES, (OFF, PREFER), (0,), ("old",), SIZES, (1, 2))]
    found += [Scenario("", direct, 0, state, put=True) for direct, state in product((OFF, PREFER), states)]
    # Long enough to leave the page cache on the way.
    found += [Scenario(engine, AUTO, 0, "old", (17 << 20) + 12345, block=4 << 20) for engine in ENGINES]
    return found


class Job(NamedTuple):
    """A run with a fault; what the scenario itself needs to fail comes on top."""

    scenario: Scenario
    ground: list[Fault]
    fault: Fault

    @property
    def kind(self) -> tuple[object, ...]:
        return self.scenario.engine, self.fault.call, self.fault.error, self.fault.folder_only

    @property
    def place(self) -> tuple[object, ...]:
        return self.scenario, self.fault.call, self.fault.number, self.fault.folder_only


def ground_faults(scenario: Scenario, calls: Iterable[Call]) -> list[Fault]:
    """Without /proc there is no O_TMPFILE."""
    if scenario.tmpfile:
        return []
    (access,) = [call for call in calls if call.in_library and call.name == "access"]
    return [Fault("access", access.number, "ENOENT")]


def places(calls: list[Call]) -> set[tuple[str, int]]:
    """Name and number of the library's calls, as strace counts them: for each thread by itself."""
    main = calls[0].thread
    before = Counter(call.name for call in itertools.takewhile(lambda call: not call.in_library, calls))
    found = set()
    of_workers: Counter[str] = Counter()
    for call in calls:
        if call.in_library and call.name not in EXEMPT:
            if call.thread == main:
                found.add((call.name, call.number))
            else:
                of_workers[call.name] += 1
    for name, count in of_workers.items():
        # However the work is shared out, one of the threads makes so many.  A number that the start of the process
        # uses up would hit that instead.
        found |= {(name, number) for number in range(before[name] + 1, -(-count // WORKERS) + 1)}
    return found


def plan(tracer: Tracer, scenario: Scenario) -> list[Job]:
    """The faults to try in a scenario, one at a time."""
    first = tracer.run(scenario)
    ground = ground_faults(scenario, first.calls)
    # Some more, as not every run waits equally often.
    runs = [tracer.run(scenario, *ground) for _ in range(3)]
    for run in (first, *runs):
        assert (run.returncode, run.status, run.leaked_fds) == (0, 0, 0), (scenario, run)
    assert judge(scenario, None, runs[-1], tracer.folder) == []
    common = set.intersection(*(places(run.calls) for run in runs)) - {(fault.call, fault.number) for fault in ground}
    jobs = [
        Job(scenario, ground, Fault(name, number, error))
        for name, number in sorted(common)
        for error in (*ERRORS, *MORE_ERRORS.get(name, ()))
    ]
    if scenario.durability == 0:
        jobs += [Job(scenario, ground, Fault("fsync", 1, error, folder_only=True)) for error in ERRORS]
    return jobs


def try_fault(tracer: Tracer, job: Job) -> list[Verdict]:
    """What is wrong after a run with a fault.  One that did not come to the call is repeated."""
    names = {"getppid", "openat", "close", "fsync", "fdatasync", "linkat", "renameat", "?rename", job.fault.call}
    names |= {fault.call for fault in job.ground}
    for _ in range(TRIES):
        run = tracer.run(job.scenario, *job.ground, job.fault, names=",".join(names))
        if run.returncode != 0 or any(call.injected and call.name == job.fault.call for call in run.calls):
            return judge(job.scenario, job.fault, run, tracer.folder)
        if any((call.name, call.number) == (job.fault.call, job.fault.number) for call in run.calls):
            return [Verdict("silent", "the call was made and did not fail")]
    return [Verdict("not reached", "")]


class Tracers:
    """Two that run at a time, each with its own folder."""

    def __init__(self, driver: Path, parent: Path) -> None:
        self._driver, self._parent = driver, parent
        self._own = threading.local()
        self._numbers = itertools.count()
        self._threads = ThreadPoolExecutor(2)

    def close(self) -> None:
        self._threads.shutdown(cancel_futures=True)

    def map(self, function: Callable[[Tracer, Any], Any], *arguments: Iterable[Any]) -> list[Any]:
        def call(*values: Any) -> Any:
            if not hasattr(self._own, "tracer"):
                self._own.tracer = Tracer(self._driver, self._parent / f"run{next(self._numbers)}")
            return function(self._own.tracer, *values)

        return list(self._threads.map(call, *arguments))


@pytest.fixture
def tracer(driver: Path, disk_path: Path) -> Tracer:
    need_tools("strace")
    found = Tracer(driver, disk_path / "run")
    if not found.run(Scenario("threads")).calls:
        cannot("strace may not trace here (ptrace_scope, seccomp)")
    return found


@pytest.fixture
def tracers(driver: Path, disk_path: Path, tracer: Tracer) -> Iterator[Tracers]:
    found = Tracers(driver, disk_path)
    yield found
    found.close()


def choose(jobs: list[Job], count: int, seed: int) -> list[Job]:
    """At least one for each call and error on each engine, and others."""
    random.Random(seed).shuffle(jobs)
    first = list({job.kind: job for job in jobs}.values())
    seen = {id(job) for job in first}
    return (first + [job for job in jobs if id(job) not in seen])[: max(count, len(first))]


@pytest.mark.timeout(effort(900, 7200))
def test_failing_system_call_leaves_the_new_file_or_the_old(tracers: Tracers, figure: Callable[[str], None]) -> None:
    seed = new_seed()
    everything = [job for jobs in tracers.map(plan, scenarios()) for job in jobs]
    jobs = everything if SOAK else choose(everything, SHORT, seed)
    results = list(zip(jobs, tracers.map(try_fault, jobs), strict=True))
    # How often io_uring is entered depends on how fast the disk is; every other call must have been reached.
    late = [Verdict("not reached", "")]
    results = [(job, found) for job, found in results if found != late or job.fault.call != "io_uring_enter"]
    kinds = Counter(verdict.kind for _, found in results for verdict in found)
    unfired = kinds["silent"] + kinds["not reached"]
    other = kinds.total() - unfired - kinds["torn"] - kinds["leaked"]
    figure(
        f"syscalls: {len(results)} injections in {len({job.place for job, _ in results})} calls, "
        f"{len(results) - unfired} fired, {unfired} silent, {kinds['torn']} torn, {kinds['leaked']} leaked, "
        f"{other} wrong otherwise; {len({job.fault.call for job in jobs})} system calls, seed {seed}"
    )
    wrong = sorted(f"{verdict.kind} ({verdict.text}): {job}" for job, found in results for verdict in found)
    assert wrong == [], "\n".join([f"{len(wrong)}, seed {seed}", *wrong[:60]])
    assert len(results) > len(jobs) * 0.97
    assert {job.fault.call for job, _ in results} >= NEEDED


# A plain writer in the driver does it wrong: how, a fault that shows it, and what is found.
PLANTED = {
    "ignored-write": ("pwrite64", "ENOSPC", "torn"),
    "in-place": ("pwrite64", "EIO", "torn"),
    "ignored-fsync": ("fsync", "EIO", "swallowed"),
    "repeated-fsync": ("fsync", "EIO", "synced again"),
    "ignored-close": ("close", "EDQUOT", "swallowed"),
    "leak": ("pwrite64", "EIO", "leaked"),
    "leftover": ("pwrite64", "EIO", "left"),
}


@pytest.mark.parametrize("wrong", PLANTED)
@pytest.mark.parametrize("state", ["new", "old"])
def test_wrong_writer_is_found_out(tracers: Tracers, wrong: str, state: str) -> None:
    name, error, kind = PLANTED[wrong]
    scenario = Scenario(state=state, nbytes=123_456, durability=2 if wrong == "ignored-close" else 0, wrong=wrong)
    (jobs,) = tracers.map(plan, [scenario])
    job = next(job for job in jobs if (job.fault.call, job.fault.error) == (name, error))
    (found,) = tracers.map(try_fault, [job])
    assert kind in {verdict.kind for verdict in found}


@pytest.mark.parametrize("durability", [0, 2])
def test_right_writer_passes(tracers: Tracers, durability: int) -> None:
    """The same writer without a fault of its own: a check that finds something in it would prove nothing."""
    scenario = Scenario(state="old", nbytes=123_456, durability=durability, wrong="none")
    (jobs,) = tracers.map(plan, [scenario])
    assert len(jobs) > 50
    assert [(job, found) for job, found in zip(jobs, tracers.map(try_fault, jobs), strict=True) if found] == []


class Dull(Tracer):
    """Injects nothing, as strace(1) does, in silence, with a call that it does not trace."""

    def run(self, scenario: Scenario, *_: Fault, names: str = "") -> Run:
        return super().run(scenario, names=names)


def test_fault_that_is_not_injected_is_seen_to_be_silent(tracer: Tracer) -> None:
    tracer = Dull(tracer.driver, tracer.folder)
    for call, kind in (("linkat", "silent"), ("ftruncate", "not reached")):
        job = Job(Scenario(), [], Fault(call, 1, "EIO"))
        assert [verdict.kind for verdict in try_fault(tracer, job)] == [kind]


def test_name_that_could_not_be_removed_is_swept_by_the_next_writer(tracer: Tracer) -> None:
    """Two faults: after one the hidden name is to be removed, and that fails too.  Only then it is left."""
    for tmpfile in (True, False):
        scenario = Scenario(state="old", nbytes=4321, tmpfile=tmpfile)
        ground = ground_faults(scenario, tracer.run(scenario).calls)
        run = tracer.run(scenario, *ground, Fault("renameat", 1, "EIO"), Fault("unlinkat", 1, "EIO"))
        assert run.status == -errno.EIO
        assert sorted(os.listdir(tracer.folder)) == [".a.s3dlio-0", "a"]
        assert (tracer.folder / "a").read_bytes() == OLD
        assert tracer.run(scenario, prepare=False).status == 0
        assert os.listdir(tracer.folder) == ["a"]
        assert is_whole(tracer.folder / "a", scenario)


PUT = """
import sys
import s3dlio
try:
    with s3dlio.open_writer(sys.argv[1], buffer_size=65536) as writer:
        writer.write_chunk(bytes(10))
except OSError as error:
    print(type(error).__name__, isinstance(error, s3dlio.S3dlioError), error.errno, error.operation, error.uri)
"""


@pytest.mark.parametrize("call", ["pwrite64", "fsync", "linkat"])
@pytest.mark.parametrize("error", ["ENOSPC", "EDQUOT", "EIO"])
def test_failed_system_call_reaches_python_with_its_errno(disk_path: Path, call: str, error: str) -> None:
    need_tools("strace")
    uri = f"file://{disk_path}/a"
    command = ["strace", "-f", "-qqq", "-o", disk_path / "log", "-e", f"trace={call}", "-e", "signal=none"]
    command += ["-e", f"inject={call}:error={error}:when=1", sys.executable, "-c", PUT, uri]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert (disk_path / "log").read_text().count("(INJECTED)") == 1
    assert done.stdout == f"StorageError True {getattr(errno, error)} finalize {uri}\n"
    assert os.listdir(disk_path) == ["log"]
