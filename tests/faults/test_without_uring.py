"""The tests of files once more where io_uring is forbidden or may lock no memory, and where descriptors are few."""

from __future__ import annotations

import errno
import itertools
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from harness import SOAK, effort, need_root, need_tools
from judging import judge
from tracing import OFF, PREFER, Scenario, Tracer

TESTS = Path(__file__).parents[1]
FORBID = [sys.executable, str(TESTS / "forbid.py")]
# Somebody else.  As a reader he may look at everything: the checkout and the interpreter may lie where only root can.
NOBODY = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
READER = [*NOBODY, "--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"]

LIMITS = {
    "EPERM": [*FORBID, str(errno.EPERM)],
    "ENOSYS": [*FORBID, str(errno.ENOSYS)],
    "memlock 0": [*READER, "prlimit", "--memlock=0:0"],
    "nofile": ["prlimit", "--nofile=64:"],
}
# How forced io_uring fails there.
REFUSALS = {"EPERM": errno.EPERM, "ENOSYS": errno.ENOSYS, "memlock 0": errno.ENOMEM}

# The tests of the short form: files, and rows of stores in contract/; with them the engine is left open, and so falls
# back.  The long form has all.
WRITER, STORE, FILE = "contract/test_writer.py", "contract/test_store.py", "test_file.py"
SHORT = {
    "EPERM": ([WRITER, FILE], "direct"),
    "ENOSYS": ([STORE], "direct"),
    "memlock 0": ([WRITER], "file|direct"),
    "nofile": ([WRITER], "file"),
}
LONG = ["contract", FILE, "test_readme.py"]
# Tests that ask for io_uring, by a parameter or inside.
NEEDS_URING = re.compile(r"\[(.*-)?uring(-.*)?\]|::test_file_size_limit_is_an_error_and_leaves_nothing")


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that somebody else may use, below folders that he may pass."""
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="s3dlio-") as name:
        folder = Path(name)
        folder.chmod(0o777)
        yield folder


def run_pytest(*arguments: str, under: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    options = ["-q", "-p", "no:cacheprovider", f"--rootdir={TESTS.parent}", f"--basetemp={folder}/base"]
    return subprocess.run(
        [*under, sys.executable, "-B", "-m", "pytest", *options, *arguments],
        capture_output=True,
        text=True,
        check=False,
        cwd=TESTS.parent,
        timeout=effort(240, 1800),
        env=os.environ | {"TMPDIR": str(folder), "HOME": str(folder)},
    )


def collect(limit: str, folder: Path) -> list[str]:
    files, rows = (LONG, None) if SOAK else SHORT[limit]
    done = run_pytest("--collect-only", *(str(TESTS / file) for file in files), under=[], folder=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    names = [line for line in done.stdout.splitlines() if "::" in line]
    other_rows = re.compile(rf"contract/(?!.*\[({rows})(-(?!threads|uring).*)?\])")
    return [name for name in names if rows is None or not other_rows.search(name)]


def need_limit(limit: str) -> list[str]:
    if limit.startswith("memlock"):
        need_root()
    need_tools("prlimit", "setpriv")
    return LIMITS[limit]


@pytest.mark.timeout(effort(300, 2000))
@pytest.mark.parametrize("limit", LIMITS)
def test_files_pass_their_tests_under_a_limit(open_folder: Path, limit: str, figure: Callable[[str], None]) -> None:
    under = need_limit(limit)
    found = collect(limit, open_folder)
    left_out = [name for name in found if limit in REFUSALS and NEEDS_URING.search(name)]
    chosen = sorted(set(found) - set(left_out), key=found.index)
    (open_folder / "chosen").write_text("\n".join(chosen))
    done = run_pytest(f"@{open_folder}/chosen", under=under, folder=open_folder)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr
    counts = {word: int(number) for number, word in re.findall(r"(\d+) (passed|skipped)", done.stdout.splitlines()[-1])}
    assert sum(counts.values()) == len(chosen)
    assert counts["passed"] > len(chosen) * 0.9
    figure(
        f"without io_uring: {limit} {counts['passed']} passed, {counts.get('skipped', 0)} skipped, "
        f"{len(left_out)} left out that force io_uring"
    )


# Writes files in several ways and says with which engine; their bytes are compared.
WRITE = """
import random, sys
import s3dlio
data = random.Random(1).randbytes(1_234_567)
for scheme in ("file", "direct"):
    for compression in (None, "zstd"):
        uri = f"{scheme}://{sys.argv[1]}/{scheme}-{compression}"
        with s3dlio.open_writer(uri, compression=compression, buffer_size=65536, in_flight=2) as writer:
            for at in range(0, len(data), 50_000):
                writer.write_chunk(data[at : at + 50_000])
        print(writer.checksum(), writer.stats().io_engine, writer.stats().direct)
        with s3dlio.open_reader(writer.uri, decompress=compression is not None) as reader:
            assert reader.read() == data
"""


def write(under: list[str], folder: Path, engine: str = "") -> tuple[list[str], dict[str, bytes], str]:
    """What the program says, the files, and its last words."""
    folder.mkdir()
    folder.chmod(0o777)
    done = subprocess.run(
        [*under, sys.executable, "-B", "-c", WRITE, str(folder)],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env=os.environ | {"S3DLIO_IO_ENGINE": engine},
    )
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    return done.stdout.splitlines(), files, "".join(done.stderr.splitlines()[-1:])


@pytest.mark.parametrize("limit", REFUSALS)
def test_same_bytes_are_stored_by_threads_where_io_uring_is_refused(open_folder: Path, limit: str) -> None:
    under = need_limit(limit)
    said, files, _ = write([], open_folder / "free")
    said_there, files_there, error = write(under, open_folder / "limited")
    assert len(files) == 4, error
    assert files_there == files
    assert [line.replace("threads", "io_uring") for line in said_there] == [
        line.replace("threads", "io_uring") for line in said
    ]
    assert {line.split()[1] for line in said_there} == {"threads"}


@pytest.mark.parametrize("limit", REFUSALS)
def test_forced_io_uring_fails_there(open_folder: Path, limit: str) -> None:
    """The planted fault: were the limit not on, this would go well."""
    said, files, error = write(need_limit(limit), open_folder / "limited", engine="uring")
    assert (said, files) == ([], {})
    assert os.strerror(REFUSALS[limit]) in error


@pytest.mark.parametrize("memlock", [0, 64 << 10, 8 << 20])
def test_somebody_with_little_memory_to_lock_writes_whole_files(driver: Path, open_folder: Path, memlock: int) -> None:
    """With nothing that root may do; the driver needs neither the checkout nor Python."""
    need_root()
    need_tools("prlimit", "setpriv")
    program = Path(shutil.copy(driver, open_folder))
    tracer = Tracer(program, open_folder / "run")
    under = [*NOBODY, "prlimit", f"--memlock={memlock}:{memlock}"]
    for scenario in (Scenario(engine, PREFER, block=4 << 20, nbytes=9 << 20) for engine in ("", "uring", "threads")):
        run = tracer.run_under(under, scenario)
        assert run.status in ((0, -errno.ENOMEM) if scenario.engine == "uring" else (0,))
        assert judge(scenario, None, run, tracer.folder) == []
        if memlock == 0:
            assert run.engine in ("threads", "none")


def test_each_descriptor_that_is_missing_is_an_error_or_not_needed(
    driver: Path, disk_path: Path, figure: Callable[[str], None]
) -> None:
    tracer = Tracer(driver, disk_path / "run")
    nlimits = 0
    engines = ("uring", "threads", "") if tracer.run_under([], Scenario("uring")).status == 0 else ("threads", "")
    states = ("new", "old", "folders", "abandoned")
    scenarios = [Scenario(*each) for each in itertools.product(engines, (OFF, PREFER), (0,), states)]
    scenarios += [Scenario(state=state, put=True) for state in states]
    for scenario in scenarios:
        free = tracer.run_under([], scenario)
        reached = failed = 0
        for more in range(12):
            if reached == 2:
                break
            run = tracer.run_under([], scenario, f"more_fds={more}")
            assert run.status in (0, -errno.EMFILE), (scenario, more, run)
            assert judge(scenario, None, run, tracer.folder) == [], (scenario, more, run)
            nlimits += 1
            failed += run.status != 0
            reached += run.status == 0 and run.engine == free.engine
        assert failed >= 2, scenario  # the folder and the file
        assert reached == 2, scenario
    figure(f"without io_uring: nofile {nlimits} limits")
