"""What the benchmarks of S3 and Azure share: streams and large objects, the endpoints, and how they are compared."""

from __future__ import annotations

import io
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import race
import writers
from memory import Peak
from race import GIB, MIB, ROOT, Contender, Race, Unavailable

# Answers of a run: what it got or took, for checks.
Run = Callable[..., dict[str, Any]]
# Gives the URL of a server for as long as the ``with`` block lasts; if it stores anything, then in this folder.
Place = Callable[[Path], AbstractContextManager[str]]

CHUNK = writers.CHUNK
NULL = "null endpoint"


def send(
    nbytes: int, write: Callable[[bytes], object], finish: Callable[[], object], fresh: bool = False
) -> dict[str, Any]:
    """With ``fresh`` each chunk is memory of its own, as where data is made, and who keeps it shows."""
    chunk = writers.chunk_of(CHUNK)
    peak = Peak()
    for _ in range(nbytes // CHUNK):
        write(bytes(memoryview(chunk)) if fresh else chunk)
    finish()
    return {"peak": peak.nbytes() - CHUNK * fresh}


def receive(get: Callable[[], Any]) -> dict[str, Any]:
    peak = Peak()
    view = memoryview(get())
    return {"peak": peak.nbytes() - len(view), "bytes": len(view), "sample": bytes(view[:: 32 * MIB]).hex()}


class Repeated(io.RawIOBase):
    """A file that is one chunk again and again."""

    def __init__(self, nbytes: int, fresh: bool) -> None:
        self._chunk = writers.chunk_of(CHUNK)
        self._left = nbytes
        self._fresh = fresh

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        size = min(size if size >= 0 else CHUNK, CHUNK, self._left)
        self._left -= size
        if self._fresh:
            return bytes(memoryview(self._chunk)[:size])
        return self._chunk[:size]  # all of it is no copy


def installed(*packages: str) -> Callable[[], str]:
    def python() -> str:
        missing = [package for package in packages if find_spec(package) is None]
        if missing:
            raise Unavailable(f"not installed: {', '.join(missing)}")
        return sys.executable

    return python


# The reference has the same calls under the same names.
REFERENCE = {"python": race.reference_python}
OBSTORE = {"python": installed("obstore")}


@contextmanager
def null_endpoint(folder: Path) -> Iterator[str]:
    with subprocess.Popen([race.compiled("null_endpoint.c")], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin
        assert process.stdout
        yield f"http://127.0.0.1:{int(process.stdout.readline())}"
        process.stdin.close()


def of_the_tests() -> Any:
    """The module of the tests that starts servers."""
    sys.path.append(str(ROOT / "tests"))
    import servers

    return servers


@contextmanager
def server_of(start: Callable[[Path], Any], folder: Path) -> Iterator[str]:
    """The URL of a server of the tests."""
    import pytest

    try:
        server = start(folder)
    except (pytest.skip.Exception, pytest.fail.Exception) as reason:
        raise Unavailable(str(reason)) from reason
    try:
        yield server.url
    finally:
        server.stop()


def same(nbytes: int) -> Callable[[Path, dict[str, Any]], None]:
    """A check that a contender got so many bytes, and those that the first one got."""
    samples: set[str] = set()

    def check(path: Path, answer: dict[str, Any]) -> None:
        samples.add(answer["sample"])
        if answer["bytes"] != nbytes or len(samples) > 1:
            sys.exit(f"{answer['bytes']} bytes came, not {nbytes}, or not the same: {samples}")

    return check


def names(contenders: tuple[Contender, ...]) -> list[str]:
    return [contender.name for contender in contenders]


class Large:
    """Compares large objects at one place, whose ``bucket`` is a URI; of each list ours is the first."""

    def __init__(
        self, contest: Race, bucket: str, place: str, puts: list[str], gets: list[str], limit_mib: int
    ) -> None:
        self._contest = contest
        self._bucket = bucket
        self._place = place
        self._puts = puts
        self._gets = gets
        self._limit_mib = limit_mib

    def compare(self, cpu_targets: dict[str, float], more: Callable[[int], None] = lambda nbytes: None) -> None:
        contest = self._contest
        nbytes = contest.pick(full=512 * MIB, quick=64 * MIB)
        self.put(nbytes, self._puts, cpu_targets)
        self.get(nbytes, self._gets)
        if self._place != NULL:  # where nobody waits for the disk, and so memory has no time to go
            self.get(nbytes, self._gets, ", memory as it is", in_place=False)
        more(nbytes)
        if not contest.quick:
            self.put(GIB, self._puts[:1], {})
            self.get(GIB, self._gets[:1])
        self.peaks(nbytes, contest.pick(full=3, quick=1))

    def put(self, nbytes: int, contenders: list[str], cpu_targets: dict[str, float]) -> None:
        import s3dlio

        uri = f"{self._bucket}/stream"

        def check(path: Path, answer: dict[str, Any]) -> None:
            if (size := s3dlio.stat(uri)["size"]) != nbytes:
                sys.exit(f"{uri} has {size} bytes, not {nbytes}")

        self._contest.case(
            f"PUT of {nbytes // MIB} MiB, {self._place}",
            ("stream", nbytes),
            nbytes / 1e9,
            "GB/s",
            contenders=contenders,
            cpu_targets=cpu_targets,
            before=lambda: s3dlio.delete(uri),
            check=check,
            settle=self._place != NULL,
        )

    def get(self, nbytes: int, contenders: list[str], how: str = "", in_place: bool = True) -> None:
        """With ``in_place`` the memory that it takes is there, see `machine.fetch_memory`."""
        key = f"large-{nbytes}"
        if self._place != NULL:
            import s3dlio

            # In a process that ends: this one shall not hold what the clients do.
            self._contest.worker(self._puts[0]).run("", key, nbytes)
            assert s3dlio.stat(f"{self._bucket}/{key}")["size"] == nbytes
        self._contest.case(
            f"GET of {nbytes // MIB} MiB, {self._place}{how}",
            (key,),
            nbytes / 1e9,
            "GB/s",
            contenders=contenders,
            cpu_targets={},
            check=same(nbytes),
            settle=self._place != NULL,
            room=3 * nbytes if in_place else 0,  # some hold the object twice
        )

    def peaks(self, nbytes: int, rounds: int) -> None:
        """The peak of each in new processes: an old one has memory to spare."""
        rows = {}
        for name in self._contest.available(self._puts):
            values = []
            for instance in range(1, rounds + 1):
                worker = self._contest.worker(name, instance)
                values.append(worker.run("", "stream", nbytes, True)["peak"] / MIB)
                worker.close()
            rows[name] = {"value": race.spread(values)}
        rows[self._puts[0]]["target"] = f"at most {self._limit_mib}"
        title = f"Peak of memory in a PUT of {nbytes // MIB} MiB, {self._place}"
        self._contest.add({"title": title, "unit": "MiB", "rounds": rounds, "rows": rows})


def at_each_place(contest: Race, places: dict[str, Place], compare: Callable[[str, str], None]) -> None:
    """Calls ``compare`` with the name and the URL of each place that can be had here."""
    for place, start in places.items():
        with ExitStack() as stack:
            try:
                url = stack.enter_context(start(contest.folder))
            except Unavailable as reason:
                contest.note(f"{place} is left out: {reason}.")
                continue
            compare(place, url)
            contest.end_workers()
