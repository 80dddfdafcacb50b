"""What the benchmarks share: contenders that run in turn, statistics, the machine's description, results as JSON.

A benchmark lists its contenders, ours first.  Each lives in a process of its own over all rounds, so that neither
start nor import counts: it gets its arguments as one line of JSON, runs, and answers one line with the seconds.
Every other round goes through the list backwards, and the first round is a warm-up.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import resource
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from types import TracebackType
from typing import Any

import machine

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "build" / "bench"
# Longer than any single run takes on a slow disk.
DEADLINE = 900.0
# With the mount option discard the disk is busy with the blocks of a deleted file for a moment after sync(2): some
# contenders made whoever came next half as fast.
DISCARD = 1.0
# Enough for a file of 512 MiB in the page cache and a process that holds it twice.
ROOM = 1536 * MIB


@dataclass(frozen=True)
class Contender:
    """``make`` is called once in the worker, and what it returns is run once a round.  ``command`` gives the command
    of a worker that is no Python function, ``python`` another interpreter; both may raise Unavailable."""

    name: str
    make: Callable[[], Callable[..., Any]] | None = None
    target: float | None = None
    command: Callable[[], list[str]] | None = None
    python: Callable[[], str] = lambda: sys.executable


class Unavailable(Exception):  # noqa: N818
    """This contender cannot run here; the others can."""


class EndedError(Exception):
    """A contender's process ended or hung instead of answering."""


class Worker:
    """A contender's process."""

    def __init__(self, name: str, command: list[str]) -> None:
        self.name = name
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=BUILD)

    def send(self, *arguments: Any) -> None:
        assert self._process.stdin
        try:
            self._process.stdin.write(json.dumps(arguments).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError as error:
            raise EndedError(f"{self.name} has ended") from error

    def receive(self) -> dict[str, Any]:
        assert self._process.stdout
        ready, _, _ = select.select([self._process.stdout], [], [], DEADLINE)
        line = self._process.stdout.readline() if ready else b""
        if not line:
            self._process.kill()
            raise EndedError(f"{self.name} {'has ended' if ready else 'did not answer in time'}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def run(self, *arguments: Any) -> dict[str, Any]:
        self.send(*arguments)
        return self.receive()

    def close(self) -> None:
        assert self._process.stdin
        with suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def serve(run: Callable[..., Any]) -> None:
    """The worker's loop.  What ``run`` returns, a dict or None, goes into the answer."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # a library that prints must not answer
    for line in sys.stdin:
        arguments = json.loads(line)
        gc.collect()
        cpu_began = cpu_seconds()
        began = time.perf_counter()
        result = run(*arguments) or {}
        seconds = time.perf_counter() - began
        print(json.dumps({"seconds": seconds, "cpu": cpu_seconds() - cpu_began, **result}), file=answers, flush=True)


def cpu_seconds() -> float:
    """Of this process, its threads and its ended children, in the kernel too."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def reference_python() -> str:
    """The interpreter that has the published package, made on first use."""
    python = BUILD / "reference" / "bin" / "python"
    if not (BUILD / "reference" / ".ready").exists():
        try:
            subprocess.run([sys.executable, "-m", "venv", "--clear", str(BUILD / "reference")], check=True)
            subprocess.run([str(python), "-m", "pip", "install", "--quiet", "s3dlio==0.10.0"], check=True)
        except subprocess.CalledProcessError as error:
            raise Unavailable("the reference package cannot be installed") from error
        (BUILD / "reference" / ".ready").touch()
    return str(python)


def compiled(source: str, *libraries: str) -> str:
    """The program that one of our C files makes, compiled on every use."""
    program = BUILD / Path(source).stem
    command = [os.environ.get("CC", "cc"), "-O2", "-march=native", "-Wall", "-Wextra", "-pthread"]
    try:
        subprocess.run([*command, str(Path(__file__).with_name(source)), *libraries, "-o", str(program)], check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise Unavailable(f"{source} cannot be compiled") from error
    return str(program)


def spread(values: Sequence[float]) -> dict[str, float]:
    return {"median": median(values), "min": min(values), "max": max(values)}


class Race:
    """One benchmark: its arguments, its contenders, its results."""

    def __init__(self, script: str, title: str, contenders: Sequence[Contender] = (), rounds: int = 5) -> None:
        self.name = Path(script).stem
        self._script = script
        self._contenders = {contender.name: contender for contender in contenders}
        parser = argparse.ArgumentParser(description=f"{title}, in turn with others.")
        parser.add_argument("--rounds", type=int, help=f"rounds after the warm-up (default: {rounds}, quick: 2)")
        parser.add_argument("--quick", action="store_true", help="a small form, to see that it works")
        parser.add_argument("--folder", type=Path, default=BUILD / "data", help="where to write (default: %(default)s)")
        parser.add_argument("--json", type=Path, default=BUILD / f"{self.name}.json", help="default: %(default)s")
        parser.add_argument("--worker", help=argparse.SUPPRESS)
        arguments = parser.parse_args()
        if arguments.worker:
            make = self._contenders[arguments.worker].make
            assert make
            serve(make())
            sys.exit()
        self.quick: bool = arguments.quick
        self.rounds: int = arguments.rounds or (2 if self.quick else rounds)
        self._json: Path = arguments.json
        self._workers: dict[str, Worker] = {}
        signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended by SIGTERM"))  # not without cleaning up
        BUILD.mkdir(parents=True, exist_ok=True)
        arguments.folder.mkdir(parents=True, exist_ok=True)
        self.folder = Path(tempfile.mkdtemp(prefix=f"{self.name}-", dir=arguments.folder.absolute()))
        self.path = self.folder / "run" / "a"
        self.result: dict[str, Any] = {
            "name": self.name,
            "title": title,
            "quick": self.quick,
            "machine": machine.describe(self.folder),
            "cases": [],
        }
        print(f"# {title}\n" + machine.text(self.result["machine"]) + "\n", flush=True)

    def __enter__(self) -> Race:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.end_workers()
        shutil.rmtree(self.folder)
        if kind is None:
            self._json.parent.mkdir(parents=True, exist_ok=True)
            self._json.write_text(json.dumps(self.result, indent=1) + "\n")

    def pick(self, full: Any, quick: Any) -> Any:
        return quick if self.quick else full

    @contextmanager
    def below(self, folder: Path) -> Iterator[None]:
        """The cases within are run in another folder."""
        path, self.path = self.path, folder / "run" / "a"
        try:
            yield
        finally:
            self.end_workers()  # which may have files open there
            self.path = path

    def note(self, text: str) -> None:
        """One line for readers of the figures."""
        print(f"  {text}", flush=True)
        notes = self.result.setdefault("notes", [])
        if text not in notes:
            notes.append(text)

    def worker(self, name: str, instance: int = 0) -> Worker:
        key = f"{name} {instance}"
        if key not in self._workers:
            contender = self._contenders[name]
            command = contender.command() if contender.command else [contender.python(), self._script, "--worker", name]
            self._workers[key] = Worker(name, command)
        return self._workers[key]

    def end_workers(self) -> None:
        """The next run of each contender is in a new process."""
        for worker in self._workers.values():
            worker.close()
        self._workers.clear()

    def available(self, names: Sequence[str]) -> list[str]:
        able = []
        for name in names:
            try:
                self.worker(name)
                able.append(name)
            except Unavailable as reason:
                self.note(f"{name} is left out: {reason}")
        return able

    def case(
        self,
        title: str,
        arguments: Sequence[Any],
        amount: float,
        unit: str,
        *,
        contenders: Sequence[str] | None = None,
        targets: dict[str, float] | None = None,
        cpu_targets: dict[str, float] | None = None,
        before: Callable[[], None] = lambda: None,
        check: Callable[[Path, dict[str, Any]], None] = lambda path, answer: None,
        settle: bool = True,
        keep: bool = False,
        room: int = ROOM,
    ) -> None:
        """Runs the contenders over all rounds with a path in a fresh folder and ``arguments``, and prints the rates:
        ``amount`` in ``unit`` per second.  With ``cpu_targets``, which may be empty, CPU time is compared as wall time
        is.  ``check`` raises when a contender has not done its work.  With ``keep`` the files stay until the end: ext4
        takes long to find an inode where many were deleted a moment ago.  ``room`` is how many bytes of free memory are
        to be in place before each run, the page cache's too, see `machine.fetch_memory`."""
        names = self.available(contenders or list(self._contenders))
        answers: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
        for name in self.in_turn(names, before=before, settle=settle, keep=keep, room=room):
            if name not in answers:
                continue
            try:
                answer = self.worker(name).run(str(self.path), *arguments)
            except EndedError as reason:
                if name == names[0] or answers[name]:
                    raise
                self.note(f"{name} is left out: {reason} (what it said stands above)")
                del answers[name]
                continue
            check(self.path, answer)
            answers[name].append(answer)
        names = list(answers)
        seconds = {name: [answer["seconds"] for answer in answers[name][1:]] for name in names}
        rows = {name: {"cpu_seconds": median(answer["cpu"] for answer in answers[name][1:])} for name in names}
        for name, row in rows.items():
            row["value"] = spread([amount / value for value in seconds[name]])
            row["seconds"] = seconds[name]
            if "stored" in answers[name][0]:
                row["stored"] = answers[name][0]["stored"]
            if name != names[0]:
                pairs = zip(seconds[names[0]], seconds[name], strict=True)
                row["ratio"] = spread([other / own for own, other in pairs])
                target = (targets or {}).get(name, self._contenders[name].target)
                wanted = [] if target is None else [f"at least {target}"]
                if cpu_targets is not None:
                    cpus = zip(answers[names[0]][1:], answers[name][1:], strict=True)
                    row["cpu_ratio"] = spread([other["cpu"] / own["cpu"] for own, other in cpus])
                    wanted += [f"CPU {cpu_targets[name]}"] if name in cpu_targets else []
                if wanted:
                    row["target"] = ", ".join(wanted)
        self.add({"title": title, "unit": unit, "rounds": self.rounds, "ratio": "ours to it", "rows": rows})

    def in_turn(
        self,
        names: Sequence[str],
        *,
        before: Callable[[], None] = lambda: None,
        settle: bool = True,
        keep: bool = False,
        room: int = ROOM,
    ) -> Iterator[str]:
        """Gives the names over all rounds, the warm-up first, each with an empty folder around `path`."""
        for round_ in range(self.rounds + 1):
            for name in names if round_ % 2 == 0 else reversed(names):
                self.path.parent.mkdir()
                before()
                if settle:
                    os.sync()  # what others have left must not be written in our time
                    time.sleep(DISCARD)
                if room:
                    machine.fetch_memory(room)
                yield name
                if keep:
                    self.path.parent.rename(tempfile.mkdtemp(prefix="kept-", dir=self.folder))
                else:
                    shutil.rmtree(self.path.parent)

    def add(self, case: dict[str, Any]) -> None:
        self.result["cases"].append(case)
        print(case_text(case), flush=True)


def case_text(case: dict[str, Any]) -> str:
    lines = [f"{case['title']}, {case['rounds']} rounds"]
    for name, row in case["rows"].items():
        value = row["value"]
        line = f"  {name:36} {value['median']:10.3f} {case['unit']:8} ({value['min']:.3f} to {value['max']:.3f})"
        if "cpu_seconds" in row:
            line += f"  cpu {row['cpu_seconds']:.3f} s"
        if "stored" in row:
            line += f"  stored {row['stored']}"
        if "ratio" in row:
            ratio = row["ratio"]
            line += f"  {case['ratio']} {ratio['median']:.2f} ({ratio['min']:.2f} to {ratio['max']:.2f})"
        if "cpu_ratio" in row:
            line += "  in CPU {median:.2f} ({min:.2f} to {max:.2f})".format(**row["cpu_ratio"])
        if "target" in row:
            line += f", target {row['target']}"
        lines.append(line)
    return "\n".join(lines)


def of_size(nbytes: int) -> Callable[[Path, dict[str, Any]], None]:
    """A check that the file has this size."""

    def check(path: Path, answer: dict[str, Any]) -> None:
        if path.stat().st_size != nbytes:
            sys.exit(f"{path} has {path.stat().st_size} bytes, not {nbytes}")

    return check


def fsync(path: str) -> None:
    """Makes a finished file durable, for contenders that leave that to their caller."""
    fd = os.open(path, os.O_RDONLY)
    os.fsync(fd)
    os.close(fd)
